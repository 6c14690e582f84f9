#include "common/types/session_id.h"

#include "gtest/gtest.h"

namespace paceline {
namespace {

using std::chrono::seconds;

TEST(SessionIdTest, CarriesItsTime) {
  for (const seconds ttl : {kShortestSession, seconds(90), kLongestSession}) {
    const std::string id = MakeSessionId("00ff", ttl);
    EXPECT_EQ(SessionTimeToLive(id), ttl) << id;
  }
  EXPECT_EQ(MakeSessionId("00ff", seconds(90)), "90s-00ff");
}

TEST(SessionIdTest, OtherIdsCarryNone) {
  for (const char* id : {"", "s-", "s", "chat-7", "0s-a", "-1s-a", "86401s-a", "090s-a", " 90s-a",
                         "+90s-a", "9x0s-a", "99999999999999999999s-a", "90", "90s", "yes-90s-a"}) {
    EXPECT_EQ(SessionTimeToLive(id), std::nullopt) << id;
  }
}

}  // namespace
}  // namespace paceline

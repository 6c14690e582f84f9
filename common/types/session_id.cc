#include "common/types/session_id.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace paceline {

std::string MakeSessionId(std::string_view random, std::chrono::seconds ttl) {
  CHECK(ttl >= kShortestSession && ttl <= kLongestSession);
  return absl::StrCat(ttl.count(), "s-", random);
}

std::optional<std::chrono::seconds> SessionTimeToLive(std::string_view session_id) {
  const size_t end = session_id.find("s-");
  if (end == std::string_view::npos || end == 0) return std::nullopt;
  const std::string_view digits = session_id.substr(0, end);
  int32_t seconds = 0;
  // One spelling of a number, so that ids which look alike are alike.
  if (!absl::SimpleAtoi(digits, &seconds) || absl::StrCat(seconds) != digits) return std::nullopt;
  const std::chrono::seconds ttl(seconds);
  if (ttl < kShortestSession || ttl > kLongestSession) return std::nullopt;
  return ttl;
}

}  // namespace paceline

#include "common/flags.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace paceline {
namespace {

struct Values {
  std::string name = "x";
  int32_t count = 3;
  uint64_t seed = 0;
  double rate = 0.5;
  bool fast = false;
  std::string mode = "auto";
  Flags flags{"test"};

  Values() {
    flags.Add("name", &name, "a name");
    flags.Add("count", &count, "a count");
    flags.Add("seed", &seed, "a seed");
    flags.Add("rate", &rate, "a rate");
    flags.Add("fast", &fast, "a switch");
    flags.AddChoice("mode", &mode, {"auto", "off"}, "a choice");
  }
  absl::StatusOr<std::vector<std::string>> Parse(std::vector<const char*> args) {
    args.insert(args.begin(), "program");
    return flags.Parse(static_cast<int>(args.size()), args.data());
  }
};

TEST(Flags, BothFormsAndPositional) {
  Values v;
  auto rest = v.Parse({"--name=a=b", "go", "--count", "-7", "--fast", "--seed=18446744073709551615",
                       "--", "--name"});
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_THAT(*rest, testing::ElementsAre("go", "--name"));
  EXPECT_EQ(v.name, "a=b");
  EXPECT_EQ(v.count, -7);
  EXPECT_EQ(v.seed, 18446744073709551615u);
  EXPECT_TRUE(v.fast);
  EXPECT_TRUE(v.flags.Given("count"));
  EXPECT_FALSE(v.flags.Given("rate"));
}

TEST(Flags, NegatedBool) {
  Values v;
  v.fast = true;
  ASSERT_TRUE(v.Parse({"--no-fast"}).ok());
  EXPECT_FALSE(v.fast);
}

TEST(Flags, RefusalsNameTheFlag) {
  const std::vector<std::pair<std::vector<const char*>, const char*>> cases = {
      {{"--nope"}, "unknown flag --nope"},
      {{"--no-count"}, "unknown flag --no-count"},
      {{"--count"}, "--count needs a value"},
      {{"--count=1x"}, "--count is '1x'"},
      {{"--count=99999999999"}, "--count is '99999999999'"},
      {{"--seed=-1"}, "--seed is '-1'"},
      {{"--rate=fast"}, "--rate is 'fast'"},
      {{"--fast=maybe"}, "--fast is 'maybe'"},
      {{"--mode=on"}, "must be one of auto|off"},
  };
  for (const auto& [args, message] : cases) {
    Values v;
    const auto status = v.Parse(args).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(message));
  }
}

TEST(Flags, SplitListDropsEmptyParts) {
  EXPECT_THAT(SplitList("a,,b,"), testing::ElementsAre("a", "b"));
  EXPECT_TRUE(SplitList("").empty());
}

}  // namespace
}  // namespace paceline

#include "cli/bench/bench_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace paceline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<BenchOptions> Parse(std::vector<const char*> flags) {
  flags.insert(flags.begin(), "bench");
  return ParseBenchOptions(static_cast<int>(flags.size()), flags.data());
}

std::string ErrorOf(std::vector<const char*> flags) {
  const auto options = Parse(std::move(flags));
  EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(options.status().message());
}

TEST(BenchOptions, ListsAndModes) {
  const auto o = Parse({"--prompts=a.jsonl,b.txt", "--metrics", "h:1,h:2", "--compare",
                        "plain,sync,chain,enumerate,auto,ngram,draft", "--rounds=5"});
  ASSERT_TRUE(o.ok()) << o.status();
  EXPECT_THAT(o->prompts, ElementsAre("a.jsonl", "b.txt"));
  EXPECT_THAT(o->metrics, ElementsAre("h:1", "h:2"));
  EXPECT_EQ(o->compare.size(), 7u);
  EXPECT_EQ(o->compare[3], BenchMode::kEnumerate);
  EXPECT_FALSE(o->open_loop());
  EXPECT_EQ(o->warmup, 1);
  EXPECT_EQ(Parse({"--prompt-tokens=8", "--compare=plain", "--warmup=0"})->warmup, 0);
  EXPECT_EQ(Parse({"--prompt-tokens=8"})->warmup, 0);
  EXPECT_EQ(Parse({"--prompt-tokens=8", "--speculation=off"})->mode, BenchMode::kPlain);
  EXPECT_EQ(Parse({"--prompt-tokens=8", "--speculation=always"})->mode, BenchMode::kDraft);
  EXPECT_TRUE(Parse({"--prompt-tokens=8", "--rate=2"})->open_loop());
  EXPECT_TRUE(Parse({"--trace=t.csv"})->open_loop());
}

TEST(BenchOptions, ModeNamesComeBack) {
  for (const char* name : {"auto", "plain", "draft", "sync", "chain", "enumerate", "ngram"}) {
    const auto modes = ParseBenchModes(name);
    ASSERT_TRUE(modes.ok()) << modes.status();
    EXPECT_STREQ(BenchModeName(modes->front()), name);
  }
}

TEST(BenchOptions, RefusalsNameTheFlag) {
  EXPECT_THAT(ErrorOf({}), HasSubstr("--prompts, --prompt-tokens or --trace"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "x"}), HasSubstr("unexpected argument x"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=0"}), HasSubstr("--prompt-tokens is 0"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--concurrency=0"}), HasSubstr("--concurrency is 0"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--rate=0"}), HasSubstr("--rate is 0"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--rate=nan"}), HasSubstr("--rate is nan"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--requests=-1"}), HasSubstr("--requests is -1"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--duration=-1"}), HasSubstr("--duration is -1"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--max-tokens=0"}), HasSubstr("--max-tokens is 0"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--draft-length=17"}), HasSubstr("--draft-length is"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--warmup=-1"}), HasSubstr("--warmup is -1"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--timeout=0"}), HasSubstr("--timeout is 0"));
  EXPECT_THAT(ErrorOf({"--trace=t", "--trace-speed=0"}), HasSubstr("--trace-speed is 0"));
  EXPECT_THAT(ErrorOf({"--trace=t", "--length-scale=0"}), HasSubstr("--length-scale is 0"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--slo-ttft=-1"}), HasSubstr("--slo-ttft is -1"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--slo-tpot=-1"}), HasSubstr("--slo-tpot is -1"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--target-devices=-1"}), HasSubstr("--target-devices"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--draft-devices=-1"}), HasSubstr("--draft-devices"));
  EXPECT_THAT(ErrorOf({"--prompts=p", "--max-prompt-bytes=-1"}), HasSubstr("--max-prompt-bytes"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--compare=plain", "--rounds=0"}),
              HasSubstr("--rounds is 0"));
}

TEST(BenchOptions, FlagsAtOdds) {
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--rate=1", "--concurrency=2"}),
              HasSubstr("--rate and --concurrency exclude each other"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--prompts=p"}), HasSubstr("exclude each other"));
  EXPECT_THAT(ErrorOf({"--trace=t", "--rate=1"}), HasSubstr("exclude each other"));
  EXPECT_THAT(ErrorOf({"--trace=t", "--prompts=p"}), HasSubstr("exclude each other"));
  EXPECT_THAT(ErrorOf({"--trace=t", "--max-tokens=4"}), HasSubstr("exclude each other"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--compare=plain", "--speculation=off"}),
              HasSubstr("exclude each other"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--compare=plain", "--duration=4"}),
              HasSubstr("--duration"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--rounds=4"}), HasSubstr("belongs to --compare"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--compare=plain,fast"}), HasSubstr("'fast'"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--compare=plain,plain"}), HasSubstr("twice"));
  EXPECT_THAT(ErrorOf({"--prompt-tokens=8", "--compare="}), HasSubstr("names no mode"));
}

}  // namespace
}  // namespace paceline

#include "cli/bench/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "cli/bench/test_files.h"

namespace paceline {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

const ModelLimits kLimits{"m", 512, 1000};

BenchOptions Synthetic() {
  BenchOptions o;
  o.prompt_tokens = 10;
  o.max_tokens = 20;
  o.seed = 7;
  return o;
}

TEST(Workload, SyntheticIsAFunctionOfTheSeed) {
  const auto a = MakeWorkload(Synthetic(), kLimits), b = MakeWorkload(Synthetic(), kLimits);
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(a->request_count, 32);
  EXPECT_FALSE(a->open_loop());
  std::set<uint64_t> seeds;
  std::set<std::vector<int32_t>> prompts;
  for (int64_t i = 0; i < a->request_count; ++i) {
    EXPECT_EQ(a->PromptOf(i).token_ids, b->PromptOf(i).token_ids);
    EXPECT_EQ(a->SeedOf(i), b->SeedOf(i));
    EXPECT_EQ(a->MaxTokensOf(i), 20);
    seeds.insert(a->SeedOf(i));
    prompts.insert(a->PromptOf(i).token_ids);
  }
  EXPECT_EQ(seeds.size(), 32u);
  EXPECT_EQ(prompts.size(), 32u);
  BenchOptions other = Synthetic();
  other.seed = 8;
  EXPECT_NE(MakeWorkload(other, kLimits)->PromptOf(0).token_ids, a->PromptOf(0).token_ids);
}

TEST(Workload, CountByRequestsDurationOrPrompts) {
  const TestFile file("p.txt", "one\ntwo\nthree\n");
  BenchOptions o;
  o.prompts = {file.path(), file.path()};
  EXPECT_EQ(MakeWorkload(o, kLimits)->request_count, 6);
  o.requests = 8;
  const auto w = MakeWorkload(o, kLimits);
  EXPECT_EQ(w->request_count, 8);
  EXPECT_EQ(w->PromptOf(7).text, "two");  // from the first again
  EXPECT_NE(w->SeedOf(7), w->SeedOf(1));
  o.requests = 0;
  o.duration = 2;
  EXPECT_EQ(MakeWorkload(o, kLimits)->request_count, Workload::kUnbounded);
  o.rate = 10;
  const auto open = MakeWorkload(o, kLimits);
  EXPECT_EQ(open->request_count, static_cast<int64_t>(open->arrivals.size()));
  EXPECT_THAT(open->arrivals, Each(testing::Lt(Seconds(2))));
  o.rate = 0.001;
  EXPECT_THAT(std::string(MakeWorkload(o, kLimits).status().message()),
              HasSubstr("no request arrives within --duration 2"));
}

TEST(Workload, LongPromptsAreLeftOut) {
  const TestFile file("p.txt", "short\na longer one\n");
  BenchOptions o;
  o.prompts = {file.path()};
  o.max_prompt_bytes = 6;
  EXPECT_EQ(MakeWorkload(o, kLimits)->left_out_prompts, 1);
  o.max_prompt_bytes = 2;
  EXPECT_THAT(std::string(MakeWorkload(o, kLimits).status().message()),
              HasSubstr("all 2 prompts are longer than --max-prompt-bytes 2"));
}

TEST(Workload, TraceGivesArrivalsAndLengths) {
  const TestFile file("t.csv",
                      "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                      "2023-11-16 18:15:46,100,44\n2023-11-16 18:15:50,4000,200\n"
                      "2023-11-16 18:15:56,10,4000\n");
  BenchOptions o;
  o.trace = file.path();
  o.trace_speed = 2;
  const auto w = MakeWorkload(o, kLimits);
  ASSERT_TRUE(w.ok()) << w.status();
  EXPECT_EQ(w->arrivals, (std::vector<Duration>{Seconds(0), Seconds(2), Seconds(5)}));
  EXPECT_EQ(w->PromptOf(0).token_ids.size(), 100u);
  EXPECT_EQ(w->MaxTokensOf(0), 44);
  // Cut to the context of 512: the prompt first.
  EXPECT_EQ(w->cut_rows, 2);
  EXPECT_EQ(w->PromptOf(1).token_ids.size(), 312u);
  EXPECT_EQ(w->MaxTokensOf(1), 200);
  EXPECT_EQ(w->PromptOf(2).token_ids.size(), 1u);
  EXPECT_EQ(w->MaxTokensOf(2), 511);
  o.length_scale = 0.1;
  EXPECT_EQ(MakeWorkload(o, kLimits)->PromptOf(1).token_ids.size(), 400u);
  o.duration = 3;
  EXPECT_EQ(MakeWorkload(o, kLimits)->request_count, 2);
}

TEST(Workload, EqualBlocksOfATraceAreEqualTokens) {
  const TestFile file(
      "t.jsonl",
      "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [3, 4]}\n"
      "{\"timestamp\": 9, \"input_length\": 1100, \"output_length\": 5, \"hash_ids\": [3, 5]}\n");
  BenchOptions o;
  o.trace = file.path();
  const auto w = MakeWorkload(o, {"m", 4096, 1000});
  ASSERT_TRUE(w.ok()) << w.status();
  const auto a = w->PromptOf(0).token_ids, b = w->PromptOf(1).token_ids;
  ASSERT_EQ(a.size(), 600u);
  ASSERT_EQ(b.size(), 1100u);  // behind its two blocks it has tokens of its own
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 512, b.begin()));
  EXPECT_NE(a[512], b[512]);
  o.length_scale = 0.1;
  const auto scaled = MakeWorkload(o, {"m", 4096, 1000});
  const auto c = scaled->PromptOf(0).token_ids, d = scaled->PromptOf(1).token_ids;
  ASSERT_EQ(c.size(), 60u);
  EXPECT_TRUE(std::equal(c.begin(), c.begin() + 51, d.begin()));
}

TEST(Workload, RefusesWhatDoesNotFit) {
  BenchOptions o = Synthetic();
  o.prompt_tokens = 500;
  EXPECT_THAT(
      std::string(MakeWorkload(o, kLimits).status().message()),
      HasSubstr("--prompt-tokens 500 and --max-tokens 20 exceed the model's context of 512"));
  EXPECT_EQ(MakeWorkload(Synthetic(), {"m", 0, 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
  o = {};
  o.prompts = {"/nonexistent"};
  EXPECT_EQ(MakeWorkload(o, kLimits).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace paceline

#include "tests/sim/hash_runner.h"

#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace paceline {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using ExecuteAt = HashRunnerOptions::ExecuteAt;

constexpr int32_t kBlockSize = 4;

std::shared_ptr<SamplingParams> Greedy(int32_t max_tokens) {
  auto params = std::make_shared<SamplingParams>();
  params->temperature = 0;
  params->max_tokens = max_tokens;
  params->ignore_eos = true;
  return params;
}

std::shared_ptr<SamplingParams> Sampled(int32_t max_tokens) {
  auto params = Greedy(max_tokens);
  params->temperature = 0.9f;
  params->seed = 77;
  return params;
}

// Writes plans by hand for one or more sequences over fixed tables.
class Plans {
 public:
  explicit Plans(HashRunnerOptions options = {}) {
    options.block_size = kBlockSize;
    options.num_blocks = 64;
    options.max_slots = 8;
    options.max_context = 200;
    runner_ = std::make_unique<HashRunner>(options);
  }

  HashRunner& runner() { return *runner_; }
  const HashModel& model() { return runner_->model(); }

  void Bind(SlotId slot, std::vector<TokenId> tokens, std::shared_ptr<const SamplingParams> params,
            int32_t sample = 0) {
    plan_.binds.push_back({.slot = slot,
                           .sampling = std::move(params),
                           .sample = sample,
                           .prompt_len = static_cast<int32_t>(tokens.size()),
                           .tokens = tokens});
  }

  // Rows for tokens that continue the context one behind another.
  Span& Add(SlotId slot, SpanKind kind, std::vector<BlockId> table, int32_t context_len,
            const std::vector<TokenId>& tokens) {
    Span span{.slot = slot,
              .kind = kind,
              .row_begin = static_cast<int32_t>(plan_.rows.size()),
              .num_rows = static_cast<int32_t>(tokens.size()),
              .context_len = context_len,
              .table_begin = static_cast<int32_t>(plan_.block_tables.size()),
              .table_len = static_cast<int32_t>(table.size())};
    for (int32_t r = 0; r < span.num_rows; ++r) {
      plan_.rows.push_back({.token = tokens[r], .position = context_len + r, .parent = r - 1});
    }
    plan_.block_tables.insert(plan_.block_tables.end(), table.begin(), table.end());
    plan_.spans.push_back(span);
    return plan_.spans.back();
  }

  void SampleLast(std::vector<SlotId> slots, int32_t num_candidates = 0) {
    for (SlotId slot : slots) {
      plan_.sample_rows.push_back({.row = static_cast<int32_t>(plan_.rows.size()) - 1,
                                   .slot = slot,
                                   .num_candidates = num_candidates});
    }
  }

  // The last span accepts; all its rows are sampled.
  Span& Accept() {
    Span& span = plan_.spans.back();
    span.accept = true;
    for (int32_t r = 0; r < span.num_rows; ++r) {
      plan_.sample_rows.push_back({.row = span.row_begin + r, .slot = span.slot});
    }
    return span;
  }

  StepPlan& plan() { return plan_; }

  absl::Status Launch() {
    plan_.step = next_step_++;
    StepPlan plan = std::move(plan_);
    plan_ = {};
    return runner_->Launch(plan);
  }

  absl::StatusOr<StepResult> Run() {
    if (absl::Status launched = Launch(); !launched.ok()) return launched;
    return runner_->Wait();
  }

  // Tokens of the only slot of a step that must work.
  SlotResult RunOne() {
    absl::StatusOr<StepResult> result = Run();
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok() || result->slots.size() != 1) return {};
    return result->slots[0];
  }

 private:
  std::unique_ptr<HashRunner> runner_;
  StepPlan plan_;
  uint64_t next_step_ = 5;
};

std::vector<BlockId> Table(BlockId first, int32_t n = 12) {
  std::vector<BlockId> table(n);
  std::iota(table.begin(), table.end(), first);
  return table;
}

const std::vector<TokenId> kPrompt = {5, 6, 7, 8, 9, 10};

// Prefills the prompt in two chunks and decodes until `tokens` hold n outputs.
std::vector<TokenId> Decode(Plans* plans, std::shared_ptr<const SamplingParams> params, size_t n) {
  plans->Bind(1, kPrompt, params);
  plans->Add(1, SpanKind::kPrefill, Table(0), 0, {5, 6, 7});
  EXPECT_THAT(plans->RunOne().tokens, IsEmpty());
  plans->Add(1, SpanKind::kPrefill, Table(0), 3, {8, 9, 10});
  plans->SampleLast({1});
  std::vector<TokenId> out = plans->RunOne().tokens;
  while (out.size() < n) {
    const int32_t at = static_cast<int32_t>(kPrompt.size() + out.size()) - 1;
    plans->Add(1, SpanKind::kDecode, Table(0), at, {out.back()});
    plans->SampleLast({1});
    for (TokenId t : plans->RunOne().tokens) out.push_back(t);
  }
  return out;
}

TEST(HashRunnerTest, PlainDecodingGivesTheModelsTokens) {
  auto odd = Sampled(20);
  odd->repetition_penalty = 1.3f;
  odd->presence_penalty = 0.5f;
  odd->frequency_penalty = 0.5f;
  odd->top_k = 20;
  odd->top_p = 0.9f;
  odd->min_p = 0.01f;
  odd->logit_bias = {{3, 4.0f}};
  odd->stop_token_ids = {3};
  odd->min_tokens = 20;
  for (const auto& params : {Greedy(20), Sampled(20), odd}) {
    for (bool scan_all : {true, false}) {
      HashRunnerOptions options;
      options.scan_all = scan_all;
      Plans plans(options);
      EXPECT_EQ(Decode(&plans, params, 20), plans.model().Generate(kPrompt, *params, 0));
    }
  }
}

TEST(HashRunnerTest, ParametersChangeTheTokens) {
  const HashModel model({});
  auto other = Sampled(30);
  other->seed = 78;
  auto penalised = Greedy(30);
  penalised->repetition_penalty = 1.5f;
  EXPECT_NE(model.Generate(kPrompt, *Sampled(30), 0), model.Generate(kPrompt, *other, 0));
  EXPECT_NE(model.Generate(kPrompt, *Sampled(30), 0), model.Generate(kPrompt, *Sampled(30), 1));
  EXPECT_NE(model.Generate(kPrompt, *Greedy(30), 0), model.Generate(kPrompt, *Sampled(30), 0));
  EXPECT_NE(model.Generate(kPrompt, *Greedy(30), 0), model.Generate(kPrompt, *penalised, 0));
}

TEST(HashRunnerTest, AChainIsAcceptedUpToTheFirstDifference) {
  Plans plans;
  const std::vector<TokenId> truth = plans.model().Generate(kPrompt, *Sampled(20), 0);
  ASSERT_EQ(Decode(&plans, Sampled(20), 1)[0], truth[0]);
  const TokenId wrong = (truth[3] + 1) % 128;
  plans.Add(1, SpanKind::kVerify, Table(0), 6, {truth[0], truth[1], truth[2], wrong, 4});
  plans.Accept();
  const SlotResult first = plans.RunOne();
  EXPECT_THAT(first.tokens, ElementsAre(truth[1], truth[2], truth[3]));
  EXPECT_EQ(first.accepted, 2);
  EXPECT_EQ(first.drafted, 4);
  EXPECT_EQ(first.rows_run, 5);
  // The rejected rows' KV is overwritten, not seen.
  plans.Add(1, SpanKind::kVerify, Table(0), 9, {truth[3], truth[4]});
  plans.Accept();
  EXPECT_THAT(plans.RunOne().tokens, ElementsAre(truth[4], truth[5]));
}

TEST(HashRunnerTest, ATreesPathMovesItsKv) {
  Plans plans;
  const std::vector<TokenId> truth = plans.model().Generate(kPrompt, *Greedy(20), 0);
  Decode(&plans, Greedy(20), 1);
  const TokenId wrong = (truth[1] + 1) % 128;
  plans.Add(1, SpanKind::kVerify, Table(0), 6, {truth[0], wrong, wrong, truth[1], truth[2]});
  Span& span = plans.Accept();
  span.mask = SpanMask::kTree;
  const int32_t parents[] = {kNone, 0, 1, 0, 3};
  const int32_t depths[] = {0, 1, 2, 1, 2};
  for (int32_t r = 0; r < 5; ++r) {
    plans.plan().rows[r].parent = parents[r];
    plans.plan().rows[r].position = 6 + depths[r];
  }
  EXPECT_THAT(plans.RunOne().tokens, ElementsAre(truth[1], truth[2], truth[3]));
  plans.Add(1, SpanKind::kDecode, Table(0), 9, {truth[3]});
  plans.SampleLast({1});
  EXPECT_THAT(plans.RunOne().tokens, ElementsAre(truth[4]));
}

TEST(HashRunnerTest, LaunchAheadRunsFromTheSlot) {
  for (ExecuteAt execute_at : {ExecuteAt::kLaunch, ExecuteAt::kWait}) {
    HashRunnerOptions options;
    options.execute_at = execute_at;
    Plans plans(options);
    const std::vector<TokenId> truth = plans.model().Generate(kPrompt, *Sampled(20), 0);
    Decode(&plans, Sampled(20), 1);
    // Verify one right draft; ahead of the outcome, branches for "0 accepted" and "1 accepted".
    plans.Add(1, SpanKind::kVerify, Table(0), 6, {truth[0], truth[1]});
    plans.Accept();
    ASSERT_TRUE(plans.Launch().ok());
    plans.Add(1, SpanKind::kVerify, Table(0), 8, {0, 0, 0});
    Span& ahead = plans.Accept();
    ahead.from_slot = true;
    ahead.branches = {{.accepted = 0, .next = truth[2], .tokens = {1, 1}},
                      {.accepted = 1, .next = truth[2], .tokens = {truth[3]}}};
    ASSERT_TRUE(plans.Launch().ok());
    EXPECT_THAT(plans.runner().Wait()->slots[0].tokens, ElementsAre(truth[1], truth[2]));
    // And one more, whose branch does not match: its newest token alone runs.
    plans.Add(1, SpanKind::kVerify, Table(0), 11, {0, 0});
    Span& unmatched = plans.Accept();
    unmatched.from_slot = true;
    unmatched.branches = {{.accepted = 0, .next = truth[4], .tokens = {1}}};
    ASSERT_TRUE(plans.Launch().ok());
    const StepResult matched = *plans.runner().Wait();
    EXPECT_THAT(matched.slots[0].tokens, ElementsAre(truth[3], truth[4]));
    EXPECT_EQ(matched.slots[0].context_len, 8);
    EXPECT_EQ(matched.slots[0].rows_run, 2);
    const StepResult last = *plans.runner().Wait();
    EXPECT_THAT(last.slots[0].tokens, ElementsAre(truth[5]));
    EXPECT_EQ(last.slots[0].rows_run, 1);
    EXPECT_EQ(last.slots[0].context_len, 10);
  }
}

TEST(HashRunnerTest, AnEndedSlotDoesNotRun) {
  Plans plans;
  auto params = Greedy(2);
  Decode(&plans, params, 1);
  const std::vector<TokenId> truth = plans.model().Generate(kPrompt, *params, 0);
  plans.Add(1, SpanKind::kVerify, Table(0), 6, {truth[0], truth[1], 1});
  plans.Accept();
  ASSERT_TRUE(plans.Launch().ok());
  plans.Add(1, SpanKind::kDecode, Table(0), 8, {0});
  plans.SampleLast({1});
  plans.plan().spans[0].from_slot = true;
  ASSERT_TRUE(plans.Launch().ok());
  const StepResult end = *plans.runner().Wait();
  EXPECT_THAT(end.slots[0].tokens, ElementsAre(truth[1]));  // max_tokens cuts
  EXPECT_TRUE(end.slots[0].ended);
  const StepResult behind = *plans.runner().Wait();
  EXPECT_THAT(behind.slots[0].tokens, IsEmpty());
  EXPECT_EQ(behind.slots[0].rows_run, 0);
}

TEST(HashRunnerTest, StopIdsAndEosEnd) {
  const HashModel model({.vocab_size = 8, .eos_token_ids = {2}});
  SamplingParams params;
  params.max_tokens = 300;
  const std::vector<TokenId> eos = model.Generate(std::vector<TokenId>{1, 3}, params, 0);
  EXPECT_EQ(eos.back(), 2);
  params.min_tokens = 20;
  EXPECT_GE(model.Generate(std::vector<TokenId>{1, 3}, params, 0).size(), 21u);
  params.min_tokens = 0;
  params.ignore_eos = true;
  params.stop_token_ids = {4};
  EXPECT_EQ(model.Generate(std::vector<TokenId>{1, 3}, params, 0).back(), 4);
}

TEST(HashRunnerTest, ParallelSamplesShareARowAndFork) {
  Plans plans;
  auto params = Sampled(10);
  for (SlotId s : {0, 1, 2}) plans.Bind(s, kPrompt, params, s);
  plans.Add(0, SpanKind::kPrefill, Table(0, 2), 0, kPrompt);
  plans.SampleLast({0, 1, 2});
  const StepResult first = *plans.Run();
  ASSERT_THAT(first.slots, SizeIs(3));
  // Each goes on with the shared first block and a copy of the second.
  const std::vector<BlockId> tables[] = {{0, 1}, {0, 20}, {0, 21}};
  plans.plan().copies = {{.src = 1, .dst = 20, .num_slots = 2},
                         {.src = 1, .dst = 21, .num_slots = 2}};
  for (SlotId s : {0, 1, 2}) {
    plans.Add(s, SpanKind::kDecode, tables[s], 6, {first.slots[s].tokens[0]});
    plans.SampleLast({s});
  }
  const StepResult second = *plans.Run();
  ASSERT_THAT(second.slots, SizeIs(3));
  for (SlotId s : {0, 1, 2}) {
    const std::vector<TokenId> truth = plans.model().Generate(kPrompt, *params, s);
    EXPECT_EQ(first.slots[s].tokens[0], truth[0]);
    EXPECT_EQ(second.slots[s].tokens[0], truth[1]);
  }
}

TEST(HashRunnerTest, CandidatesAndLogprobs) {
  Plans plans;
  auto params = Sampled(10);
  params->top_logprobs = 3;
  plans.Bind(0, kPrompt, params);
  plans.Add(0, SpanKind::kPrefill, Table(0), 0, kPrompt);
  plans.SampleLast({0}, 4);
  const SlotResult result = plans.RunOne();
  ASSERT_THAT(result.candidates, ElementsAre(SizeIs(4)));
  EXPECT_EQ(result.candidates[0][0], result.tokens[0]);
  ASSERT_THAT(result.logprobs, SizeIs(1));
  ASSERT_THAT(result.top_logprobs, ElementsAre(SizeIs(3)));
  EXPECT_LE(result.logprobs[0], result.top_logprobs[0][0].second);
  EXPECT_LT(result.logprobs[0], 0);
}

TEST(HashRunnerTest, ADrafterAgreesAsOftenAsAsked) {
  const HashModel target({.seed = 3});
  const HashModel draft({.seed = 3, .agreement = 0.7});
  const HashModel stranger({.seed = 4});
  int same = 0;
  int by_chance = 0;
  for (uint64_t prefix = 0; prefix < 2000; ++prefix) {
    const std::vector<TokenId> history = {1};
    const TokenId token = target.Sample(prefix, *Greedy(9), 0, history, 1).token;
    same += token == draft.Sample(prefix, *Greedy(9), 0, history, 1).token;
    by_chance += token == stranger.Sample(prefix, *Greedy(9), 0, history, 1).token;
  }
  EXPECT_NEAR(same / 2000.0, 0.7, 0.03);
  EXPECT_LT(by_chance, 200);
}

TEST(HashRunnerTest, WaitMovesTheClock) {
  ManualClock clock;
  HashRunnerOptions options;
  options.clock = &clock;
  options.step_time = std::chrono::microseconds(100);
  options.row_time = std::chrono::microseconds(1);
  Plans plans(options);
  Decode(&plans, Greedy(5), 3);
  EXPECT_EQ(clock.Now() - TimePoint{}, std::chrono::microseconds(4 * 100 + 6 + 2));
}

// --- Mistakes of the host ---

class HashRunnerMistakes : public testing::Test {
 protected:
  HashRunnerMistakes() : out_(Decode(&plans_, Greedy(20), 2)) {}

  void Decodes(std::vector<BlockId> table, int32_t context_len, TokenId token) {
    plans_.Add(1, SpanKind::kDecode, std::move(table), context_len, {token});
    plans_.SampleLast({1});
  }
  void ExpectFault(const std::string& what) {
    const absl::StatusOr<StepResult> result = plans_.Run();
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(what));
  }
  // Another sequence prefills the table from its start.
  void Overwrite(std::vector<BlockId> table, int32_t n) {
    plans_.Bind(2, std::vector<TokenId>(n, 9), Greedy(5));
    plans_.Add(2, SpanKind::kPrefill, std::move(table), 0, std::vector<TokenId>(n, 9));
  }

  Plans plans_;
  std::vector<TokenId> out_;  // two outputs; the second has no KV yet
};

TEST_F(HashRunnerMistakes, NoneMade) {
  Decodes(Table(0), 7, out_[1]);
  EXPECT_TRUE(plans_.Run().ok());
}

TEST_F(HashRunnerMistakes, WrongPosition) {
  Decodes(Table(0), 8, out_[1]);
  ExpectFault("starts at position 8");
}

TEST_F(HashRunnerMistakes, WrongToken) {
  Decodes(Table(0), 7, (out_[1] + 1) % 128);
  ExpectFault("at position 7");
}

TEST_F(HashRunnerMistakes, BlocksInTheWrongOrder) {
  Decodes({1, 0, 2}, 7, out_[1]);
  ExpectFault("sees at KV index 0");
}

TEST_F(HashRunnerMistakes, LostBlock) {
  Decodes({0, 30, 31}, 7, out_[1]);
  ExpectFault("sees at KV index 4");
}

TEST_F(HashRunnerMistakes, BlockFreedTooEarly) {
  Overwrite({1}, 3);
  ASSERT_TRUE(plans_.Run().ok());
  Decodes(Table(0), 7, out_[1]);
  ExpectFault("sees at KV index 4");
}

TEST_F(HashRunnerMistakes, RowThatWasNeverRun) {
  Decodes(Table(0), 7, out_[1]);
  const TokenId next = plans_.RunOne().tokens[0];
  // The host believes that a draft behind it was accepted and bound as such.
  std::vector<TokenId> tokens = kPrompt;
  tokens.insert(tokens.end(), {out_[0], out_[1], next, 4});
  plans_.Bind(1, tokens, Greedy(20));
  Decodes(Table(0), 9, 4);
  ExpectFault("sees at KV index 8 of 9");
}

TEST_F(HashRunnerMistakes, TreePathNotMoved) {
  // The table of another prefix, right tokens and positions: only what the rows saw differs.
  std::vector<TokenId> other = kPrompt;
  other[0] = 50;
  plans_.Bind(2, other, Greedy(5));
  plans_.Add(2, SpanKind::kPrefill, Table(40), 0, other);
  ASSERT_TRUE(plans_.Run().ok());
  Decodes({0, 41, 2}, 7, out_[1]);
  ExpectFault("sees at KV index 4");
}

TEST_F(HashRunnerMistakes, MissedCopyOnWrite) {
  plans_.Bind(2, kPrompt, Greedy(5));
  Decodes(Table(0), 7, out_[1]);
  plans_.Add(2, SpanKind::kPrefill, Table(0), 5, {10});
  plans_.SampleLast({2});
  ExpectFault("two sequences write block 1");
}

TEST_F(HashRunnerMistakes, WritesWhatOthersRead) {
  Decodes(Table(0), 7, out_[1]);
  Overwrite({0}, 2);
  ExpectFault("others read");
}

TEST_F(HashRunnerMistakes, CopiedTooLittle) {
  plans_.plan().copies = {{.src = 1, .dst = 30, .num_slots = 2}};
  Decodes({0, 30}, 7, out_[1]);
  ExpectFault("sees at KV index 6");
}

TEST_F(HashRunnerMistakes, BlockOfAPlanInFlightHandedOn) {
  Decodes(Table(0, 2), 7, out_[1]);
  ASSERT_TRUE(plans_.Launch().ok());
  Overwrite({1}, 2);
  ExpectFault("in flight names it");
}

TEST_F(HashRunnerMistakes, BaseAboveItsBound) {
  Decodes(Table(0), 6, 0);
  plans_.plan().spans[0].from_slot = true;
  ExpectFault("planned at most 6");
}

TEST_F(HashRunnerMistakes, SamplesTooEarly) {
  plans_.Bind(2, kPrompt, Greedy(5));
  plans_.Add(2, SpanKind::kPrefill, Table(40), 0, {5, 6});
  plans_.SampleLast({2});
  ExpectFault("samples behind position 1");
}

TEST_F(HashRunnerMistakes, UnboundSlot) {
  plans_.Add(3, SpanKind::kPrefill, Table(40), 0, {5, 6});
  ExpectFault("unbound slot 3");
}

TEST_F(HashRunnerMistakes, BlockTwiceInATable) {
  Decodes({0, 0, 1}, 7, out_[1]);
  ExpectFault("a block twice");
}

TEST_F(HashRunnerMistakes, StepLeftOut) {
  StepPlan plan;
  plan.step = 99;
  EXPECT_FALSE(plans_.runner().Launch(plan).ok());
}

TEST_F(HashRunnerMistakes, ThirdPlanInFlight) {
  EXPECT_TRUE(plans_.Launch().ok());
  EXPECT_TRUE(plans_.Launch().ok());
  EXPECT_FALSE(plans_.Launch().ok());
}

TEST_F(HashRunnerMistakes, InvalidPlan) {
  Decodes({64}, 7, out_[1]);
  ExpectFault("block id");
}

TEST(HashRunnerTest, WithoutStrictnessBrokenKvChangesTokens) {
  HashRunnerOptions options;
  options.strict = false;
  Plans plans(options);
  std::vector<TokenId> out = Decode(&plans, Greedy(20), 2);
  const std::vector<TokenId> truth = plans.model().Generate(kPrompt, *Greedy(20), 0);
  plans.Add(1, SpanKind::kDecode, {0, 30, 31}, 7, {out[1]});
  plans.SampleLast({1});
  EXPECT_NE(plans.RunOne().tokens[0], truth[2]);
  EXPECT_GT(plans.runner().num_faults(), 0);
  EXPECT_THAT(plans.runner().first_fault(), HasSubstr("KV index 4"));
}

}  // namespace
}  // namespace paceline

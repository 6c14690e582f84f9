// The scheduler's behaviours one by one, over the hash model, stepped by hand.
#include "worker/engine/scheduler.h"

#include <algorithm>
#include <map>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/types/session_id.h"
#include "tests/sim/generation_book.h"
#include "tests/sim/hash_runner.h"
#include "tests/sim/hash_speculator.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr int32_t kBlock = 4;
constexpr int32_t kVocab = 64;

struct Setup {
  int32_t num_blocks = 100;
  int32_t max_slots = 16;
  EngineOptions engine = {.max_batch_rows = 64, .prefill_chunk = 16, .prefix_cache = false};
  Speculator* speculator = nullptr;
};

// Never at the end of its text before max_tokens.
GenerationRequest Request(int32_t prompt_len, int32_t max_tokens, TokenId first = 1) {
  GenerationRequest r;
  for (int32_t i = 0; i < prompt_len; ++i) r.prompt.push_back((first + i * 5) % kVocab);
  r.sampling.seed = 11;
  r.sampling.max_tokens = max_tokens;
  r.sampling.ignore_eos = true;
  return r;
}

struct Preemptions final : public EngineProbe {
  void Preempted(PreemptReason reason, int32_t) override { reasons.push_back(reason); }
  std::vector<PreemptReason> reasons;
};

class Rig {
 public:
  explicit Rig(Setup setup = {})
      : setup_(setup),
        runner_(RunnerOptions(setup)),
        scheduler_(setup.engine, runner_.info(), setup.speculator, &probe_),
        book_(runner_.model().options()) {}

  RequestHandle Submit(GenerationRequest request) {
    const absl::Status valid = ValidateRequest(request, runner_.info());
    EXPECT_TRUE(valid.ok()) << valid;
    const RequestHandle handle = next_++;
    book_.Submitted(handle, request);
    if (request.deadline != kNoDeadline) {
      book_.MayEnd(handle, absl::StatusCode::kDeadlineExceeded);
    }
    scheduler_.Submit(handle, std::move(request), clock_.Now());
    Digest();
    return handle;
  }
  void Cancel(RequestHandle handle) {
    book_.MayEnd(handle, absl::StatusCode::kCancelled);
    scheduler_.Cancel(handle, absl::StatusCode::kCancelled);
  }

  // Schedules and launches; false when there is nothing to do.
  bool Launch() {
    plan_ = scheduler_.Schedule(clock_.Now());
    Digest();
    if (plan_.empty()) return false;
    const absl::Status launched = runner_.Launch(plan_);
    EXPECT_TRUE(launched.ok()) << launched.message();
    scheduler_.Launched(clock_.Now());
    return true;
  }
  void Commit() {
    const absl::StatusOr<StepResult> result = runner_.Wait();
    ASSERT_TRUE(result.ok()) << result.status().message();
    clock_.Advance(milliseconds(1));
    scheduler_.Commit(*result, clock_.Now());
    Digest();
  }
  bool Turn() {
    if (!Launch()) return false;
    Commit();
    return true;
  }
  void Finish() {
    for (int turn = 0; Turn() && turn < 10'000; ++turn) continue;
    EXPECT_TRUE(scheduler_.idle());
    EXPECT_EQ(blocks().occupancy().active_blocks, 0);
    EXPECT_EQ(book_.num_open(), 0u);
  }

  // Of the newest plan.
  const StepPlan& plan() const { return plan_; }
  int32_t Spans(SpanKind kind) const {
    return static_cast<int32_t>(std::ranges::count(plan_.spans, kind, &Span::kind));
  }
  int32_t Rows(SpanKind kind) const {
    int32_t rows = 0;
    for (const Span& s : plan_.spans) rows += s.kind == kind ? s.num_rows : 0;
    return rows;
  }

  Scheduler& scheduler() { return scheduler_; }
  BlockManager& blocks() { return scheduler_.blocks(); }
  int32_t active_blocks() { return blocks().occupancy().active_blocks; }
  ManualClock& clock() { return clock_; }
  const HashModel& model() const { return runner_.model(); }
  const RunnerInfo& info() const { return runner_.info(); }
  const std::vector<PreemptReason>& preemptions() const { return probe_.reasons; }
  EngineSnapshot Snapshot() const {
    EngineSnapshot s;
    scheduler_.FillSnapshot(&s);
    return s;
  }

  // What has been heard.
  std::vector<TokenId> Tokens(RequestHandle handle, int32_t sample = 0) {
    return tokens_[{handle, sample}];
  }
  FinishReason Finish(RequestHandle handle, int32_t sample = 0) {
    return finish_[{handle, sample}];
  }
  bool Done(RequestHandle handle) const { return done_.contains(handle); }
  const EngineOutput::Finished& Last(RequestHandle handle) { return done_.at(handle); }
  const std::vector<RequestHandle>& order() const { return order_; }  // of first tokens

 private:
  static HashRunnerOptions RunnerOptions(const Setup& setup) {
    HashRunnerOptions o;
    o.model.vocab_size = kVocab;
    o.block_size = kBlock;
    o.num_blocks = setup.num_blocks;
    o.max_slots = setup.max_slots;
    o.max_context = 400;
    return o;
  }

  void Digest() {
    scheduler_.CheckInvariants();
    const EngineOutput output = scheduler_.TakeOutput();
    book_.Take(output);
    ASSERT_EQ(book_.fault(), "");
    for (const auto& d : output.deltas) {
      std::vector<TokenId>& tokens = tokens_[{d.request, d.delta.sample}];
      tokens.insert(tokens.end(), d.delta.tokens.begin(), d.delta.tokens.end());
      finish_[{d.request, d.delta.sample}] = d.delta.finish;
      if (std::ranges::find(order_, d.request) == order_.end()) order_.push_back(d.request);
    }
    for (const auto& f : output.finished) done_[f.request] = f;
  }

  Setup setup_;
  ManualClock clock_;
  HashRunner runner_;
  Preemptions probe_;
  Scheduler scheduler_;
  GenerationBook book_;
  StepPlan plan_;
  RequestHandle next_ = 1;
  std::map<std::pair<RequestHandle, int32_t>, std::vector<TokenId>> tokens_;
  std::map<std::pair<RequestHandle, int32_t>, FinishReason> finish_;
  std::map<RequestHandle, EngineOutput::Finished> done_;
  std::vector<RequestHandle> order_;
};

// --- Admission, chunks and the row budget ---

TEST(SchedulerTest, AdmitsInTheOrderOfArrival) {
  Rig rig({.max_slots = 1});
  const auto a = rig.Submit(Request(5, 2));
  const auto b = rig.Submit(Request(3, 2));
  const auto c = rig.Submit(Request(4, 2));
  EXPECT_EQ(rig.scheduler().num_queued(), 3);
  rig.Finish();
  EXPECT_THAT(rig.order(), ElementsAre(a, b, c));
  EXPECT_EQ(rig.scheduler().num_queued(), 0);
}

TEST(SchedulerTest, AdmitsByPriorityThenArrival) {
  Rig rig({.max_slots = 1});
  std::vector<RequestHandle> handles;
  for (int32_t priority : {0, 5, -3, 5}) {
    GenerationRequest r = Request(4, 1);
    r.priority = priority;
    handles.push_back(rig.Submit(r));
  }
  rig.Finish();
  EXPECT_THAT(rig.order(), ElementsAre(handles[1], handles[3], handles[0], handles[2]));
}

TEST(SchedulerTest, AGreatRequestIsNotOvertakenForEver) {
  Rig rig({.num_blocks = 12});
  for (int i = 0; i < 3; ++i) rig.Submit(Request(8, 8));
  ASSERT_TRUE(rig.Turn());
  const auto great = rig.Submit(Request(44, 2));  // the whole pool
  const auto small = rig.Submit(Request(2, 2));
  rig.Finish();
  EXPECT_LT(std::ranges::find(rig.order(), great), std::ranges::find(rig.order(), small));
}

TEST(SchedulerTest, PromptsAreComputedInChunks) {
  Rig rig;
  const auto a = rig.Submit(Request(40, 2));
  for (int32_t rows : {16, 16, 8}) {
    ASSERT_TRUE(rig.Turn());
    EXPECT_EQ(rig.Rows(SpanKind::kPrefill), rows);
  }
  EXPECT_THAT(rig.Tokens(a), SizeIs(1));
  rig.Finish();
}

TEST(SchedulerTest, ChunksOfSeveralPromptsShareAStep) {
  Rig rig;
  for (int i = 0; i < 6; ++i) rig.Submit(Request(30, 2));
  ASSERT_TRUE(rig.Turn());
  EXPECT_EQ(rig.Spans(SpanKind::kPrefill), 4);
  EXPECT_EQ(rig.plan().rows.size(), 64u);
  rig.Finish();
}

TEST(SchedulerTest, DecodesRunBesideAPromptOfManyChunks) {
  Rig rig;
  const auto a = rig.Submit(Request(3, 30));
  ASSERT_TRUE(rig.Turn());
  rig.Submit(Request(100, 1));
  for (size_t turn = 2; rig.Spans(SpanKind::kPrefill) > 0; ++turn) {
    ASSERT_TRUE(rig.Turn());
    EXPECT_EQ(rig.Tokens(a).size(), turn) << "a prompt held up a decode";
  }
  rig.Finish();
}

TEST(SchedulerTest, NoPlanIsOverTheRowBudget) {
  HashSpeculator speculator({.target = {.vocab_size = kVocab}, .max_drafts = 8});
  for (int32_t budget : {1, 2, 3, 8, 13}) {
    Rig rig({.engine = {.max_batch_rows = budget, .prefill_chunk = 7}, .speculator = &speculator});
    for (int i = 0; i < 12; ++i) rig.Submit(Request(1 + 7 * (i % 4), 10, i));
    while (rig.Turn()) EXPECT_LE(static_cast<int32_t>(rig.plan().rows.size()), budget);
    rig.Finish();
  }
}

TEST(SchedulerTest, DecodesLeaveAShareOfTheBudgetToPrompts) {
  Rig rig({.engine = {.max_batch_rows = 8, .prefill_chunk = 8, .prefix_cache = false}});
  for (int i = 0; i < 8; ++i) rig.Submit(Request(1, 60, i));
  while (rig.Spans(SpanKind::kDecode) < 6) ASSERT_TRUE(rig.Turn());
  const auto late = rig.Submit(Request(10, 2));
  for (int turn = 0; turn < 12; ++turn) ASSERT_TRUE(rig.Turn());
  EXPECT_THAT(rig.Tokens(late), testing::Not(IsEmpty())) << "decodes starve prompts";
  rig.Finish();
}

TEST(SchedulerTest, DecodesOverTheBudgetTakeTurns) {
  Rig rig({.engine = {.max_batch_rows = 4, .prefill_chunk = 4, .prefix_cache = false}});
  std::vector<RequestHandle> handles;
  for (int i = 0; i < 10; ++i) handles.push_back(rig.Submit(Request(1, 30, i)));
  while (rig.scheduler().num_queued() > 0) ASSERT_TRUE(rig.Turn());
  for (int turn = 0; turn < 20; ++turn) ASSERT_TRUE(rig.Turn());
  const auto behind = [&](RequestHandle a, RequestHandle b) {
    return rig.Tokens(a).size() < rig.Tokens(b).size();
  };
  const auto [least, most] = std::ranges::minmax_element(handles, behind);
  EXPECT_GT(rig.Tokens(*least).size(), 6u);
  EXPECT_LT(rig.Tokens(*most).size() - rig.Tokens(*least).size(), 12u);
  rig.Finish();
}

TEST(SchedulerTest, SpansShrinkBeforeAnybodyIsPreempted) {
  HashSpeculator speculator({.target = {.vocab_size = kVocab}, .agreement = 1, .max_drafts = 8});
  Rig rig({.num_blocks = 10, .speculator = &speculator});
  rig.Submit(Request(15, 4));
  rig.Submit(Request(15, 4));
  rig.Finish();  // 5 blocks each: room for every token, not for every draft
  EXPECT_GT(speculator.drafted(), 0);
  EXPECT_THAT(rig.preemptions(), IsEmpty());
}

// --- Preemption ---

TEST(SchedulerTest, PreemptsTheLastInRankAndRecomputesIt) {
  Rig rig({.num_blocks = 12});
  const auto a = rig.Submit(Request(8, 30));
  const auto b = rig.Submit(Request(8, 30));
  rig.Finish();
  EXPECT_THAT(rig.preemptions(), testing::Contains(PreemptReason::kKvPressure));
  EXPECT_EQ(rig.Last(a).usage.output_tokens, 30);
  EXPECT_EQ(rig.Last(b).usage.output_tokens, 30);
  EXPECT_LT(rig.Last(a).usage.total_time, rig.Last(b).usage.total_time);
}

// Decodes that wait for blocks of others must not keep the rows of those others.
TEST(SchedulerTest, DecodesWithoutKvHandTheirRowsOn) {
  size_t preemptions = 0;
  for (int32_t rows : {1, 2, 3, 5}) {
    Rig rig({.num_blocks = 14,
             .engine = {.max_batch_rows = rows, .prefill_chunk = 3, .prefix_cache = false}});
    for (int i = 0; i < 6; ++i) rig.Submit(Request(4 + i, 40, i));
    rig.Finish();
    preemptions += rig.preemptions().size();
  }
  EXPECT_GT(preemptions, 0u);
}

TEST(SchedulerTest, AGreaterPriorityTakesTheBlocksOfALesser) {
  Rig rig({.num_blocks = 12});
  const auto low = rig.Submit(Request(20, 20));
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(rig.Turn());
  GenerationRequest urgent = Request(30, 5);
  urgent.priority = 1;
  const auto high = rig.Submit(urgent);
  ASSERT_TRUE(rig.Turn());
  EXPECT_THAT(rig.preemptions(), ElementsAre(PreemptReason::kPriority));
  EXPECT_FALSE(rig.Done(low));
  while (!rig.Done(high)) ASSERT_TRUE(rig.Turn());
  EXPECT_FALSE(rig.Done(low));
  rig.Finish();
  EXPECT_EQ(rig.Last(low).usage.output_tokens, 20);
}

TEST(SchedulerTest, AGreaterPriorityTakesTheSlotOfALesser) {
  Rig rig({.max_slots = 1});
  const auto low = rig.Submit(Request(4, 20));
  ASSERT_TRUE(rig.Turn());
  GenerationRequest urgent = Request(4, 3);
  urgent.priority = 1;
  const auto high = rig.Submit(urgent);
  while (!rig.Done(high)) ASSERT_TRUE(rig.Turn());
  EXPECT_FALSE(rig.Done(low));
  rig.Finish();
}

TEST(SchedulerTest, AnEqualPriorityWaits) {
  Rig rig({.max_slots = 1});
  rig.Submit(Request(4, 10));
  ASSERT_TRUE(rig.Turn());
  rig.Submit(Request(4, 3));
  rig.Finish();
  EXPECT_THAT(rig.preemptions(), IsEmpty());
}

// --- Cancellation and deadlines ---

TEST(SchedulerTest, ACancelFreesKvInTheNextSchedule) {
  Rig rig;
  const auto a = rig.Submit(Request(20, 20));
  const auto prefilling = rig.Submit(Request(60, 20));
  ASSERT_TRUE(rig.Turn());
  ASSERT_TRUE(rig.Turn());
  ASSERT_GT(rig.active_blocks(), 0);
  rig.Cancel(a);
  rig.Cancel(prefilling);
  EXPECT_FALSE(rig.Launch());
  EXPECT_EQ(rig.active_blocks(), 0);
  EXPECT_EQ(rig.Last(a).status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(rig.Last(a).usage.output_tokens, 1);
  EXPECT_EQ(rig.Last(prefilling).usage.output_tokens, 0);
  rig.Finish();
}

TEST(SchedulerTest, ACancelReachesThoseThatWait) {
  Rig rig({.max_slots = 1});
  rig.Submit(Request(4, 10));
  ASSERT_TRUE(rig.Turn());
  const auto waiting = rig.Submit(Request(4, 10));
  rig.Cancel(waiting);
  ASSERT_TRUE(rig.Turn());
  EXPECT_TRUE(rig.Done(waiting));
  EXPECT_EQ(rig.scheduler().num_queued(), 0);
  rig.Finish();
}

TEST(SchedulerTest, ACancelReachesFollowersBeforeTheirPromptIsDone) {
  Rig rig;
  GenerationRequest r = Request(40, 10);
  r.num_samples = 4;
  const auto a = rig.Submit(r);
  ASSERT_TRUE(rig.Turn());
  rig.Cancel(a);
  EXPECT_FALSE(rig.Launch());
  EXPECT_EQ(rig.active_blocks(), 0);
  rig.Finish();
}

TEST(SchedulerTest, BlocksOfACancelledRequestStayUntilItsStepIsRead) {
  Rig rig({.engine = {.max_batch_rows = 64,
                      .prefill_chunk = 16,
                      .launch_ahead = true,
                      .prefix_cache = false}});
  const auto a = rig.Submit(Request(12, 20));
  const auto b = rig.Submit(Request(12, 20));
  ASSERT_TRUE(rig.Launch());
  rig.Cancel(a);
  ASSERT_TRUE(rig.Launch());
  EXPECT_TRUE(rig.Done(a));
  EXPECT_THAT(rig.plan().spans, SizeIs(1));
  const int32_t held = rig.active_blocks();
  rig.Commit();
  EXPECT_LE(rig.active_blocks(), held - 3);
  rig.Commit();
  rig.Finish();
  EXPECT_THAT(rig.Tokens(a), IsEmpty());
  EXPECT_THAT(rig.Tokens(b), SizeIs(20));
}

TEST(SchedulerTest, ACancelIsNotForTheNextBearerOfAHandle) {
  Rig rig;
  rig.scheduler().Cancel(1, absl::StatusCode::kCancelled);  // nobody yet
  const auto a = rig.Submit(Request(4, 3));
  ASSERT_EQ(a, 1u);
  rig.Finish();
  EXPECT_TRUE(rig.Last(a).status.ok());
}

TEST(SchedulerTest, DeadlinesEndThoseThatRunAndThoseThatWait) {
  Rig rig({.max_slots = 1});
  GenerationRequest r = Request(4, 50);
  r.deadline = rig.clock().Now() + milliseconds(10);
  const auto runs = rig.Submit(r);
  const auto waits = rig.Submit(r);
  r.deadline += milliseconds(1000);
  const auto later = rig.Submit(r);
  while (!rig.Done(runs)) ASSERT_TRUE(rig.Turn());
  EXPECT_TRUE(rig.Done(waits));
  EXPECT_FALSE(rig.Done(later));
  EXPECT_EQ(rig.clock().Now(), TimePoint{} + milliseconds(10 + 1));  // seen before the next plan
  EXPECT_EQ(rig.Last(runs).status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(rig.Last(runs).usage.output_tokens, 10);
  EXPECT_EQ(rig.Last(waits).usage.output_tokens, 0);
  rig.Finish();
  EXPECT_TRUE(rig.Last(later).status.ok());
}

// --- Parallel samples ---

TEST(SchedulerTest, SamplesShareThePromptsBlocks) {
  Rig rig;
  GenerationRequest r = Request(10, 8);  // two whole blocks and a half
  r.num_samples = 4;
  r.sampling.temperature = 1.2f;
  const auto a = rig.Submit(r);
  ASSERT_TRUE(rig.Turn());
  EXPECT_EQ(rig.Rows(SpanKind::kPrefill), 10);  // computed once
  EXPECT_EQ(rig.plan().sample_rows.size(), 4u);
  EXPECT_EQ(rig.active_blocks(), 3);
  for (int32_t s = 0; s < 4; ++s) EXPECT_THAT(rig.Tokens(a, s), SizeIs(1));
  ASSERT_TRUE(rig.Turn());
  EXPECT_EQ(rig.plan().copies.size(), 3u);  // the last to write keeps the original
  for (const KvCopy& copy : rig.plan().copies) EXPECT_EQ(copy.num_slots, 2);
  EXPECT_EQ(rig.active_blocks(), 2 + 4);
  rig.Finish();
  std::set<std::vector<TokenId>> outputs;
  for (int32_t s = 0; s < 4; ++s) outputs.insert(rig.Tokens(a, s));
  EXPECT_GT(outputs.size(), 1u);
  EXPECT_EQ(rig.Last(a).usage.output_tokens, 32);
  EXPECT_EQ(rig.Last(a).usage.prompt_tokens, 10);
}

TEST(SchedulerTest, NothingIsCopiedWhereThePromptFillsItsBlocks) {
  Rig rig;
  GenerationRequest r = Request(8, 4);
  r.num_samples = 3;
  rig.Submit(r);
  while (rig.Turn()) EXPECT_THAT(rig.plan().copies, IsEmpty());
  rig.Finish();
}

TEST(SchedulerTest, SamplesEndIndependently) {
  GenerationRequest r = Request(6, 60);
  r.num_samples = 5;
  r.sampling.ignore_eos = false;
  r.sampling.temperature = 2;
  r.sampling.stop_token_ids = {3, 9, 27, 31};
  Rig rig;
  const auto a = rig.Submit(r);
  rig.Finish();
  std::set<size_t> lengths;
  for (int32_t s = 0; s < 5; ++s) lengths.insert(rig.Tokens(a, s).size());
  EXPECT_GT(lengths.size(), 1u);
}

TEST(SchedulerTest, FollowersQueueWhereSlotsAreShort) {
  for (bool cache : {false, true}) {
    Rig rig({.max_slots = 2,
             .engine = {.max_batch_rows = 64, .prefill_chunk = 16, .prefix_cache = cache}});
    GenerationRequest r = Request(20, 6);
    r.num_samples = 5;
    const auto a = rig.Submit(r);
    rig.Finish();
    for (int32_t s = 0; s < 5; ++s) EXPECT_THAT(rig.Tokens(a, s), SizeIs(6));
  }
}

TEST(SchedulerTest, SamplesForkFromAPromptOfSeveralChunksAhead) {
  Rig rig(
      {.engine = {
           .max_batch_rows = 64, .prefill_chunk = 4, .launch_ahead = true, .prefix_cache = false}});
  GenerationRequest r = Request(13, 6);
  r.num_samples = 3;
  const auto a = rig.Submit(r);
  while (rig.Launch() || rig.scheduler().num_in_flight() > 0) {
    if (rig.scheduler().num_in_flight() == 2 || rig.plan().empty()) rig.Commit();
  }
  EXPECT_TRUE(rig.Done(a));
}

// --- Ends ---

TEST(SchedulerTest, StopIdsEosAndLimitsEndASample) {
  GenerationRequest plain = Request(6, 40);
  plain.sampling.temperature = 0;
  Rig probe;
  const auto free_run = probe.Submit(plain);
  probe.Finish();
  const std::vector<TokenId> tokens = probe.Tokens(free_run);
  const TokenId fifth = tokens[4];
  const auto first = static_cast<size_t>(std::ranges::find(tokens, fifth) - tokens.begin());
  EXPECT_EQ(probe.Finish(free_run), FinishReason::kLength);

  GenerationRequest stopped = plain;
  stopped.sampling.stop_token_ids = {fifth};
  GenerationRequest held = stopped;
  held.sampling.min_tokens = static_cast<int32_t>(first) + 2;
  Rig rig;
  const auto a = rig.Submit(stopped);
  const auto b = rig.Submit(held);
  rig.Finish();
  EXPECT_EQ(rig.Finish(a), FinishReason::kStop);
  ASSERT_THAT(rig.Tokens(a), SizeIs(first + 1));
  EXPECT_EQ(rig.Tokens(a).back(), fifth);
  const std::vector<TokenId> later = rig.Tokens(b);
  ASSERT_GE(later.size(), first + 2);
  EXPECT_EQ(std::count(later.begin(), later.begin() + static_cast<int64_t>(first) + 2, fifth), 0);
}

TEST(SchedulerTest, EosEndsUnlessIgnored) {
  GenerationRequest r = Request(6, 200);
  r.sampling.ignore_eos = false;
  r.sampling.logit_bias = {{0, 3.0f}};
  GenerationRequest ignoring = r;
  ignoring.sampling.ignore_eos = true;
  Rig rig;
  const auto a = rig.Submit(r);
  const auto b = rig.Submit(ignoring);
  rig.Finish();
  EXPECT_EQ(rig.Finish(a), FinishReason::kStop);
  EXPECT_EQ(rig.Tokens(a).back(), 0);
  EXPECT_LT(rig.Tokens(a).size(), 200u);
  EXPECT_EQ(rig.Finish(b), FinishReason::kLength);
  EXPECT_THAT(rig.Tokens(b), SizeIs(200));
}

TEST(SchedulerTest, OneTokenNeedsNoDecode) {
  Rig rig;
  const auto a = rig.Submit(Request(5, 1));
  ASSERT_TRUE(rig.Turn());
  EXPECT_TRUE(rig.Done(a));
  EXPECT_FALSE(rig.Launch());
}

// --- Resumed from elsewhere ---

TEST(SchedulerTest, AResumedSampleContinuesWhereItWas) {
  GenerationRequest r = Request(10, 20);
  r.sampling.frequency_penalty = 1;
  r.num_samples = 3;
  Rig rig;
  const auto truth = [&](int32_t s) { return rig.model().Generate(r.prompt, r.sampling, s); };
  r.resumed.resize(3);
  r.resumed[0].emitted = truth(0);  // ended, though the caller did not know
  r.resumed[1].emitted = {truth(1)[0], truth(1)[1], truth(1)[2]};
  const auto a = rig.Submit(r);
  EXPECT_EQ(rig.Finish(a, 0), FinishReason::kLength);
  EXPECT_THAT(rig.Tokens(a, 0), IsEmpty());
  rig.Finish();
  EXPECT_THAT(rig.Tokens(a, 1), SizeIs(17));
  EXPECT_THAT(rig.Tokens(a, 2), SizeIs(20));
  EXPECT_EQ(rig.Last(a).usage.output_tokens, 60);
  EXPECT_EQ(rig.Last(a).usage.prompt_tokens, 10);
}

TEST(SchedulerTest, AResumedRequestThatHadEndedEndsAtOnce) {
  GenerationRequest r = Request(10, 2);
  Rig rig;
  r.resumed = {
      {.emitted = rig.model().Generate(r.prompt, r.sampling, 0), .finish = FinishReason::kLength}};
  const auto a = rig.Submit(r);
  EXPECT_TRUE(rig.Done(a));
  EXPECT_TRUE(rig.Last(a).status.ok());
  EXPECT_TRUE(rig.scheduler().idle());
  EXPECT_EQ(rig.scheduler().num_queued(), 0);
}

// --- Prefix cache, sessions, usage ---

TEST(SchedulerTest, CachedPrefixesAreCountedAndNotComputed) {
  Rig rig({.engine = {.max_batch_rows = 64, .prefill_chunk = 64, .prefix_cache = true}});
  const auto a = rig.Submit(Request(21, 2));
  rig.Finish();
  const auto b = rig.Submit(Request(21, 2));
  ASSERT_TRUE(rig.Turn());
  EXPECT_EQ(rig.Rows(SpanKind::kPrefill), 1);
  GenerationRequest salted = Request(21, 2);
  salted.cache_salt = "other";
  const auto c = rig.Submit(salted);
  rig.Finish();
  EXPECT_EQ(rig.Last(a).usage.cached_tokens, 0);
  EXPECT_EQ(rig.Last(b).usage.cached_tokens, 20);
  EXPECT_EQ(rig.Last(c).usage.cached_tokens, 0);
}

TEST(SchedulerTest, SessionsTagWhatTheyLeaveBehind) {
  Rig rig({.engine = {.max_batch_rows = 64,
                      .prefill_chunk = 64,
                      .prefix_cache = true,
                      .session_ttl = milliseconds(500)}});
  GenerationRequest r = Request(21, 4);
  r.session_id = "s";
  rig.Submit(r);
  rig.Finish();
  EXPECT_TRUE(rig.scheduler().TakeSessionsChanged());
  auto sessions = rig.blocks().ListTags(rig.clock().Now());
  ASSERT_THAT(sessions, SizeIs(1));
  EXPECT_EQ(sessions[0].session_id, "s");
  EXPECT_EQ(sessions[0].blocks, 6);  // 21 + 3 tokens with KV
  rig.scheduler().DropSession("s");
  EXPECT_TRUE(rig.scheduler().TakeSessionsChanged());
  EXPECT_THAT(rig.blocks().ListTags(rig.clock().Now()), IsEmpty());
  rig.Submit(r);
  rig.Finish();
  rig.clock().Advance(milliseconds(501));
  rig.Turn();
  EXPECT_THAT(rig.blocks().ListTags(rig.clock().Now()), IsEmpty());
}

TEST(SchedulerTest, ASessionsIdCarriesItsTime) {
  Rig rig({.engine = {.prefix_cache = true, .session_ttl = milliseconds(500)}});
  GenerationRequest r = Request(21, 4);
  r.session_id = MakeSessionId("a", std::chrono::seconds(2));
  rig.Submit(r);
  rig.Finish();
  rig.clock().Advance(milliseconds(1900));
  rig.Turn();
  EXPECT_THAT(rig.blocks().ListTags(rig.clock().Now()), SizeIs(1));
  rig.clock().Advance(milliseconds(101));
  rig.Turn();
  EXPECT_THAT(rig.blocks().ListTags(rig.clock().Now()), IsEmpty());
}

TEST(SchedulerTest, UsageTellsTimesAndDrafts) {
  HashSpeculator speculator({.target = {.vocab_size = kVocab}, .agreement = 0.8, .max_drafts = 4});
  Rig rig({.max_slots = 1, .speculator = &speculator});
  const auto a = rig.Submit(Request(20, 12));
  GenerationRequest plain = Request(20, 12);
  plain.decoding = DecodingMode::kPlain;
  const auto b = rig.Submit(plain);
  rig.Finish();
  const GenerationUsage& first = rig.Last(a).usage;
  EXPECT_EQ(first.queue_time, Duration::zero());
  EXPECT_EQ(first.first_token_time, milliseconds(2));  // two chunks
  EXPECT_EQ(first.drafted_tokens, speculator.drafted());
  EXPECT_EQ(first.accepted_tokens, speculator.accepted());
  EXPECT_GT(first.accepted_tokens, 0);
  const GenerationUsage& second = rig.Last(b).usage;
  EXPECT_EQ(second.queue_time, first.total_time);
  EXPECT_EQ(second.first_token_time, second.queue_time + milliseconds(2));
  EXPECT_EQ(second.total_time, second.queue_time + milliseconds(13));
  EXPECT_EQ(second.drafted_tokens, 0);
}

TEST(SchedulerTest, TheSnapshotCountsWhatRunsAndWaits) {
  Rig rig({.max_slots = 2});
  GenerationRequest r = Request(6, 10);
  r.num_samples = 3;
  rig.Submit(r);
  rig.Submit(Request(7, 10));
  EngineSnapshot s = rig.Snapshot();
  EXPECT_EQ(s.running, 0);
  EXPECT_EQ(s.waiting, 2);
  EXPECT_EQ(s.queued_prompt_tokens, 13);
  ASSERT_TRUE(rig.Turn());
  s = rig.Snapshot();
  EXPECT_EQ(s.running, 2);
  EXPECT_EQ(s.waiting, 1);  // a sample of the first waits, its request does not
  EXPECT_EQ(s.live_slots, 6);
  EXPECT_EQ(s.kv.active_blocks, 2);
  EXPECT_DOUBLE_EQ(s.fragmentation, 0.25);
  rig.Finish();
}

// --- Steps launched ahead ---

TEST(SchedulerTest, AStepIsLaunchedBeforeTheLastIsRead) {
  Rig rig({.engine = {.max_batch_rows = 64,
                      .prefill_chunk = 16,
                      .launch_ahead = true,
                      .prefix_cache = false}});
  const auto a = rig.Submit(Request(5, 3));
  ASSERT_TRUE(rig.Launch());
  ASSERT_TRUE(rig.Launch());
  EXPECT_TRUE(rig.plan().spans[0].from_slot);
  rig.Commit();
  ASSERT_TRUE(rig.Launch());
  rig.Commit();
  EXPECT_FALSE(rig.Launch()) << "the step in flight surely ends it";
  rig.Commit();
  EXPECT_TRUE(rig.Done(a));
  rig.Finish();
}

TEST(SchedulerTest, AStepBehindAnEndRunsNoRow) {
  Rig rig({.engine = {.max_batch_rows = 64,
                      .prefill_chunk = 16,
                      .launch_ahead = true,
                      .prefix_cache = false}});
  GenerationRequest r = Request(6, 40);
  const std::vector<TokenId> truth = rig.model().Generate(r.prompt, r.sampling, 0);
  r.sampling.stop_token_ids = {truth[0]};
  const auto a = rig.Submit(r);
  ASSERT_TRUE(rig.Launch());
  ASSERT_TRUE(rig.Launch());
  rig.Commit();
  EXPECT_TRUE(rig.Done(a));
  EXPECT_GT(rig.active_blocks(), 0);  // the step in flight names them
  EXPECT_FALSE(rig.Launch());
  rig.Commit();
  EXPECT_EQ(rig.active_blocks(), 0);
  EXPECT_THAT(rig.Tokens(a), ElementsAre(truth[0]));
}

// --- What Submit refuses ---

TEST(ValidateRequestTest, RefusesWhatCanNeverRun) {
  Rig rig({.num_blocks = 10});
  const auto code = [&](auto change) {
    GenerationRequest r = Request(5, 5);
    change(r);
    return ValidateRequest(r, rig.info()).code();
  };
  using Code = absl::StatusCode;
  EXPECT_EQ(code([](auto&) {}), Code::kOk);
  EXPECT_EQ(code([](auto& r) { r.prompt.clear(); }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.prompt[2] = kVocab; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.prompt[2] = -1; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.num_samples = 0; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.num_samples = kMaxSamples + 1; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.sampling.max_tokens = 0; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.sampling.temperature = -1; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.sampling.max_tokens = 396; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.sampling.max_tokens = 1 << 30; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.sampling.max_tokens = 36; }), Code::kOk);  // 40 slots, 41 tokens
  EXPECT_EQ(code([](auto& r) { r.sampling.max_tokens = 37; }), Code::kFailedPrecondition);
  EXPECT_EQ(code([](auto& r) { r.resumed.resize(2); }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) { r.resumed = {{.emitted = {kVocab}}}; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& r) {
              r.resumed = {{.emitted = {1, 1, 1, 1, 1, 1}}};
            }),
            Code::kInvalidArgument);
}

}  // namespace
}  // namespace paceline

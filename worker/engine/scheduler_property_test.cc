// Random operations on the scheduler over the hash model: submissions, cancels, dropped sessions,
// schedules and commits out of phase, drafts from a speculator that proposes anything. The
// invariants hold after every operation, the outputs are the model's own, no block is lost. Replay
// one run with PACELINE_TEST_SEED=n; PACELINE_TEST_OPS=n makes the test longer.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <random>

#include <gtest/gtest.h>

#include "tests/sim/generation_book.h"
#include "tests/sim/hash_runner.h"
#include "tests/sim/hostile_speculator.h"
#include "worker/engine/scheduler.h"

namespace paceline {
namespace {

struct Counts final : public EngineProbe {
  void Preempted(PreemptReason reason, int32_t) override { ++preempted[static_cast<int>(reason)]; }
  int64_t preempted[2] = {};
  int64_t accepted = 0;
  int64_t two_in_flight = 0;
  int64_t resumed = 0;
  int64_t expired = 0;
};

class SchedulerModel {
 public:
  SchedulerModel(uint64_t seed, Counts* counts)
      : random_(seed),
        counts_(counts),
        runner_(RunnerOptions()),
        speculator_(runner_.model().options(), seed),
        book_(runner_.model().options()),
        requests_(runner_.model().options(), RequestOptions(), seed),
        scheduler_(Options(), runner_.info(), &speculator_, counts) {}

  void RandomOperation() {
    switch (Below(10)) {
      case 0:
        Submit();
        break;
      case 1:
        if (Below(6) == 0) Cancel();
        break;
      case 2:
        if (Below(6) == 0) scheduler_.DropSession(requests_.AnySession());
        break;
      case 3:
        clock_.Advance(std::chrono::microseconds(Below(3000)));
        break;
      case 4:
      case 5:
      case 6:
        ScheduleOne();
        break;
      default:
        CommitOne();
    }
    Check();
  }

  // Everything ends, with no more help than turns.
  void Finish() {
    for (int turn = 0; !scheduler_.idle(); ++turn) {
      ScheduleOne();
      CommitOne();
      Check();
      ASSERT_LT(turn, 20'000) << "no end";
      if (testing::Test::HasFailure()) return;
    }
    scheduler_.Schedule(clock_.Now());
    Check();
    EXPECT_EQ(book_.num_open(), 0u);
    EXPECT_EQ(scheduler_.blocks().num_available(), runner_.info().num_blocks);
    EXPECT_EQ(scheduler_.blocks().live_slots(), 0);
    EXPECT_EQ(speculator_.num_sessions(), 0u);
    counts_->accepted += speculator_.accepted();
  }

 private:
  int32_t Below(int32_t n) { return static_cast<int32_t>(random_() % static_cast<uint64_t>(n)); }
  int32_t OneOf(std::initializer_list<int32_t> values) {
    return values.begin()[Below(static_cast<int32_t>(values.size()))];
  }

  HashRunnerOptions RunnerOptions() {
    HashRunnerOptions o;
    o.model.seed = random_();
    o.model.vocab_size = OneOf({3, 32, 64});
    o.block_size = OneOf({1, 2, 4, 16, 32});
    o.num_blocks = (80 + o.block_size - 1) / o.block_size * OneOf({1, 1, 2, 3, 8});
    o.max_slots = OneOf({1, 3, 8, 20});
    o.max_context = 80;
    if (Below(2) == 0) o.execute_at = HashRunnerOptions::ExecuteAt::kWait;
    return o;
  }

  RandomRequestOptions RequestOptions() {
    return {.max_prompt = OneOf({3, 20, 50}),
            .max_tokens = OneOf({3, 30}),
            .max_samples = OneOf({1, 5}),
            .priorities = OneOf({1, 3})};
  }

  EngineOptions Options() {
    EngineOptions o;
    o.max_batch_rows = OneOf({1, 2, 4, 9, 30, 200});
    o.prefill_chunk = OneOf({1, 4, 40});
    o.max_drafts = OneOf({0, 2, 7});
    o.prefix_cache = Below(3) != 0;
    o.session_ttl = std::chrono::milliseconds(OneOf({2, 1000}));
    o.launch_ahead = launch_ahead_ = Below(3) != 0;
    return o;
  }

  void Submit() {
    if (book_.num_open() > 25) return;
    GenerationRequest request = requests_.Next();
    if (Below(12) == 0) request.deadline = clock_.Now() + std::chrono::milliseconds(Below(20));
    const absl::Status valid = ValidateRequest(request, runner_.info());
    ASSERT_TRUE(valid.ok()) << valid;
    counts_->resumed += !request.resumed.empty();
    const RequestHandle handle = next_handle_++;
    book_.Submitted(handle, request);
    if (request.deadline != kNoDeadline) {
      book_.MayEnd(handle, absl::StatusCode::kDeadlineExceeded);
      ++counts_->expired;
    }
    scheduler_.Submit(handle, std::move(request), clock_.Now());
  }

  void Cancel() {
    if (next_handle_ == 0) return;
    const RequestHandle handle = random_() % (next_handle_ + 1);  // sometimes unknown
    book_.MayEnd(handle, absl::StatusCode::kCancelled);
    scheduler_.Cancel(handle, absl::StatusCode::kCancelled);
  }

  void ScheduleOne() {
    if (scheduler_.num_in_flight() > (launch_ahead_ ? 1 : 0)) return;
    const StepPlan& plan = scheduler_.Schedule(clock_.Now());
    if (plan.empty()) return;
    EXPECT_LE(static_cast<int32_t>(plan.rows.size()), 200);
    const absl::Status launched = runner_.Launch(plan);
    ASSERT_TRUE(launched.ok()) << launched.message();
    scheduler_.Launched(clock_.Now());
    counts_->two_in_flight += scheduler_.num_in_flight() == 2;
  }

  void CommitOne() {
    if (scheduler_.num_in_flight() == 0) return;
    const absl::StatusOr<StepResult> result = runner_.Wait();
    ASSERT_TRUE(result.ok()) << result.status().message();
    clock_.Advance(std::chrono::microseconds(300));
    scheduler_.Commit(*result, clock_.Now());
  }

  void Check() {
    scheduler_.CheckInvariants();
    book_.Take(scheduler_.TakeOutput());
    ASSERT_EQ(book_.fault(), "");
    ASSERT_EQ(speculator_.fault(), "");
    EngineSnapshot snapshot;
    scheduler_.FillSnapshot(&snapshot);
    ASSERT_GE(snapshot.fragmentation, 0);
    ASSERT_LE(snapshot.fragmentation, 1);
    ASSERT_LE(snapshot.waiting, static_cast<int32_t>(book_.num_open()));
  }

  std::mt19937_64 random_;
  Counts* const counts_;
  bool launch_ahead_ = false;
  ManualClock clock_;
  HashRunner runner_;
  HostileSpeculator speculator_;
  GenerationBook book_;
  RandomRequests requests_;
  Scheduler scheduler_;
  RequestHandle next_handle_ = 0;
};

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoll(value);
}

volatile int64_t current_seed = 0;

// A CHECK in the scheduler ends the program: say which seed did it.
void PrintSeed(int) {
  std::fprintf(stderr, "replay with PACELINE_TEST_SEED=%lld\n",
               static_cast<long long>(current_seed));
}

TEST(SchedulerPropertyTest, HoldsItsInvariantsAndLosesNothing) {
  const int64_t fixed = FromEnvironment("PACELINE_TEST_SEED", -1);
  const bool thin = std::getenv("PACELINE_SANITIZED") != nullptr;
  const int64_t total = FromEnvironment("PACELINE_TEST_OPS", thin ? 15'000 : 100'000);
  constexpr int64_t kPerSeed = 400;
  std::signal(SIGABRT, PrintSeed);
  Counts counts;
  int64_t done = 0;
  for (int64_t seed = std::max<int64_t>(0, fixed); done < total; ++seed, done += kPerSeed) {
    current_seed = seed;
    SchedulerModel model(static_cast<uint64_t>(seed), &counts);
    for (int64_t i = 0; i < kPerSeed && !HasFailure(); ++i) model.RandomOperation();
    if (!HasFailure()) model.Finish();
    if (HasFailure()) FAIL() << "replay with PACELINE_TEST_SEED=" << seed;
    if (fixed >= 0) return;
  }
  EXPECT_GT(counts.preempted[0], 0);
  EXPECT_GT(counts.preempted[1], 0);
  EXPECT_GT(counts.accepted, 0);
  EXPECT_GT(counts.two_in_flight, 0);
  EXPECT_GT(counts.resumed, 0);
  EXPECT_GT(counts.expired, 0);
}

}  // namespace
}  // namespace paceline

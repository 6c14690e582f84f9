// KV internal fragmentation and admitted concurrency on a conversation trace at its real lengths:
// the worker's scheduler and block manager over the hash model, with drafts verified in every step,
// in virtual time. Every output token is compared with the model's own.
//
// Fragmentation is 1 - live slots / (active blocks x block size), taken while a step is in flight,
// when its drafts' slots are reserved, and weighted with the step's time. Live is what holds, or
// with this step comes to hold, the KV of a committed token; drafts are waste until they are
// accepted. Concurrency is the number of sequences that hold KV while requests are queued, against
// what the same pool admits when each request reserves --reserve slots.

#include <cstdio>
#include <fstream>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/flags.h"
#include "common/hash.h"
#include "tests/sim/hash_runner.h"
#include "tests/sim/hash_speculator.h"
#include "worker/engine/scheduler.h"

namespace paceline {
namespace {

constexpr int kNoTrace = 77;  // ctest's exit status for "skipped"

struct Settings {
  std::string trace = "../shared/data/traces/AzureLLMInferenceTrace_conv_2023.csv";
  int32_t requests = 0;
  int32_t block_size = 16;
  int32_t pool_requests = 64;
  int32_t reserve = 4096;
  int32_t drafts = 8;
  double agreement = 0.7;
  double hit_rate = 0.8;
  int32_t max_batch_rows = 8192;  // enough that the pool is what limits concurrency
  int32_t prefill_chunk = 256;
  bool check = false;
};

struct TraceRequest {
  int32_t prompt = 0;
  int32_t output = 0;
};

struct Figures {
  double fragmentation = 0;  // while a step is in flight
  double at_rest = 0;        // between commit and the next schedule
  double concurrency = 0;    // sequences holding KV
  double limit = 0;          // concurrency if every KV slot of the pool were live
  double acceptance = 0;     // share of the drafts
  int64_t steps = 0;
  int64_t preemptions = 0;
  int64_t wrong_tokens = 0;
};

std::vector<TraceRequest> ReadTrace(const Settings& settings) {
  std::ifstream file(settings.trace);
  std::vector<TraceRequest> requests;
  std::string line;
  std::getline(file, line);
  while (std::getline(file, line)) {
    TraceRequest r;
    const size_t comma = line.find(',');
    if (comma == std::string::npos ||
        std::sscanf(line.c_str() + comma, ",%d,%d", &r.prompt, &r.output) != 2) {
      continue;
    }
    if (r.prompt < 1 || r.output < 1) continue;
    requests.push_back(r);
    if (static_cast<int32_t>(requests.size()) == settings.requests) break;
  }
  return requests;
}

class CountingProbe final : public EngineProbe {
 public:
  void Preempted(PreemptReason, int32_t) override { ++preemptions; }
  int64_t preemptions = 0;
};

// One pass over the trace.
class Replay {
 public:
  Replay(const Settings& settings, bool launch_ahead, const std::vector<TraceRequest>& trace)
      : settings_(settings),
        trace_(trace),
        model_{.seed = 7, .vocab_size = 64},
        speculator_({.target = model_,
                     .agreement = settings.agreement,
                     .hit_rate = settings.hit_rate,
                     .max_drafts = settings.drafts}),
        runner_(RunnerOptions()),
        launch_ahead_(launch_ahead),
        scheduler_(EngineOptionsOf(), runner_.info(), &speculator_, &probe_) {}

  Figures Run() {
    while (true) {
      SubmitMore();
      const bool launched = LaunchNext();
      if (launched) Sample(/*in_flight=*/true);
      const bool wait = scheduler_.num_in_flight() > (launch_ahead_ && launched ? 1 : 0);
      if (wait) CommitOldest();
      if (!launched && !wait) break;
    }
    CHECK(scheduler_.idle() && next_ == trace_.size()) << "the replay is stuck";
    figures_.fragmentation /= busy_seconds_;
    figures_.at_rest /= busy_seconds_;
    figures_.concurrency /= queued_seconds_;
    figures_.limit = live_share_seconds_ / queued_seconds_;
    figures_.acceptance = static_cast<double>(speculator_.accepted()) /
                          static_cast<double>(std::max<int64_t>(1, speculator_.drafted()));
    figures_.preemptions = probe_.preemptions;
    return figures_;
  }

 private:
  HashRunnerOptions RunnerOptions() {
    HashRunnerOptions options;
    options.model = model_;
    options.block_size = settings_.block_size;
    options.num_blocks = settings_.pool_requests * (settings_.reserve / settings_.block_size);
    options.max_slots = 16 * settings_.pool_requests;
    options.max_context = 1 << 15;
    options.scan_all = false;
    options.clock = &clock_;
    options.step_time = std::chrono::milliseconds(10);
    options.row_time = std::chrono::microseconds(10);
    return options;
  }

  EngineOptions EngineOptionsOf() const {
    EngineOptions options;
    options.max_batch_rows = settings_.max_batch_rows;
    options.prefill_chunk = settings_.prefill_chunk;
    options.max_drafts = settings_.drafts;
    options.launch_ahead = launch_ahead_;
    return options;
  }

  void SubmitMore() {
    for (; next_ < trace_.size() && scheduler_.num_queued() < 32; ++next_) {
      GenerationRequest request;
      request.request_id = absl::StrCat(next_);
      for (int32_t i = 0; i < trace_[next_].prompt; ++i) {
        request.prompt.push_back(static_cast<TokenId>(HashCombine(next_, i) % 64));
      }
      request.sampling.temperature = 0;
      request.sampling.max_tokens = trace_[next_].output;
      request.sampling.ignore_eos = true;
      expected_.push_back(model().Generate(request.prompt, request.sampling, 0));
      received_.push_back(0);
      scheduler_.Submit(next_, std::move(request), clock_.Now());
    }
  }

  const HashModel& model() { return runner_.model(); }

  bool LaunchNext() {
    const StepPlan& plan = scheduler_.Schedule(clock_.Now());
    if (plan.empty()) return false;
    const absl::Status launched = runner_.Launch(plan);
    CHECK(launched.ok()) << launched;
    scheduler_.Launched(clock_.Now());
    return true;
  }

  void CommitOldest() {
    const TimePoint before = clock_.Now();
    const absl::StatusOr<StepResult> result = runner_.Wait();
    CHECK(result.ok()) << result.status();
    const double seconds = ToSeconds(clock_.Now() - before);
    busy_seconds_ += seconds;
    figures_.fragmentation += seconds * fragmentation_;
    if (next_ < trace_.size()) {
      queued_seconds_ += seconds;
      figures_.concurrency += seconds * running_;
      live_share_seconds_ += seconds * running_ / live_share_;
    }
    scheduler_.Commit(*result, clock_.Now());
    ++figures_.steps;
    Sample(/*in_flight=*/false);
    figures_.at_rest += seconds * fragmentation_at_rest_;
    for (const EngineOutput::Delta& d : scheduler_.TakeOutput().deltas) Receive(d);
  }

  void Sample(bool in_flight) {
    const BlockManager& blocks = scheduler_.blocks();
    const double slots =
        static_cast<double>(blocks.occupancy().active_blocks) * settings_.block_size;
    const double live = static_cast<double>(blocks.live_slots());
    const double fragmentation = slots == 0 ? 0 : 1 - live / slots;
    if (!in_flight) {
      fragmentation_at_rest_ = fragmentation;
      return;
    }
    fragmentation_ = fragmentation;
    scheduler_.FillSnapshot(&snapshot_);
    running_ = snapshot_.running;
    live_share_ =
        std::max(1.0, live) / (static_cast<double>(settings_.pool_requests) * settings_.reserve);
  }

  void Receive(const EngineOutput::Delta& d) {
    const std::vector<TokenId>& truth = expected_[d.request];
    for (TokenId token : d.delta.tokens) {
      const size_t index = received_[d.request]++;
      if (index >= truth.size() || truth[index] != token) ++figures_.wrong_tokens;
    }
    if (d.delta.finish == FinishReason::kNone) return;
    if (received_[d.request] != truth.size()) ++figures_.wrong_tokens;
    expected_[d.request] = {};
  }

  const Settings& settings_;
  const std::vector<TraceRequest>& trace_;
  HashModelOptions model_;
  ManualClock clock_;
  CountingProbe probe_;
  HashSpeculator speculator_;
  HashRunner runner_;
  bool launch_ahead_;
  Scheduler scheduler_;
  size_t next_ = 0;
  std::vector<std::vector<TokenId>> expected_;
  std::vector<size_t> received_;
  EngineSnapshot snapshot_;
  Figures figures_;
  double busy_seconds_ = 0;
  double queued_seconds_ = 0;
  double live_share_seconds_ = 0;
  double fragmentation_ = 0;
  double fragmentation_at_rest_ = 0;
  double running_ = 0;
  double live_share_ = 1;
};

struct Bars {
  double fragmentation = 0;
  double concurrency = 2.5;
};

bool Report(const char* name, const Figures& f, const Bars& bars, const Settings& settings) {
  const double ratio = f.concurrency / settings.pool_requests;
  std::printf(
      "| %s | %.2f %% | %.1f %% | %.2f %% | %.1f | %.2fx | %.1fx | %.2fx | %.2f | %lld | %lld |\n",
      name, 100 * f.fragmentation, 100 * bars.fragmentation, 100 * f.at_rest, f.concurrency, ratio,
      bars.concurrency, f.limit / settings.pool_requests, f.acceptance,
      static_cast<long long>(f.preemptions), static_cast<long long>(f.steps));
  std::fflush(stdout);
  CHECK_EQ(f.wrong_tokens, 0) << "tokens differ from the model's";
  return f.fragmentation <= bars.fragmentation && ratio >= bars.concurrency;
}

int Main(int argc, char** argv) {
  Settings s;
  Flags flags("KV fragmentation and concurrency on a conversation trace.");
  flags.Add("trace", &s.trace, "CSV file: time, prompt tokens, output tokens");
  flags.Add("requests", &s.requests, "read only so many requests; 0 = all");
  flags.Add("block-size", &s.block_size, "tokens of a KV block");
  flags.Add("pool-requests", &s.pool_requests, "pool size, in requests of --reserve slots");
  flags.Add("reserve", &s.reserve, "slots per request of the static reservation compared with");
  flags.Add("drafts", &s.drafts, "draft tokens per sequence and step at most");
  flags.Add("agreement", &s.agreement, "probability that a draft token is the target's");
  flags.Add("hit-rate", &s.hit_rate, "launch-ahead: share of outcomes with a branch ready");
  flags.Add("max-batch-tokens", &s.max_batch_rows, "rows of a step");
  flags.Add("prefill-chunk", &s.prefill_chunk, "rows of a prefill span");
  flags.Add("check", &s.check, "exit 1 if a bar is missed");
  flags.ParseOrExit(argc, argv);
  const std::vector<TraceRequest> trace = ReadTrace(s);
  if (trace.empty()) {
    std::cerr << "no requests in " << s.trace << "\n";
    return kNoTrace;
  }
  std::printf("%zu requests, pool of %d x %d slots, blocks of %d, %d drafts\n\n", trace.size(),
              s.pool_requests, s.reserve, s.block_size, s.drafts);
  std::printf(
      "| launch-ahead | fragmentation | bar | between steps | sequences with KV | against "
      "reserving %d | bar | limit | accepted per draft | preemptions | steps |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|\n",
      s.reserve);
  bool reached = true;
  for (bool ahead : {false, true}) {
    const Figures figures = Replay(s, ahead, trace).Run();
    reached &= Report(ahead ? "on" : "off", figures, {.fragmentation = ahead ? 0.022 : 0.015}, s);
  }
  return s.check && !reached ? kExitFailure : 0;
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) { return paceline::Main(argc, argv); }

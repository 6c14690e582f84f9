// What a drafter that is of no use costs: one engine, windows of the same requests plain and with
// speculation under its controller, in turn, about 10,000 steps of each. A step takes the time that
// the engine and its speculator really took, and that of a device which is not there: flat, and
// some for each row. Prints the slowdown per output token with its 95 % interval over pairs of
// windows.
//
//   draft_slowdown_bench [WINDOWS] [DEVICE_US] [ROW_NS]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "tests/sim/hash_runner.h"
#include "tests/sim/scripted_drafter.h"
#include "worker/engine/engine.h"
#include "worker/spec/draft_speculator.h"

namespace paceline {
namespace {

constexpr int32_t kTokens = 100;  // per request: a plain window's steps

struct Device {
  Duration step, row;
};

// Counts out the time that simulating takes, and in that of the device.
class Timed final : public Runner {
 public:
  Timed(HashRunnerOptions options, Device device, ManualClock* clock)
      : runner_(options), device_(device), clock_(clock) {}
  const RunnerInfo& info() const override { return runner_.info(); }
  absl::Status Launch(const StepPlan& plan) override {
    const TimePoint begin = SteadyClock::Get().Now();
    rows_ = static_cast<int32_t>(plan.rows.size());
    const absl::Status status = runner_.Launch(plan);
    simulating_ += SteadyClock::Get().Now() - begin;
    return status;
  }
  absl::StatusOr<StepResult> Wait() override {
    const TimePoint begin = SteadyClock::Get().Now();
    auto result = runner_.Wait();
    simulating_ += SteadyClock::Get().Now() - begin;
    clock_->Advance(device_.step + rows_ * device_.row);
    return result;
  }
  Duration TakeSimulating() { return std::exchange(simulating_, Duration{}); }

 private:
  HashRunner runner_;
  const Device device_;
  ManualClock* const clock_;
  int32_t rows_ = 0;
  Duration simulating_{};
};

// A drafter on another machine: what it does with a frame is not the target's time.
class Elsewhere final : public DraftLink {
 public:
  explicit Elsewhere(std::shared_ptr<ScriptedDrafter> drafter) : drafter_(std::move(drafter)) {}
  const std::string& name() const override { return drafter_->name(); }
  DraftLinkStatus status() const override { return drafter_->status(); }
  bool Send(uint64_t incarnation, TargetFrame frame) override {
    const TimePoint begin = SteadyClock::Get().Now();
    const bool sent = drafter_->Send(incarnation, std::move(frame));
    simulating_ += SteadyClock::Get().Now() - begin;
    return sent;
  }
  Duration TakeSimulating() { return std::exchange(simulating_, Duration{}); }

 private:
  const std::shared_ptr<ScriptedDrafter> drafter_;
  Duration simulating_{};
};

struct Slowdown {
  double mean = 0, half = 0;  // 95 %: mean +- half
  int64_t steps = 0;
  uint64_t drafted = 0, accepted = 0;
};

class Bench {
 public:
  Bench(int32_t batch, const ScriptedDrafterOptions& drafter, Device device) : batch_(batch) {
    HashRunnerOptions options;
    options.num_blocks = batch * 12;
    options.max_slots = batch;
    options.scan_all = false;
    auto runner = std::make_unique<Timed>(options, device, &clock_);
    runner_ = runner.get();
    DraftSpeculatorOptions spec;
    spec.vocab_size = options.model.vocab_size;
    spec.ngram = false;
    spec.opens_per_step = batch;
    auto speculator = std::make_unique<DraftSpeculator>(spec);
    speculator_ = speculator.get();
    drafter_ = std::make_shared<ScriptedDrafter>("drafter", drafter, 5);
    link_ = std::make_shared<Elsewhere>(drafter_);
    const DraftLinkId id = speculator_->AddLink(link_);
    drafter_->SetDeliver([this, id](uint64_t incarnation, DraftFrame frame) {
      speculator_->mailbox().Deliver(id, incarnation, std::move(frame));
    });
    EngineOptions engine;
    engine.max_batch_rows = batch * 9;
    engine.max_waiting = batch;
    engine_ = std::make_unique<Engine>(
        engine, std::move(runner), std::move(speculator), clock_, nullptr,
        [this](EngineOutput output) { finished_ += static_cast<int32_t>(output.finished.size()); });
  }

  Slowdown Measure(int32_t windows) {
    Slowdown s;
    Window(DecodingMode::kAuto);  // what nobody knows before the first request is not counted
    std::vector<double> ratios;
    for (int32_t w = 0; w < windows; ++w) {
      const bool first = w % 2 == 0;
      const double a = Window(first ? DecodingMode::kPlain : DecodingMode::kAuto);
      const double b = Window(first ? DecodingMode::kAuto : DecodingMode::kPlain);
      ratios.push_back(first ? b / a - 1 : a / b - 1);
    }
    double square = 0;
    for (double r : ratios) s.mean += r / windows;
    for (double r : ratios) square += (r - s.mean) * (r - s.mean);
    s.half = 1.96 * std::sqrt(square / (windows - 1) / windows);
    s.steps = steps_;
    s.drafted = speculator_->counters().drafted;
    s.accepted = speculator_->counters().accepted;
    return s;
  }

 private:
  // Seconds of a batch of requests; the drafter's own work is not among them.
  double Window(DecodingMode decoding) {
    for (int32_t i = 0; i < batch_; ++i) {
      GenerationRequest request;
      for (int32_t p = 0; p < 32; ++p) request.prompt.push_back(1 + (p * 7 + i) % 100);
      request.sampling = {.seed = ++seed_, .max_tokens = kTokens, .ignore_eos = true};
      request.decoding = decoding;
      CHECK(engine_->Submit(seed_, request).ok());
    }
    const TimePoint start = clock_.Now();
    const int32_t goal = finished_ + batch_;
    while (finished_ < goal) {
      const TimePoint begin = SteadyClock::Get().Now();
      CHECK(engine_->Step().ok());
      clock_.Advance(SteadyClock::Get().Now() - begin - runner_->TakeSimulating() -
                     link_->TakeSimulating());
      ++steps_;
      drafter_->Tick();
    }
    return ToSeconds(clock_.Now() - start);
  }

  const int32_t batch_;
  ManualClock clock_;
  Timed* runner_ = nullptr;
  DraftSpeculator* speculator_ = nullptr;
  std::shared_ptr<ScriptedDrafter> drafter_;
  std::shared_ptr<Elsewhere> link_;
  std::unique_ptr<Engine> engine_;
  int32_t finished_ = 0;
  uint64_t seed_ = 0;
  int64_t steps_ = 0;
};

void Main(int32_t windows, Device device) {
  ScriptedDrafterOptions useless, dead, saturated;
  useless.random = 1;
  dead.silent = 1;
  saturated.model.agreement = 0.7;
  saturated.min_delay = 3;
  saturated.max_delay = 8;
  std::printf("| batch | drafter | slowdown, 95%% interval | steps | drafted | accepted |\n");
  std::printf("|---|---|---|---|---|---|\n");
  for (int32_t batch : {1, 16, 256}) {
    for (const auto& [name, options] : {std::pair{"useless", useless}, std::pair{"dead", dead},
                                        std::pair{"saturated", saturated}}) {
      const Slowdown s = Bench(batch, options, device).Measure(windows);
      std::printf("| %d | %s | %.2f%% +- %.2f%% | %ld | %lu | %lu |\n", batch, name, 100 * s.mean,
                  100 * s.half, s.steps, s.drafted, s.accepted);
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  paceline::Main(argc > 1 ? std::max(4, std::atoi(argv[1])) : 100,
                 {.step = std::chrono::microseconds(argc > 2 ? std::atoi(argv[2]) : 5000),
                  .row = std::chrono::nanoseconds(argc > 3 ? std::atoi(argv[3]) : 10000)});
}

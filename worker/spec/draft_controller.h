// Decides how many drafts each sequence verifies in a step, 0 included: survival of each draft
// position, measured per request and shrunk to priors, against the measured cost of a step's rows.
// The rule is goodput: of all positions of all sequences, by falling survival, take those up to
// where (expected tokens) / (expected step time) is greatest. Pure: the same calls give the same
// answers; no clock, no threads.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/clock.h"
#include "worker/spec/spec_counters.h"
#include "worker/spec/speculator.h"

namespace paceline {

struct DraftControllerOptions {
  int32_t max_len = 8;
  double ema = 0.1;         // of a request's own acceptance
  double prior_ema = 0.02;  // of the priors
  double prior_weight = 4;  // observations that the prior counts for
  double prior_acceptance = 0.6;
  int32_t first_probe = 256;  // steps at length 0 before the first probe; doubles up to ...
  int32_t last_probe = 4096;
  int32_t window = 64;         // drafting steps that decide about the engine as a whole
  int32_t trial = 8;           // drafting steps of a trial while off
  int32_t first_trial = 1600;  // plain steps before the first trial; doubles up to ...
  int32_t last_trial = 25600;
  double min_gain = 1.0;  // off below this ratio of drafting to plain tokens per second
};

// Survival of the draft positions of one request (or prior): conditional acceptance per position.
class Survival {
 public:
  void Observe(int32_t drafted, int32_t accepted, double rate);
  // P(position i is accepted | all before it), shrunk to `prior` by weight.
  double Conditional(int32_t i, const Survival* prior, double weight, double fallback) const;
  double observations(int32_t i) const { return counts_[i]; }

 private:
  std::array<double, kSpecPositions> accept_{};
  std::array<double, kSpecPositions> counts_{};
};

// Seconds of a step by its rows, from measurements: robust averages per bucket, never falling with
// rows, straight lines between.
class StepCost {
 public:
  void Observe(int32_t rows, double seconds);
  // 0 while nothing has been measured.
  double Seconds(int32_t rows) const;

 private:
  static constexpr int kBuckets = 40;
  static int Bucket(int32_t rows);
  static double Rows(int bucket);
  std::array<double, kBuckets> mean_{};
  std::array<double, kBuckets> deviation_{};
  std::array<int32_t, kBuckets> counts_{};
  mutable std::array<double, kBuckets> smooth_{};
  mutable bool dirty_ = false;
};

// Of one request, kept by the caller.
struct DraftRequest {
  std::array<Survival, 2> survival;  // remote, n-gram
  int32_t temperature_bucket = 0;
  int32_t planned = 0;    // draft length for the next step
  bool probe = false;     // `planned` is a probe
  int32_t off_steps = 0;  // since the last draft or probe, while planned is 0
  int32_t probe_after = 0;
};

class DraftController {
 public:
  explicit DraftController(DraftControllerOptions options);

  DraftRequest NewRequest(float temperature) const;

  // What became of a step's drafts of one request.
  void Observe(DraftRequest* request, ProposalSource source, int32_t drafted, int32_t accepted);

  // The step is over: learns its cost, then plans the next step's length for all requests that it
  // may decide for. `uses_ngram[i]`: request i would be served by the n-gram drafter.
  struct StepSummary {
    Duration step{};
    int32_t rows = 0;
    int32_t sequences = 0;
    int32_t draft_rows = 0;
    int32_t tokens = 0;  // committed
  };
  void EndStep(const StepSummary& step);
  void Plan(const std::vector<DraftRequest*>& requests, const std::vector<bool>& uses_ngram);

  // P(the first i + 1 drafts are accepted).
  double SurvivalAt(const DraftRequest& request, bool ngram, int32_t i) const;
  bool engine_off() const { return off_; }
  double gain() const { return gain_; }  // newest window's ratio of drafting to plain goodput
  uint64_t probes() const { return probes_; }
  uint64_t times_off() const { return times_off_; }
  const StepCost& cost() const { return cost_; }

 private:
  void JudgeEngine(const StepSummary& step);
  void PlanProbe(DraftRequest* request);
  const Survival& Prior(const DraftRequest& request, bool ngram) const;

  DraftControllerOptions options_;
  std::array<std::array<Survival, 4>, 2> priors_;  // [remote, n-gram][temperature bucket]
  StepCost cost_;
  bool off_ = false;
  int32_t off_steps_ = 0;
  int32_t trial_after_ = 0;
  double window_tokens_ = 0, window_seconds_ = 0;  // of drafting steps
  double plain_tokens_ = 0, plain_seconds_ = 0;    // the same steps without their drafts
  int32_t window_steps_ = 0;
  double gain_ = 1;
  int32_t base_rows_ = 0;  // rows of the newest step that were no drafts
  uint64_t probes_ = 0;
  uint64_t times_off_ = 0;
};

}  // namespace paceline

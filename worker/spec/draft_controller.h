// Decides how many drafts each sequence verifies in a step, 0 included: survival of each draft
// position, measured per request and shrunk to priors, against the measured cost of a step's rows.
// The rule is goodput (SmartSpec, arXiv 2406.14066): of all positions of all sequences, by falling
// survival, take those up to where (expected tokens) / (expected step time) is greatest. Pure: the
// same calls give the same answers; no clock, no threads.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "common/clock.h"
#include "worker/spec/speculator.h"
#include "worker/spec/step_cost.h"
#include "worker/spec/survival.h"

namespace paceline {

struct DraftControllerOptions {
  int32_t max_len = 8;
  double ema = 0.05;          // of a request's own acceptance
  double prior_ema = 0.01;    // of the priors
  double prior_weight = 8;    // observations that the prior counts for
  double prior_remote = 0.6;  // acceptance before anything is known
  double prior_ngram = 0.4;
  int32_t first_probe = 256;  // steps at length 0 before the first probe; doubles up to ...
  int32_t last_probe = 4096;
  int32_t window = 64;         // drafting steps that decide about the engine as a whole
  int32_t trial = 8;           // drafting steps of a trial while off
  int32_t first_trial = 1600;  // steps off before the first trial; doubles up to ...
  int32_t last_trial = 25600;
  double min_gain = 1.0;    // off below this ratio of drafting to plain tokens per second
  int32_t cost_age = 1024;  // a plain step is made to measure its cost when it is older than this
};

// What the controller knows of one request; kept by the caller.
struct DraftRequest {
  std::array<Survival, 2> survival;  // remote, n-gram
  int32_t temperature_bucket = 0;
  bool ngram = false;   // the n-gram drafter would serve it
  int32_t max_len = 0;  // drafts that it can take
  int32_t planned = 0;  // the decision: drafts for the next step
  bool probe = false;   // `planned` is there to measure; stays until it was verified
  int32_t off_steps = 0;
  int32_t probe_after = 0;
};

class DraftController {
 public:
  explicit DraftController(DraftControllerOptions options);

  DraftRequest NewRequest(float temperature) const;

  // What became of a step's drafts of one request.
  void Observe(DraftRequest* request, ProposalSource source, int32_t drafted, int32_t accepted);

  struct StepSummary {
    Duration step{};
    int32_t rows = 0;
    int64_t context = 0;  // tokens attended to
    int32_t sequences = 0;
    int32_t draft_rows = 0;  // those verified to gain, not to probe
    int32_t tokens = 0;      // committed
  };
  // The step is over: learns its cost and judges whether drafting pays at all.
  void EndStep(const StepSummary& step);

  // Sets `planned` and `probe` of all requests that it may decide for, for the next step.
  void Plan(std::span<DraftRequest* const> requests);

  // Drafts of the other route that are worth a row where the route that was planned for has none:
  // they survive as well as the last draft that the newest plan took.
  int32_t CoverLen(const DraftRequest& request) const;
  // The n-gram drafts of this request have done better than its remote ones.
  bool PrefersNgram(const DraftRequest& request) const;

  // P(the first i + 1 drafts are accepted).
  double SurvivalAt(const DraftRequest& request, int32_t i) const;
  bool engine_off() const { return off_ && trial_left_ == 0; }
  double gain() const { return gain_; }  // newest window's ratio of drafting to plain goodput
  uint64_t probes() const { return probes_; }
  uint64_t times_off() const { return times_off_; }
  const StepCost& cost() const { return cost_; }

 private:
  using Curve = std::array<double, kSpecPositions>;
  // Acceptance of each position given the ones before it, of all requests of a route and bucket.
  const Curve& Prior(int route, int32_t bucket) const;
  // Calls use(i, survival) for positions from 0 while it answers true.
  template <typename Use>
  void WalkSurvival(const DraftRequest& request, bool ngram, Use use) const;
  double First(const DraftRequest& request, int route) const;
  void JudgeEngine(const StepSummary& step);
  void SortSlots();
  void PlanByGoodput(std::span<DraftRequest* const> requests);
  void PlanProbe(DraftRequest* request) const;

  DraftControllerOptions options_;
  std::array<std::array<Survival, 4>, 2> priors_;  // [remote, n-gram][temperature bucket]
  mutable std::array<std::array<Curve, 4>, 2> prior_curves_{};
  mutable std::array<std::array<bool, 4>, 2> prior_known_{};  // the curve is up to date
  StepCost cost_;
  double least_survival_ = 0;  // that the newest plan took
  int32_t plain_rows_ = 0;     // rows of the newest step that were no drafts
  int64_t context_ = 0;        // of the newest step; the next one's is much like it
  double gain_ = 1;
  // The newest drafting steps, and the same steps as they would have been without drafts.
  double draft_tokens_ = 0, draft_seconds_ = 0;
  double plain_tokens_ = 0, plain_seconds_ = 0;
  int32_t window_steps_ = 0;
  bool off_ = false;
  int32_t off_steps_ = 0;
  int32_t trial_after_ = 0;
  int32_t trial_left_ = 0;
  uint64_t probes_ = 0;
  uint64_t times_off_ = 0;

  // Of PlanByGoodput, kept for their memory.
  struct Slot {
    double survival = 0;
    int32_t request = 0;
  };
  std::vector<Slot> slots_, sorted_;
  std::vector<double> seconds_;
};

}  // namespace paceline

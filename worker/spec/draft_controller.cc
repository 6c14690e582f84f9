#include "worker/spec/draft_controller.h"

#include <algorithm>

namespace paceline {
namespace {

constexpr int32_t kBlindLen = 3;      // drafts while no step has been measured
constexpr double kLeastGain = 1.002;  // a longer plan must be better by this

int32_t TemperatureBucket(float temperature) {
  if (temperature <= 0) return 0;
  if (temperature <= 0.5f) return 1;
  return temperature <= 0.85f ? 2 : 3;
}

}  // namespace

DraftController::DraftController(DraftControllerOptions options)
    : options_(options), trial_after_(options.first_trial) {
  options_.max_len = std::clamp(options_.max_len, 0, kSpecPositions);
}

DraftRequest DraftController::NewRequest(float temperature) const {
  DraftRequest request;
  request.temperature_bucket = TemperatureBucket(temperature);
  request.probe_after = options_.first_probe;
  request.max_len = options_.max_len;
  request.planned = engine_off() ? 0 : std::min(kBlindLen, options_.max_len);
  return request;
}

void DraftController::Observe(DraftRequest* request, ProposalSource source, int32_t drafted,
                              int32_t accepted) {
  if (drafted <= 0) return;
  const int route = source == ProposalSource::kNgram ? 1 : 0;
  request->survival[route].Observe(drafted, accepted, options_.ema);
  priors_[route][request->temperature_bucket].Observe(drafted, accepted, options_.prior_ema);
  if (!request->probe) return;
  ++probes_;
  request->probe = false;
  request->planned = 0;
  request->off_steps = 0;
  request->probe_after = std::min(request->probe_after * 2, options_.last_probe);
}

template <typename Use>
void DraftController::WalkSurvival(const DraftRequest& request, Use use) const {
  const int route = request.ngram ? 1 : 0;
  const Survival& shared = priors_[route][request.temperature_bucket];
  double prior = request.ngram ? options_.prior_ngram : options_.prior_remote;
  double own = prior;
  double survival = 1;
  for (int32_t i = 0; i < std::min(options_.max_len, request.max_len); ++i) {
    // Where a position has not been seen, the one before it is the best guess, and a request that
    // does worse than its prior there will do worse here.
    const double relative = i == 0 ? 1 : std::clamp(own / prior, 0.1, 1.25);
    prior = std::max(shared.Conditional(i, prior, options_.prior_weight), 1e-3);
    const double expected = std::min(prior * relative, 0.995);
    own = request.survival[route].Conditional(i, expected, options_.prior_weight);
    survival *= own;
    if (!use(i, survival)) return;
  }
}

double DraftController::SurvivalAt(const DraftRequest& request, int32_t position) const {
  double found = 0;
  WalkSurvival(request, [&](int32_t i, double survival) {
    if (i == position) found = survival;
    return i < position;
  });
  return found;
}

int32_t DraftController::CoverLen(const DraftRequest& request) const {
  DraftRequest cover = request;
  cover.ngram = true;
  int32_t len = 0;
  WalkSurvival(cover, [&](int32_t, double survival) {
    if (survival < least_survival_) return false;
    return ++len < request.planned;
  });
  return std::min(len, request.planned);
}

void DraftController::EndStep(const StepSummary& step) {
  if (step.rows <= 0) return;
  JudgeEngine(step);  // against what was known before this step
  cost_.Observe(step.rows, ToSeconds(step.step));
  plain_rows_ = std::max(1, step.rows - step.draft_rows);
}

void DraftController::JudgeEngine(const StepSummary& step) {
  if (engine_off()) {
    if (++off_steps_ >= trial_after_) trial_left_ = options_.trial;
    return;
  }
  const double plain_seconds = cost_.Seconds(step.rows - step.draft_rows);
  if (step.draft_rows <= 0 || plain_seconds <= 0) return;
  draft_tokens_ += step.tokens;
  draft_seconds_ += ToSeconds(step.step);
  plain_tokens_ += step.sequences;
  plain_seconds_ += plain_seconds;
  ++window_steps_;
  if (off_) --trial_left_;
  if (window_steps_ < (off_ ? options_.trial : options_.window)) return;

  gain_ = (draft_tokens_ * plain_seconds_) / std::max(draft_seconds_ * plain_tokens_, 1e-12);
  const bool pays = gain_ >= options_.min_gain;
  if (pays) {
    trial_after_ = options_.first_trial;
  } else {
    if (off_) trial_after_ = std::min(trial_after_ * 2, options_.last_trial);
    if (!off_) ++times_off_;
  }
  off_ = !pays;
  off_steps_ = 0;
  trial_left_ = 0;
  window_steps_ = 0;
  draft_tokens_ = draft_seconds_ = plain_tokens_ = plain_seconds_ = 0;
}

void DraftController::Plan(std::span<DraftRequest* const> requests) {
  const bool measure_plain = cost_.Age(plain_rows_) > static_cast<uint64_t>(options_.cost_age);
  if (engine_off() || (measure_plain && cost_.Seconds(1) > 0)) {
    for (DraftRequest* request : requests) {
      request->planned = 0;
      request->probe = false;
    }
    return;
  }
  PlanByGoodput(requests);
  for (DraftRequest* request : requests) PlanProbe(request);
}

// Goodput is (tokens) / (seconds); seconds have steps where kernels change shape, so all lengths
// are tried rather than only the next.
void DraftController::PlanByGoodput(std::span<DraftRequest* const> requests) {
  std::vector<std::pair<double, int32_t>> slots;  // survival, request
  slots.reserve(requests.size() * options_.max_len);
  for (size_t r = 0; r < requests.size(); ++r) {
    if (!requests[r]->probe) requests[r]->planned = 0;
    WalkSurvival(*requests[r], [&](int32_t, double survival) {
      slots.emplace_back(survival, static_cast<int32_t>(r));
      return survival > 0.01;
    });
  }
  std::ranges::stable_sort(slots, std::greater<>(), [](const auto& s) { return s.first; });

  size_t best = 0;
  if (cost_.Seconds(plain_rows_) <= 0) {
    best = std::min(slots.size(), requests.size() * kBlindLen);
  } else {
    double tokens = std::max<double>(1, requests.size());
    double best_goodput = tokens / cost_.Seconds(plain_rows_);
    for (size_t k = 1; k <= slots.size(); ++k) {
      tokens += slots[k - 1].first;
      const double goodput = tokens / cost_.Seconds(plain_rows_ + static_cast<int32_t>(k));
      if (goodput <= best_goodput * kLeastGain) continue;
      best_goodput = goodput;
      best = k;
    }
  }
  least_survival_ = best > 0 ? slots[best - 1].first : 1;
  // A sequence's positions fall in survival, so the slots taken of it are its first ones.
  std::vector<int32_t> lengths(requests.size(), 0);
  for (size_t k = 0; k < best; ++k) ++lengths[slots[k].second];
  for (size_t r = 0; r < requests.size(); ++r) {
    if (lengths[r] == 0) continue;
    requests[r]->planned = lengths[r];
    requests[r]->probe = false;
    requests[r]->off_steps = 0;
    requests[r]->probe_after = options_.first_probe;
  }
}

void DraftController::PlanProbe(DraftRequest* request) const {
  if (request->planned > 0 || request->max_len <= 0) return;
  if (++request->off_steps < request->probe_after) return;
  request->planned = 1;
  request->probe = true;
}

}  // namespace paceline

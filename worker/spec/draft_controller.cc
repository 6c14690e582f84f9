#include "worker/spec/draft_controller.h"

#include <algorithm>

namespace paceline {
namespace {

constexpr int32_t kBlindLen = 3;      // drafts while no step has been measured
constexpr double kLeastGain = 1.002;  // a longer plan must be better by this
constexpr double kMostAcceptance = 0.995;
constexpr double kLeastSurvival = 0.01;   // less is never worth a row
constexpr int kSurvivalLevels = 1024;     // told apart when positions are sorted
constexpr double kNgramObservations = 8;  // before the n-gram route may be preferred

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
  prior_known_[route][request->temperature_bucket] = false;
  if (!request->probe) return;
  ++probes_;
  request->probe = false;
  request->planned = 0;
  request->off_steps = 0;
  request->probe_after = std::min(request->probe_after * 2, options_.last_probe);
}

// Where a position has not been seen, the one before it is the best guess.
const DraftController::Curve& DraftController::Prior(int route, int32_t bucket) const {
  Curve& curve = prior_curves_[route][bucket];
  if (prior_known_[route][bucket]) return curve;
  double prior = route == 1 ? options_.prior_ngram : options_.prior_remote;
  for (int32_t i = 0; i < kSpecPositions; ++i) {
    prior = priors_[route][bucket].Conditional(i, prior, options_.prior_weight);
    prior = curve[i] = std::max(prior, 1e-3);
  }
  prior_known_[route][bucket] = true;
  return curve;
}

template <typename Use>
void DraftController::WalkSurvival(const DraftRequest& request, bool ngram, Use use) const {
  const int route = ngram ? 1 : 0;
  const Curve& prior = Prior(route, request.temperature_bucket);
  const int32_t most = std::min(options_.max_len, request.max_len);
  double relative = 1;
  double survival = 1;
  for (int32_t i = 0; i < most; ++i) {
    // A request that does worse than its prior at one position will do worse at the next.
    const double expected = std::min(prior[i] * relative, kMostAcceptance);
    const double own = request.survival[route].Conditional(i, expected, options_.prior_weight);
    survival *= own;
    if (!use(i, survival)) return;
    relative = std::clamp(own / prior[i], 0.1, 1.25);
  }
}

double DraftController::SurvivalAt(const DraftRequest& request, int32_t position) const {
  double found = 0;
  WalkSurvival(request, request.ngram, [&](int32_t i, double survival) {
    if (i == position) found = survival;
    return i < position;
  });
  return found;
}

int32_t DraftController::CoverLen(const DraftRequest& request) const {
  int32_t len = 0;
  WalkSurvival(request, !request.ngram, [&](int32_t, double survival) {
    if (len >= request.planned || survival < least_survival_) return false;
    ++len;
    return true;
  });
  return len;
}

// Acceptance of the first draft.
double DraftController::First(const DraftRequest& request, int route) const {
  const double prior = Prior(route, request.temperature_bucket)[0];
  return request.survival[route].Conditional(0, prior, options_.prior_weight);
}

bool DraftController::PrefersNgram(const DraftRequest& request) const {
  return request.survival[1].observations(0) >= kNgramObservations &&
         First(request, 1) > First(request, 0);
}

void DraftController::EndStep(const StepSummary& step) {
  if (step.rows <= 0) return;
  JudgeEngine(step);  // against what was known before this step
  cost_.Observe(step.rows, step.context, ToSeconds(step.step));
  context_ = step.context;
  plain_rows_ = std::max(1, step.rows - step.draft_rows);
}

void DraftController::JudgeEngine(const StepSummary& step) {
  if (engine_off()) {
    if (++off_steps_ >= trial_after_) trial_left_ = options_.trial;
    return;
  }
  const double plain_seconds = cost_.Seconds(step.rows - step.draft_rows, step.context);
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
  if (engine_off() || (measure_plain && cost_.Seconds(1, context_) > 0)) {
    for (DraftRequest* request : requests) {
      request->planned = 0;
      request->probe = false;
    }
    return;
  }
  PlanByGoodput(requests);
  for (DraftRequest* request : requests) PlanProbe(request);
}

// Sorts by falling survival, as far as levels tell; linear in the slots.
void DraftController::SortSlots() {
  std::array<int32_t, kSurvivalLevels + 1> begin{};
  const auto level = [](const Slot& slot) {
    return kSurvivalLevels - 1 -
           std::clamp(static_cast<int>(slot.survival * kSurvivalLevels), 0, kSurvivalLevels - 1);
  };
  for (const Slot& slot : slots_) ++begin[level(slot) + 1];
  for (int l = 1; l <= kSurvivalLevels; ++l) begin[l] += begin[l - 1];
  sorted_.resize(slots_.size());
  for (const Slot& slot : slots_) sorted_[begin[level(slot)]++] = slot;
}

// Goodput is (tokens) / (seconds); seconds have steps where kernels change shape, so all lengths
// are tried rather than only the next.
void DraftController::PlanByGoodput(std::span<DraftRequest* const> requests) {
  slots_.clear();
  for (size_t r = 0; r < requests.size(); ++r) {
    if (!requests[r]->probe) requests[r]->planned = 0;
    WalkSurvival(*requests[r], requests[r]->ngram, [&](int32_t, double survival) {
      slots_.push_back({survival, static_cast<int32_t>(r)});
      return survival > kLeastSurvival;
    });
  }
  SortSlots();

  size_t best = 0;
  if (cost_.Seconds(plain_rows_, context_) <= 0) {
    best = std::min(sorted_.size(), requests.size() * kBlindLen);
  } else {
    seconds_.resize(sorted_.size() + 1);
    cost_.Seconds(plain_rows_, context_, seconds_);
    double tokens = std::max<double>(1, requests.size());
    double best_goodput = tokens / seconds_[0];
    for (size_t k = 1; k <= sorted_.size(); ++k) {
      tokens += sorted_[k - 1].survival;
      if (tokens <= best_goodput * kLeastGain * seconds_[k]) continue;
      best_goodput = tokens / seconds_[k];
      best = k;
    }
  }
  least_survival_ = best > 0 ? sorted_[best - 1].survival : 1;
  // A sequence's positions fall in survival, so the slots taken of it are its first ones.
  std::vector<int32_t> lengths(requests.size(), 0);
  for (size_t k = 0; k < best; ++k) ++lengths[sorted_[k].request];
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

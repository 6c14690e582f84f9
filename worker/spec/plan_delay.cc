#include "worker/spec/plan_delay.h"

#include <algorithm>

namespace paceline {
namespace {

constexpr double kLeastLead = 0.0625, kMostLead = 0.5;
constexpr double kLeadDecay = 0.99;
constexpr double kAnsweredRate = 0.1;
constexpr int32_t kTrial = 32;  // plans made at once between two put off where that does not pay
constexpr Duration kLeastDelay = std::chrono::microseconds(20);
// A launch so close to the step's end came too late: the result takes that long to be read.
constexpr double kOverrun = 1.0 / 32;

}  // namespace

Duration PlanDelay::Longest(const Step& step) {
  if (step.takes <= Duration::zero()) return {};
  if (!pays() && ++refrained_ < kTrial) return {};
  const Duration kept = step.host + Seconds(ToSeconds(step.takes) * lead_);
  const Duration delay = step.started + step.takes - kept - step.now;
  if (delay < kLeastDelay) return {};
  refrained_ = 0;
  takes_ = step.takes;
  return delay;
}

void PlanDelay::Observe(double answered, Duration waited) {
  answered_ += kAnsweredRate * (answered - answered_);
  const bool overran = ToSeconds(waited) < kOverrun * ToSeconds(takes_);
  overruns_ += overran ? 1 : 0;
  lead_ = std::clamp(overran ? 1.25 * lead_ : kLeadDecay * lead_, kLeastLead, kMostLead);
}

}  // namespace paceline

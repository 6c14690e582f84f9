#include "worker/draft/draft_pace.h"

#include <algorithm>

namespace paceline {
namespace {

constexpr double kOnTheWay = 0.1;    // part of an interval that frames, and plans, take
constexpr int32_t kFewOutcomes = 2;  // fewer are a chain

}  // namespace

void DraftPace::Observe(int32_t rows, Duration took) { cost_.Observe(rows, 0, ToSeconds(took)); }

double DraftPace::Seconds(int64_t rows) const {
  return cost_.Seconds(static_cast<int32_t>(std::clamp<int64_t>(rows, 1, 1 << 20)), 0);
}

bool DraftPace::CanEnumerate(const Verify& v) const {
  if (v.interval <= Duration::zero()) return true;
  const double seconds = Seconds(int64_t{v.sessions} * std::max(1, v.positions)) +
                         Seconds(int64_t{v.sessions} * kFewOutcomes);
  return seconds <= (1 - kOnTheWay) * ToSeconds(v.interval);
}

// Goodput as for the target: P(the outcome is foreseen) x (drafts behind it that will be right).
int32_t DraftPace::NumOutcomes(const Verify& v, std::span<const Outcome> outcomes,
                               double agreement) const {
  const auto all = static_cast<int32_t>(outcomes.size());
  if (v.interval <= Duration::zero() || Seconds(1) <= 0) return all;
  const double time = ToSeconds(v.left) - kOnTheWay * ToSeconds(v.interval);
  int32_t best = std::min(all, kFewOutcomes);
  double best_value = 0, covered = 0;
  for (int32_t n = 1; n <= all; ++n) {
    covered += outcomes[n - 1].probability;
    const double steps = time / std::max(Seconds(int64_t{v.sessions} * n), 1e-9);
    const auto len = static_cast<int32_t>(std::clamp<double>(steps, 0, v.want_len));
    double right = 0, survives = 1;
    for (int32_t i = 0; i < len; ++i) right += survives *= agreement;
    if (covered * right <= best_value) continue;
    best_value = covered * right;
    best = n;
  }
  return best;
}

}  // namespace paceline

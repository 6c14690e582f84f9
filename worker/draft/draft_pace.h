// What a drafter gets done before a target's step ends, by its own measured step time for so many
// rows and the time between the target's commits: whether to enumerate at all, and how many
// outcomes. More outcomes are foreseen more often; fewer leave time for longer drafts. Pure.
#pragma once

#include <cstdint>
#include <span>

#include "common/clock.h"
#include "worker/draft/outcome_ranking.h"
#include "worker/spec/step_cost.h"

namespace paceline {

class DraftPace {
 public:
  // A step of so many rows, from its planning to its proposals.
  void Observe(int32_t rows, Duration took);

  // A target's step, as one of its sessions sees it.
  struct Verify {
    Duration interval{};    // between commits; 0 = unknown: no reason to hurry
    Duration left{};        // until the next one
    int32_t positions = 0;  // whose outcomes are sought
    int32_t want_len = 0;
    int32_t sessions = 1;  // that enumerate beside it and share the steps
  };
  // Ranking the outcomes and a first draft behind each of a few are done within an interval.
  bool CanEnumerate(const Verify& verify) const;
  // How many of the outcomes, the likeliest first, to draft for.
  int32_t NumOutcomes(const Verify& verify, std::span<const Outcome> outcomes,
                      double agreement) const;

 private:
  double Seconds(int64_t rows) const;

  StepCost cost_;
};

}  // namespace paceline

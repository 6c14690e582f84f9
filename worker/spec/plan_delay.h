// When an engine that launches ahead should make its next plan. Made at once, the plan can have no
// drafts for the outcome of the step in flight, of which the drafter has just been told. So it is
// put off while that step runs: until the drafts are there, and never so long that planning and
// launching would not be done before the step ends. Pure: times are told, nothing is waited for.
#pragma once

#include <cstdint>

#include "common/clock.h"

namespace paceline {

class PlanDelay {
 public:
  struct Step {
    TimePoint now{};
    TimePoint started{};  // of the step in flight
    Duration takes{};     // that step, by what has been measured; 0 = unknown
    Duration host{};      // to plan and to launch
  };
  // How long the next plan may be put off; 0 = not at all.
  Duration Longest(const Step& step);

  // What became of the plan put off last. `answered`: the share of its drafts that came in time.
  // `waited`: from its launch to the result of the step that it was launched behind.
  void Observe(double answered, Duration waited);

  // Drafts come while the step runs: the plan behind it can rely on them.
  bool pays() const { return answered_ >= kLeastAnswered; }
  uint64_t overruns() const { return overruns_; }  // the step had ended before the launch

 private:
  static constexpr double kLeastAnswered = 0.5;

  double answered_ = kLeastAnswered;  // a moving average
  double lead_ = 0.125;               // part of the step that stays between launch and its end
  Duration takes_{};                  // of the step beside the plan put off last
  int32_t refrained_ = 0;             // plans since one was put off
  uint64_t overruns_ = 0;
};

}  // namespace paceline

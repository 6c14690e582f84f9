// What the router core tells about itself, as intentions; the metrics library stays with whoever
// implements this. Called from within the core's events; must not block.
#pragma once

#include <string>

#include "common/clock.h"
#include "router/core/placement.h"
#include "router/core/serving_error.h"

namespace paceline {

enum class FailoverPhase : uint8_t { kBeforeFirstToken, kMidStream };
enum class AttemptResult : uint8_t { kOk, kRefused, kLost, kFault, kCancelled };

class RouterProbe {
 public:
  virtual ~RouterProbe() = default;
  virtual void Placed(const PlacementScore& score, const std::string& model) {}
  virtual void QueueWait(const std::string& model, int32_t priority, Duration waited) {}
  virtual void Rejected(const std::string& model, const ServingError& error) {}
  virtual void AttemptEnded(AttemptResult result) {}
  // resumed: another worker took over, and this many tokens were replayed.
  virtual void FailedOver(FailoverPhase phase, bool resumed, int64_t replayed_tokens) {}
  virtual void FailoverGap(Duration gap) {}  // worker lost to the next token
  virtual void Cancelled(const std::string& stage, bool by_deadline) {}
};

}  // namespace paceline

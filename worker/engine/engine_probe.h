// What the engine tells about itself while it runs, as intentions; the metrics library stays with
// whoever implements this. Called on the engine thread; must not block.
#pragma once

#include <cstdint>

#include "common/clock.h"
#include "common/types/generation.h"
#include "worker/spec/speculator.h"

namespace paceline {

enum class StepPhase : uint8_t { kPrefill, kDecode, kVerify, kMixed };
enum class PreemptReason : uint8_t { kKvPressure, kPriority };

class EngineProbe {
 public:
  virtual ~EngineProbe() = default;
  virtual void StepDone(StepPhase phase, Duration took, int32_t sequences, int32_t rows,
                        int32_t output_tokens) {}
  virtual void FirstToken(Duration since_submit) {}
  virtual void NextTokens(Duration since_last, int32_t tokens) {}  // a delta after the first
  virtual void QueueWait(Duration waited) {}
  virtual void PrefillDone(Duration took, int32_t tokens) {}
  virtual void RequestDone(const GenerationUsage& usage, bool ok) {}
  virtual void Preempted(PreemptReason reason, int32_t tokens_to_recompute) {}
  virtual void Verified(ProposalSource source, int32_t drafted, int32_t accepted) {}
};

}  // namespace paceline

// The seam between the engine's host logic and a device: plans in, results out.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/types/step_plan.h"

namespace paceline {

// What the scheduler must know of the model and the pool behind a runner.
struct RunnerInfo {
  int32_t num_layers = 0;
  int32_t vocab_size = 0;
  int32_t max_context = 0;  // positions the model can take
  int32_t num_blocks = 0;
  int32_t block_size = 16;
  int32_t max_slots = 0;
  std::vector<TokenId> eos_token_ids;
  std::string model_fingerprint;     // of the weights and config: keys the prefix cache
  std::string numerics_fingerprint;  // backend, ISA, dtypes, ranks, kernel build
  bool runs_beside = false;          // a launched step runs by itself, before anybody waits for it
};

// Called from one thread, the engine's. At most two plans may be launched and not yet waited for.
// A failure of Launch or Wait is a fault of the device: the process cannot go on.
class Runner {
 public:
  virtual ~Runner() = default;
  virtual const RunnerInfo& info() const = 0;

  // Starts the step. The plan is copied or done with when the call returns.
  virtual absl::Status Launch(const StepPlan& plan) = 0;

  // Blocks for the oldest launched plan.
  virtual absl::StatusOr<StepResult> Wait() = 0;
};

}  // namespace paceline

// The loop of a worker: drain the inbox, drop what was cancelled, schedule, launch, wait, commit,
// publish. One thread, the engine's, owns all sequence state without a mutex. Submit, Cancel, the
// session calls and Snapshot may come from any thread and never wait for a step.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/types/generation.h"
#include "worker/engine/engine_probe.h"
#include "worker/kv/block_manager.h"
#include "worker/runner/runner.h"
#include "worker/spec/speculator.h"

namespace paceline {

struct EngineOptions {
  int32_t max_batch_rows = 512;  // rows of one step (--max-batch-tokens)
  int32_t prefill_chunk = 256;   // rows of one prefill span at most
  int32_t max_waiting = 256;     // queued requests; one more is RESOURCE_EXHAUSTED
  int32_t max_drafts = 8;        // draft rows per sequence and step
  bool launch_ahead = false;     // launch step t+1 before step t is read
  bool prefix_cache = true;
  Duration session_ttl = std::chrono::minutes(10);  // of ids that carry no time of their own
};

// Chosen by the caller, unique among the engine's requests in flight.
using RequestHandle = uint64_t;

// Everything that one step made public, in order.
struct EngineOutput {
  struct Delta {
    RequestHandle request = 0;
    SampleDelta delta;
  };
  // The last word on a request. OK: every sample finished, usage is final. Else: cancelled,
  // DEADLINE_EXCEEDED, ...; samples without a finish reason got none.
  struct Finished {
    RequestHandle request = 0;
    absl::Status status;
    GenerationUsage usage;
  };
  std::vector<Delta> deltas;
  std::vector<Finished> finished;
};

// Called on the engine thread; must not block and must not call the engine.
using EngineSink = std::function<void(EngineOutput)>;

// What the router, the metrics and `paceline status` may know; at most a step old.
struct EngineSnapshot {
  int32_t running = 0;  // sequences with KV
  int32_t waiting = 0;  // requests queued
  int64_t queued_prompt_tokens = 0;
  KvOccupancy kv;
  int32_t num_blocks = 0;
  int32_t block_size = 0;
  int64_t live_slots = 0;    // KV entries of committed tokens in active blocks, shared once
  double fragmentation = 0;  // 1 - live_slots / (active blocks x block size); 0 when none
  KvCounters kv_counters;
  uint64_t steps = 0;
  double step_seconds = 0;       // moving average
  double tokens_per_second = 0;  // moving average of output tokens
  bool draining = false;
  uint64_t prefix_epoch = 0;
  std::vector<uint64_t> prefix_chunks;  // common/hash.h; refreshed when the epoch changed
};

class Engine {
 public:
  // `speculator` and `probe` may be null. The runner is the engine's alone.
  Engine(EngineOptions options, std::unique_ptr<Runner> runner,
         std::unique_ptr<Speculator> speculator, const Clock& clock, EngineProbe* probe,
         EngineSink sink);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const RunnerInfo& runner_info() const;

  // INVALID_ARGUMENT: empty prompt, bad parameters, prompt + max_tokens over the context.
  // FAILED_PRECONDITION: can never fit the pool. RESOURCE_EXHAUSTED: the queue is full.
  // UNAVAILABLE: draining. ALREADY_EXISTS: the handle is in flight. Else the sink will hear of it.
  absl::Status Submit(RequestHandle handle, GenerationRequest request);

  // Takes effect in the next plan; the sink hears CANCELLED (or DEADLINE_EXCEEDED). Unknown:
  // ignored.
  void Cancel(RequestHandle handle, absl::StatusCode code = absl::StatusCode::kCancelled);

  // Refuses new requests from now on; those in flight finish.
  void StartDrain();

  EngineSnapshot Snapshot() const;

  // Sessions whose blocks this worker retains. DropSession takes effect in the next step.
  std::vector<BlockManager::SessionBlocks> Sessions() const;
  void DropSession(std::string session_id);

  // One turn of the loop, for tests and simulations; false when there was nothing to do.
  // An error is a fault of the runner and final.
  absl::StatusOr<bool> Step();

  // Steps until Stop, sleeping on an empty inbox. Returns the fault that ended it, or OK.
  absl::Status Run();
  void Stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline

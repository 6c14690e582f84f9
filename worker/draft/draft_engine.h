// A draft worker without its network: one draft model behind a Runner and a BlockManager, many
// sessions of many targets. It proposes and never decides; everything it knows of a session is a
// cache that the target's next messages can rebuild. Targets are strangers: a frame that makes no
// sense costs its session, never the process.
//
// Threads: AttachTarget, DetachTarget, Deliver, Stop, load, counters: any. Step and Run: one
// thread, on which the sinks are called.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/types/draft_messages.h"
#include "worker/kv/block_manager.h"
#include "worker/runner/runner.h"

namespace paceline {

struct DraftEngineOptions {
  int32_t max_batch_rows = 512;  // rows of one step
  int32_t prefill_chunk = 256;   // rows of one catch-up span at most
  int32_t max_len = 32;          // drafts per chain or branch at most; targets may ask for less
  int32_t max_branches = 64;     // per session at most
  int32_t max_candidates = 16;   // guesses per outcome position at most
  int32_t max_sessions = 4096;
  int32_t max_sessions_per_target = 2048;                   // more is answered kOverloaded
  Duration idle_timeout = std::chrono::seconds(60);         // a session not heard of is dropped
  Duration load_interval = std::chrono::milliseconds(100);  // load is sent at least so often
  bool prefix_cache = true;
};

// Sums since the start.
struct DraftEngineCounters {
  uint64_t steps = 0;
  uint64_t rows = 0;
  uint64_t prefill_rows = 0;  // catch-up
  uint64_t draft_rows = 0;    // chains and branches
  uint64_t opens = 0;
  uint64_t commits = 0;
  uint64_t stale = 0;  // commits and closes of another epoch, or behind what is known
  uint64_t proposals = 0;
  uint64_t branches = 0;         // begun
  uint64_t outcomes_spared = 0;  // ranked, but there was no time to draft for them
  uint64_t chains_instead = 0;   // commits that asked for an enumeration which would have been late
  uint64_t branch_hits = 0;      // commits that a branch had foreseen
  uint64_t branch_misses = 0;    // commits behind an enumeration that none had
  uint64_t chain_kept = 0;       // drafts that a commit confirmed
  uint64_t evictions = 0;
  uint64_t nacks = 0;
  uint64_t invalid = 0;  // of those
  uint64_t expired = 0;
  int32_t sessions = 0;  // now
};

class DraftEngine {
 public:
  // One attached stream of one target; a new stream is a new id.
  using TargetId = uint64_t;
  // Called on the engine's thread with everything a step made for this target; must not block and
  // must not call the engine.
  using Sink = std::function<void(DraftFrame)>;

  DraftEngine(DraftEngineOptions options, std::unique_ptr<Runner> runner, const Clock& clock);
  ~DraftEngine();
  DraftEngine(const DraftEngine&) = delete;
  DraftEngine& operator=(const DraftEngine&) = delete;

  const RunnerInfo& runner_info() const;

  TargetId AttachTarget(Sink sink);
  // Drops the target's sessions at the next step. When it returns, the sink is not being called and
  // will not be called again.
  void DetachTarget(TargetId target);
  // Frames of a target that is not attached are dropped.
  void Deliver(TargetId target, TargetFrame frame);

  // One turn: reads the inbox, runs one step of the model over all sessions with work, sends what
  // it made. False when there was nothing to do. An error is a fault of the runner and final.
  absl::StatusOr<bool> Step();

  // Steps until Stop, sleeping on an empty inbox. Returns the fault that ended it, or OK.
  absl::Status Run();
  void Stop();

  DraftLoad load() const;
  DraftEngineCounters counters() const;  // as of the last step
  KvOccupancy kv() const;                // as of the last step

  // Engine thread, for tests: drops every session and CHECKs that no block is left in use.
  void CheckQuiescent();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline

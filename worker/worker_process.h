// What the roles of a worker process share: flags, the end of the process, loading.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/rpc/metrics_server.h"
#include "worker/runner/runner.h"
#include "worker/service/worker_server.h"

namespace paceline {

// For the last frames of streams at shutdown.
inline constexpr Duration kShutdownGrace = std::chrono::seconds(2);
// For other calls; connections of clients that do not listen are cut then.
inline constexpr Duration kUnaryGrace = std::chrono::milliseconds(100);

struct WorkerFlags {
  std::string role = "target", model, model_name, listen = "127.0.0.1:0",
              metrics_listen = "127.0.0.1:0", draft, device = "auto", speculation = "auto",
              draft_mode = "enumerate", launch_ahead = "off", log_level = "info";
  int32_t threads = 0, block_size = 16, kv_blocks = 0, max_batch_tokens = 512, prefill_chunk = 256,
          max_waiting = 256, max_sequences = 64, max_context = 0, max_drafts = 8,
          drain_timeout = 600;
  int64_t kv_bytes = 0;
  double synthetic_acceptance = 0;
  bool prefix_cache = true;
};

// What ends the process: a signal, or the end of the engine's thread. Signals are blocked in every
// thread and read by one.
class ProcessEnd {
 public:
  // Before any other thread starts. Never destroyed: its thread ends with the process.
  ProcessEnd();

  // From now on a first signal drains; before, it ends the process at once.
  void SetReady() { ready_ = true; }
  void EngineEnded(const absl::Status& status);
  // By RPC: stop taking work, stay.
  void AskDrain();

  enum class Event { kDrain, kSignal, kFault };
  // Blocks for the next one; a fault comes first, with *fault.
  Event Next(absl::Status* fault);
  // Polls `done` until it holds, a time has passed, or the engine has ended.
  template <typename Done>
  bool WaitUntil(Done done, Duration limit) {
    const TimePoint end = SteadyClock::Get().Now() + limit;
    std::unique_lock lock(mutex_);
    while (!done()) {
      if (engine_ended_ || SteadyClock::Get().Now() >= end) return false;
      changed_.wait_for(lock, std::chrono::milliseconds(10));
    }
    return true;
  }

 private:
  void ReadSignals();

  sigset_t signals_;
  std::atomic<bool> ready_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  int signals_seen_ = 0;
  bool engine_ended_ = false;
  bool drain_asked_ = false;
  absl::Status fault_;
};

// Returns at the first signal. Calls `drain` then, and whenever it is asked for. A fault of the
// engine ends the process here: a device that has failed once cannot be trusted again, and routers
// carry its requests elsewhere.
void AwaitSignal(ProcessEnd* end, const std::function<void()>& drain);

// The model of --model on the device of --device, with its KV pool.
absl::StatusOr<std::unique_ptr<Runner>> LoadRunner(const WorkerFlags& flags);

// To standard output, for whoever started the process.
void PrintAddresses(const WorkerServer& server, const MetricsServer& metrics);

// A role, from binding its ports to its clean end. An error before it is ready is for the user.
absl::Status RunTarget(const WorkerFlags& flags, ProcessEnd* end);
absl::Status RunDraft(const WorkerFlags& flags, ProcessEnd* end);

}  // namespace paceline

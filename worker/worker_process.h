// What the roles of a worker process share: flags, the end of the process, loading.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/process_end.h"
#include "common/rpc/metrics_server.h"
#include "common/rpc/rpc_server.h"
#include "worker/runner/runner.h"
#include "worker/service/process_metrics.h"

namespace paceline {

// For the last frames of streams at shutdown.
inline constexpr Duration kShutdownGrace = std::chrono::seconds(2);
// For other calls; connections of clients that do not listen are cut then.
inline constexpr Duration kUnaryGrace = std::chrono::milliseconds(100);

struct WorkerFlags {
  std::string role = "target", model, model_name, listen = "127.0.0.1:0",
              metrics_listen = "127.0.0.1:0", draft, device = "auto", speculation = "auto",
              draft_strategy = "enumerate", launch_ahead = "off", load_format = "safetensors",
              log_level = "info";
  int32_t threads = 0, block_size = 16, kv_blocks = 0, max_batch_tokens = 512, prefill_chunk = 256,
          max_waiting = 256, max_sequences = 64, max_context = 0, max_drafts = 8,
          drain_timeout = 600;
  int64_t kv_bytes = 0;
  double synthetic_acceptance = 0;
  bool prefix_cache = true, cuda_graphs = true;
};

// Returns at the first signal. Calls `drain` then, and whenever it is asked for. A fault of the
// engine ends the process here: a device that has failed once cannot be trusted again, and routers
// carry its requests elsewhere.
void AwaitSignal(ProcessEnd* end, const std::function<void()>& drain);

// The model of --model on the device of --device, with its KV pool, past its first steps. `took`
// hears how long each phase of the start took.
absl::StatusOr<std::unique_ptr<Runner>> LoadRunner(
    const WorkerFlags& flags, const std::function<void(StartupPhase, Duration)>& took);

// To standard output, for whoever started the process.
void PrintAddresses(const RpcServer& server, const MetricsServer& metrics);

// A role, from binding its ports to its clean end. An error before it is ready is for the user.
absl::Status RunTarget(const WorkerFlags& flags, ProcessEnd* end);
absl::Status RunDraft(const WorkerFlags& flags, ProcessEnd* end);

}  // namespace paceline

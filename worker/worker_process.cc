#include "worker/worker_process.h"

#include <cstdio>
#include <cstdlib>

#include "common/flags.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/runner/cpu_runner.h"

namespace paceline {

namespace {

[[noreturn]] void DieOfFault(const absl::Status& fault) {
  spdlog::critical("engine failed cause=\"{}\"", fault.ToString());
  spdlog::shutdown();
  std::_Exit(kExitFailure);
}

}  // namespace

void AwaitSignal(ProcessEnd* end, const std::function<void()>& drain) {
  while (true) {
    absl::Status fault;
    const ProcessEnd::Event event = end->Next(&fault);
    if (event == ProcessEnd::Event::kFault) DieOfFault(fault);
    drain();
    if (event == ProcessEnd::Event::kSignal) return;
  }
}

absl::StatusOr<std::unique_ptr<Runner>> LoadRunner(const WorkerFlags& f) {
  ASSIGN_OR_RETURN(auto model, LoadCpuModel(f.model));
  CpuRunnerOptions options;
  options.threads = f.threads;
  options.kv_bytes = f.kv_bytes;
  options.num_blocks = f.kv_blocks;
  options.block_size = f.block_size;
  options.max_slots = f.max_sequences;
  options.max_context = f.max_context;
  if (f.synthetic_acceptance > 0) {
    options.synthetic_acceptance =
        f.role == "draft" ? f.synthetic_acceptance : SyntheticTokens::kTruth;
  }
  ASSIGN_OR_RETURN(auto runner, CpuRunner::Create(std::move(model), options));
  return std::unique_ptr<Runner>(std::move(runner));
}

void PrintAddresses(const RpcServer& server, const MetricsServer& metrics) {
  std::printf("worker listening on %s\nmetrics listening on %s\n", server.address().c_str(),
              metrics.address().c_str());
  std::fflush(stdout);
}

}  // namespace paceline

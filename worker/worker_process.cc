#include "worker/worker_process.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "common/flags.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/engine/warm_up.h"
#include "worker/runner/cpu_runner.h"
#ifdef PACELINE_CUDA
#include "absl/strings/str_cat.h"
#include "worker/runner/cuda_runner_cuda.h"
#endif

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

namespace {

// What a sampler's answers are replaced by, for benchmarks; 0: they are not.
double SyntheticAcceptance(const WorkerFlags& f) {
  if (f.synthetic_acceptance == 0) return 0;
  return f.role == "draft" ? f.synthetic_acceptance : SyntheticTokens::kTruth;
}

// A sequence at a draft worker has a slot for its chain and one for each outcome drafted for; with
// fewer they are bound again and again.
int32_t MaxSlots(const WorkerFlags& f) {
  constexpr int64_t kSlotsPerDraftedSequence = 9, kMost = 65535;
  if (f.role != "draft") return f.max_sequences;
  return static_cast<int32_t>(std::min(kMost, f.max_sequences * kSlotsPerDraftedSequence));
}

// Of --load-format=dummy: every process makes the same weights for a config.
constexpr uint64_t kDummySeed = 1;

absl::StatusOr<std::shared_ptr<const CpuModel>> CpuModelOf(const WorkerFlags& f) {
  if (f.load_format != "dummy") return LoadCpuModel(f.model);
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(f.model));
  return RandomCpuModel(config, kDummySeed);
}

absl::StatusOr<std::unique_ptr<Runner>> LoadCpuRunner(const WorkerFlags& f) {
  ASSIGN_OR_RETURN(auto model, CpuModelOf(f));
  CpuRunnerOptions options;
  options.threads = f.threads;
  if (f.kv_bytes != 0) options.kv_bytes = f.kv_bytes;
  options.num_blocks = f.kv_blocks;
  options.block_size = f.block_size;
  options.max_slots = MaxSlots(f);
  options.max_context = f.max_context;
  options.synthetic_acceptance = SyntheticAcceptance(f);
  ASSIGN_OR_RETURN(auto runner, CpuRunner::Create(std::move(model), options));
  return std::unique_ptr<Runner>(std::move(runner));
}

#ifdef PACELINE_CUDA
absl::StatusOr<std::shared_ptr<const CudaModel>> CudaModelOf(const WorkerFlags& f) {
  if (f.load_format != "dummy") return LoadCudaModel(f.model);
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(f.model));
  return RandomCudaModel(config, kDummySeed);
}

absl::StatusOr<std::unique_ptr<Runner>> LoadCudaRunner(const WorkerFlags& f,
                                                       const CudaDevice& device) {
  ASSIGN_OR_RETURN(auto model, CudaModelOf(f));
  CudaRunnerOptions options;
  options.kv_bytes = f.kv_bytes;
  options.num_blocks = f.kv_blocks;
  options.block_size = f.block_size;
  options.max_slots = MaxSlots(f);
  options.max_context = f.max_context;
  options.max_batch_rows = f.max_batch_tokens;
  options.graphs = f.cuda_graphs;
  options.synthetic_acceptance = SyntheticAcceptance(f);
  ASSIGN_OR_RETURN(auto runner, CudaRunner::Create(std::move(model), device, options));
  spdlog::info("memory {}", runner->memory_text());
  return std::unique_ptr<Runner>(std::move(runner));
}
#endif

absl::StatusOr<std::unique_ptr<Runner>> LoadOnDevice(const WorkerFlags& f) {
#ifdef PACELINE_CUDA
  if (f.device != "cpu") {
    const auto device = OpenCudaDevice();
    if (device.ok()) return LoadCudaRunner(f, *device);
    if (f.device == "cuda") {
      return absl::Status(device.status().code(),
                          absl::StrCat("--device=cuda: ", device.status().message()));
    }
    spdlog::info("running on the CPU cause=\"{}\"", std::string(device.status().message()));
  }
#endif
  return LoadCpuRunner(f);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Runner>> LoadRunner(
    const WorkerFlags& f, const std::function<void(StartupPhase, Duration)>& took) {
  const Clock& clock = SteadyClock::Get();
  const TimePoint start = clock.Now();
  ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner, LoadOnDevice(f));
  const TimePoint loaded = clock.Now();
  EngineOptions options;
  options.max_batch_rows = f.max_batch_tokens;
  options.prefill_chunk = f.prefill_chunk;
  RETURN_IF_ERROR(WarmUp(runner.get(), options, clock));
  took(StartupPhase::kLoad, loaded - start);
  took(StartupPhase::kWarmup, clock.Now() - loaded);
  return runner;
}

void PrintAddresses(const RpcServer& server, const MetricsServer& metrics) {
  std::printf("worker listening on %s\nmetrics listening on %s\n", server.address().c_str(),
              metrics.address().c_str());
  std::fflush(stdout);
}

}  // namespace paceline

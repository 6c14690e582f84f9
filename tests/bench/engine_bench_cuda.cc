// The CUDA backend through the worker's engine, no drafts, greedy: Llama-3-8B's shape in bf16 with
// random weights made on the GPU, with and without CUDA graphs.
//   cuda_engine_bench [--sequences N]     (the larger batch; default 64)
// A step is bound by reading weights and KV; the floor is their bytes over the speed of a copy
// measured in the same run. Host time: from the moment a step's tokens are read to the moment the
// next step is enqueued.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/clock.h"
#include "worker/engine/engine.h"
#include "worker/runner/cuda_runner_cuda.h"

namespace paceline {
namespace {

constexpr int32_t kPrompt = 1000;
constexpr int32_t kSteps = 96;  // timed, behind some that are not

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> samples) {
  CHECK(!samples.empty());
  std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
  return samples[samples.size() / 2];
}

ModelConfig Llama8B() {
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = 128256;
  c.hidden_size = 4096;
  c.intermediate_size = 14336;
  c.num_layers = 32;
  c.num_heads = 32;
  c.num_kv_heads = 8;
  c.head_dim = 128;
  c.max_context = 8192;
  c.rms_norm_eps = 1e-5f;
  c.rope.theta = 500000;
  return c;
}

// Bytes per second of a copy inside the GPU, read and written.
double CopyBandwidth() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const CudaStream stream = CudaStream::Create().value();
  const DeviceMemory from = DeviceMemory::Allocate(kBytes, "a copy").value();
  const DeviceMemory to = DeviceMemory::Allocate(kBytes, "a copy").value();
  std::vector<double> seconds;
  for (int i = 0; i < 8; ++i) {
    const double start = Now();
    for (int n = 0; n < 4; ++n) {
      CHECK(cudaMemcpyAsync(to.as<uint8_t>(), from.as<uint8_t>(), kBytes, cudaMemcpyDeviceToDevice,
                            stream.get()) == cudaSuccess);
    }
    CHECK(stream.Synchronize("a copy").ok());
    seconds.push_back((Now() - start) / 4);
  }
  return 2.0 * kBytes / Median(seconds);
}

// Passes plans on and takes the time.
class TimedRunner final : public Runner {
 public:
  struct Times {
    std::vector<double> host, step;  // seconds: read to enqueued, read to read
    void Clear() {
      host.clear();
      step.clear();
    }
  };
  TimedRunner(std::unique_ptr<CudaRunner> runner, Times* times)
      : runner_(std::move(runner)), times_(times) {}
  const RunnerInfo& info() const override { return runner_->info(); }
  absl::Status Launch(const StepPlan& plan) override {
    const absl::Status launched = runner_->Launch(plan);
    if (read_ > 0) times_->host.push_back(Now() - read_);
    return launched;
  }
  absl::StatusOr<StepResult> Wait() override {
    auto result = runner_->Wait();
    const double now = Now();
    if (read_ > 0) times_->step.push_back(now - read_);
    read_ = now;
    return result;
  }

 private:
  std::unique_ptr<CudaRunner> runner_;
  Times* times_;
  double read_ = 0;
};

class Bench {
 public:
  Bench(std::shared_ptr<const CudaModel> model, bool graphs) {
    CudaRunnerOptions options;
    options.graphs = graphs;
    options.max_batch_rows = 2048;
    options.max_slots = 256;
    auto made = CudaRunner::Create(std::move(model), OpenCudaDevice().value(), options);
    CHECK(made.ok()) << made.status().ToString();
    memory_text_ = (*made)->memory_text();
    runner_ = made->get();
    EngineOptions engine_options;
    engine_options.prefix_cache = false;
    engine_options.max_batch_rows = options.max_batch_rows;
    engine_options.prefill_chunk = options.max_batch_rows;
    engine_ = std::make_unique<Engine>(engine_options,
                                       std::make_unique<TimedRunner>(*std::move(made), &times_),
                                       nullptr, clock_, nullptr, [this](EngineOutput output) {
                                         for (const auto& d : output.deltas)
                                           tokens_ += d.delta.tokens.size();
                                         finished_ += output.finished.size();
                                       });
  }

  // Steps in which all sequences decode: median seconds of host and step.
  std::pair<double, double> Decode(int32_t sequences) {
    tokens_ = finished_ = 0;
    const auto all = static_cast<size_t>(sequences);
    for (int32_t i = 0; i < sequences; ++i) Submit(kPrompt, 2 * kSteps + sequences);
    // Sequences start one after another; then all decode.
    while (engine_->Snapshot().waiting > 0 || tokens_ < all) Step();
    for (int i = 0; i < 16 + sequences; ++i) Step();
    times_.Clear();
    for (int i = 0; i < kSteps; ++i) Step();
    const std::pair<double, double> medians = {Median(times_.host), Median(times_.step)};
    while (finished_ < all) Step();
    return medians;
  }

  const std::string& memory_text() const { return memory_text_; }
  const StepGraphs& graphs() const { return runner_->graphs(); }

 private:
  void Step() {
    const auto stepped = engine_->Step();
    CHECK(stepped.ok()) << stepped.status().ToString();
  }
  void Submit(int32_t prompt, int32_t output) {
    GenerationRequest request;
    request.request_id = std::to_string(++next_);
    for (int32_t i = 0; i < prompt; ++i) {
      request.prompt.push_back(static_cast<TokenId>((next_ * 977 + i * 131) % 100000));
    }
    request.sampling.temperature = 0;
    request.sampling.max_tokens = output;
    request.sampling.ignore_eos = true;
    request.decoding = DecodingMode::kPlain;
    CHECK(engine_->Submit(next_, std::move(request)).ok());
  }

  const SteadyClock clock_;
  TimedRunner::Times times_;
  CudaRunner* runner_ = nullptr;  // the engine's
  std::string memory_text_;
  size_t tokens_ = 0, finished_ = 0;
  uint64_t next_ = 0;
  std::unique_ptr<Engine> engine_;
};

int64_t FreeBytes() {
  size_t free = 0, total = 0;
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
  return static_cast<int64_t>(free);
}

void Main(int32_t sequences) {
  const auto device = OpenCudaDevice();
  if (!device.ok()) {
    std::printf("skipped: %s\n", std::string(device.status().message()).c_str());
    return;
  }
  const double bandwidth = CopyBandwidth();
  const ModelConfig config = Llama8B();
  const double start = Now();
  const auto model = RandomCudaModel(config, 1);
  CHECK(model.ok()) << model.status().ToString();
  std::printf("%s, copy %.0f GB/s; weights made in %.2f s\n\n", device->name.c_str(),
              bandwidth * 1e-9, Now() - start);
  std::printf(
      "| sequences | graphs | step, ms | floor, ms | of the floor | host, us | graphs: captured, "
      "replayed |\n|---|---|---|---|---|---|---|\n");
  std::string memory;
  double graph_bytes = 0;
  for (bool graphs : {true, false}) {
    Bench bench(*model, graphs);
    const int64_t free = FreeBytes();
    if (graphs) memory = bench.memory_text();
    for (int32_t n : {1, sequences}) {
      if (n != 1 && !graphs) continue;
      const auto [host, step] = bench.Decode(n);
      const double context = kPrompt + 16 + n + kSteps / 2.0;
      const double kv = n * context * 4.0 * config.kv_dim() * config.num_layers;
      const double floor = (static_cast<double>(config.step_weight_bytes()) + kv) / bandwidth;
      std::printf("| %d x %.0f | %s | %.3f | %.3f | %.1f %% | %.0f | %lld, %lld |\n", n, context,
                  graphs ? "on" : "off", step * 1e3, floor * 1e3, 100 * floor / step, host * 1e6,
                  static_cast<long long>(bench.graphs().captured()),
                  static_cast<long long>(bench.graphs().replayed()));
    }
    if (graphs) graph_bytes = static_cast<double>(free - FreeBytes()) / bench.graphs().captured();
  }
  std::printf("\nGPU memory of a graph: %.2f MB\n%s\n", graph_bytes * 1e-6, memory.c_str());
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  int32_t sequences = 64;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--sequences") == 0) sequences = std::atoi(argv[i + 1]);
  }
  paceline::Main(std::max(sequences, 1));
  return 0;
}

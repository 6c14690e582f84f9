// The CPU backend through the worker's engine, no drafts, at the shape of a 22 M model (12 layers,
// hidden 384, 6 / 2 heads of 64, FFN 1024, vocabulary 8192, tied) with random weights:
//   cpu_engine_bench [--threads N] [--seconds S]
// One stream, 16 streams in total, and the time to the first token of a 200-token prompt. The floor
// of one stream is the weights' bytes over the bandwidth read in the same run from a working set of
// the model's size; the peer is llama.cpp on such a machine (2 cores, f16 weights).
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "common/check.h"
#include "common/clock.h"
#include "worker/engine/engine.h"
#include "worker/runner/cpu_runner.h"

namespace paceline {
namespace {

constexpr double kPeerOneStream = 224;   // tokens/s
constexpr double kPeerSixteen = 453;     // tokens/s in total
constexpr double kPeerFirstToken = 156;  // ms

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> samples) {
  CHECK(!samples.empty());
  std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
  return samples[samples.size() / 2];
}

ModelConfig Shape22M() {
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = 8192;
  c.hidden_size = 384;
  c.intermediate_size = 1024;
  c.num_layers = 12;
  c.num_heads = 6;
  c.num_kv_heads = 2;
  c.head_dim = 64;
  c.max_context = 1024;
  c.tie_embeddings = true;
  return c;
}

// Bytes per second that `threads` read from `bytes` of memory, again and again: the best of several
// passes.
double ReadBandwidth(int64_t bytes, int threads) {
  std::vector<uint64_t> words(static_cast<size_t>(bytes / 8), 1);
  kernels::ThreadPool pool(threads);
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  double best = 0;
  for (const double first = Now(); Now() - first < 0.7;) {
    const double start = Now();
    pool.ParallelFor(threads, [&](int64_t t) {
      const size_t begin = words.size() * t / threads;
      const size_t end = words.size() * (t + 1) / threads;
      uint64_t a = 0, b = 0, c = 0, d = 0;
      size_t i = begin;
      for (; i + 32 <= end; i += 32) {
        for (size_t k = 0; k < 32; k += 4) {
          a += words[i + k];
          b ^= words[i + k + 1];
          c += words[i + k + 2];
          d ^= words[i + k + 3];
        }
      }
      sums[t] += a + b + c + d;
    });
    best = std::max(best, static_cast<double>(bytes) / (Now() - start));
  }
  return sums[0] == 0 ? 0 : best;
}

// Requests through one engine, stepped by hand.
class Bench {
 public:
  Bench(std::shared_ptr<const CpuModel> model, int threads) {
    CpuRunnerOptions options;
    options.threads = threads;
    auto runner = CpuRunner::Create(std::move(model), options);
    CHECK(runner.ok()) << runner.status().ToString();
    EngineOptions engine_options;
    engine_options.prefix_cache = false;
    engine_ = std::make_unique<Engine>(engine_options, *std::move(runner), nullptr, clock_, nullptr,
                                       [this](EngineOutput output) {
                                         for (const auto& d : output.deltas)
                                           tokens_ += d.delta.tokens.size();
                                         finished_ += output.finished.size();
                                       });
  }

  // `streams` requests at once; tokens per second behind the last first token.
  double Decode(int32_t streams, int32_t prompt, int32_t output) {
    tokens_ = finished_ = 0;
    for (int32_t i = 0; i < streams; ++i) Submit(prompt, output);
    while (tokens_ < static_cast<size_t>(2 * streams)) Step();
    const size_t before = tokens_;
    const double start = Now();
    while (finished_ < static_cast<size_t>(streams)) Step();
    return static_cast<double>(tokens_ - before) / (Now() - start);
  }

  // Milliseconds from submit to the first token.
  double FirstToken(int32_t prompt) {
    tokens_ = finished_ = 0;
    const double start = Now();
    Submit(prompt, 1);
    while (tokens_ == 0) Step();
    const double took = Now() - start;
    while (finished_ == 0) Step();
    return took * 1e3;
  }

 private:
  void Step() {
    const auto stepped = engine_->Step();
    CHECK(stepped.ok()) << stepped.status().ToString();
  }
  void Submit(int32_t prompt, int32_t output) {
    GenerationRequest request;
    request.request_id = std::to_string(++next_);
    for (int32_t i = 0; i < prompt; ++i) {
      request.prompt.push_back(static_cast<TokenId>((next_ * 977 + i * 131) % 8192));
    }
    request.sampling.temperature = 0;
    request.sampling.max_tokens = output;
    request.decoding = DecodingMode::kPlain;
    CHECK(engine_->Submit(next_, std::move(request)).ok());
  }

  const SteadyClock clock_;
  std::unique_ptr<Engine> engine_;
  size_t tokens_ = 0;
  size_t finished_ = 0;
  uint64_t next_ = 0;
};

// Repeats for some seconds; the median.
double Repeat(double seconds, const std::function<double()>& measure) {
  measure();
  std::vector<double> samples;
  for (const double start = Now(); samples.size() < 3 || Now() - start < seconds;) {
    samples.push_back(measure());
  }
  return Median(samples);
}

void Main(int threads, double seconds) {
  const ModelConfig config = Shape22M();
  const auto model = RandomCpuModel(config, 1);
  const double bandwidth = ReadBandwidth(config.step_weight_bytes(), threads);
  const double floor = bandwidth / static_cast<double>(config.step_weight_bytes());
  Bench bench(model, threads);
  const double one = Repeat(seconds, [&] { return bench.Decode(1, 200, 257); });
  const double sixteen = Repeat(seconds, [&] { return bench.Decode(16, 200, 257); });
  const double first = Repeat(seconds, [&] { return bench.FirstToken(200); });

  std::printf("22 M shape, %.1f MB of weights, %d threads, %s, %.1f GB/s\n",
              static_cast<double>(config.step_weight_bytes()) * 1e-6, threads,
              kernels::IsaName(kernels::DetectIsa()), bandwidth * 1e-9);
  std::printf(
      "| what | floor | ours | of floor | llama.cpp | ratio |\n|---|---|---|---|---|---|\n");
  std::printf("| one stream, tokens/s | %.0f | %.0f | %.0f %% | %.0f | %.2fx |\n", floor, one,
              100 * one / floor, kPeerOneStream, one / kPeerOneStream);
  std::printf("| 16 streams in total, tokens/s | - | %.0f | - | %.0f | %.2fx |\n", sixteen,
              kPeerSixteen, sixteen / kPeerSixteen);
  std::printf("| first token of a 200-token prompt, ms | - | %.1f | - | %.0f | %.2fx |\n", first,
              kPeerFirstToken, kPeerFirstToken / first);
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  double seconds = 3;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--threads") == 0) threads = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--seconds") == 0) seconds = std::atof(argv[i + 1]);
  }
  paceline::Main(std::max(threads, 1), seconds);
  return 0;
}

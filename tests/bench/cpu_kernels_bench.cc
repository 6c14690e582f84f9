// Times every CPU kernel at the shape of a 22 M model (12 layers, hidden 384, 6 / 2 heads of 64,
// FFN 1024, vocabulary 8192) against the machine's own floor, measured in the same run.
//   cpu_kernels_bench [--threads N] [--isa portable|avx2|avx512_bf16] [--rows M]
// Per kernel: microseconds per layer, GB/s of what must be read, GFLOP/s, and the share of the
// floor (bytes over the bandwidth read from a working set of 44 MB). Every layer has weights and KV
// of its own, as in a model: nothing is warmer than it would be.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/sampler.h"

namespace paceline::kernels {
namespace {

constexpr int64_t kLayers = 12;
constexpr int64_t kHidden = 384;
constexpr int64_t kHeads = 6;
constexpr int64_t kKvHeads = 2;
constexpr int64_t kHeadDim = 64;
constexpr int64_t kFfn = 1024;
constexpr int64_t kVocab = 8192;
constexpr int64_t kQkv = (kHeads + 2 * kKvHeads) * kHeadDim;
constexpr int32_t kBlock = 16;
constexpr int32_t kContext = 256;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Median seconds of one call.
double Time(const std::function<void()>& fn) {
  fn();
  std::vector<double> samples;
  const double start = Now();
  while (samples.size() < 5 || (Now() - start < 0.25 && samples.size() < 2000)) {
    const double begin = Now();
    fn();
    samples.push_back(Now() - begin);
  }
  std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
  return samples[samples.size() / 2];
}

// Bytes per second of reading 44 MB again and again.
double ReadBandwidth(int threads) {
  constexpr int64_t kWords = 44'000'000 / 8;
  static const PackedWeights memory(kWords / 64 / 32 * 32, 256);  // huge pages, like the weights
  ThreadPool pool(threads);
  const auto* words = reinterpret_cast<const uint64_t*>(memory.data());
  const int64_t count = static_cast<int64_t>(memory.bytes() / 8);
  std::vector<uint64_t> sums(static_cast<size_t>(threads) * 64);
  const double seconds = Time([&] {
    pool.ParallelFor(threads * 8, [&](int64_t task) {
      uint64_t sum[8] = {};
      const int64_t end = count * (task + 1) / (threads * 8) / 64 * 64;
      for (int64_t i = count * task / (threads * 8) / 64 * 64; i < end; i += 64) {
        // One word of each cache line: the line is what memory delivers.
        for (int j = 0; j < 8; ++j) sum[j] += words[i + j * 8];
      }
      sums[static_cast<size_t>(task)] += std::accumulate(sum, sum + 8, uint64_t{0});
    });
  });
  if (std::accumulate(sums.begin(), sums.end(), uint64_t{0}) == 42) std::printf(" ");
  return static_cast<double>(memory.bytes()) / seconds;
}

std::vector<Bf16> RandomBf16(int64_t count, uint32_t seed) {
  std::minstd_rand random(seed);
  std::vector<Bf16> values(static_cast<size_t>(count));
  for (Bf16& v : values) v = ToBf16(static_cast<float>(random() % 2001) / 1000.0f - 1.0f);
  return values;
}

std::vector<float> RandomFloat(int64_t count, uint32_t seed) {
  std::minstd_rand random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  return values;
}

struct Layer {
  PackedWeights qkv, o, gate_up, down;
  std::vector<Bf16> k_cache, v_cache;
};

class Bench {
 public:
  Bench(int threads, Isa isa) : pool_(threads, isa), rope_({.rotary_dim = kHeadDim}, 4096) {
    for (int64_t l = 0; l < kLayers; ++l) {
      const uint32_t seed = static_cast<uint32_t>(l) + 1;
      Layer layer;
      layer.qkv = PackWeights(RandomBf16(kQkv * kHidden, seed).data(), kQkv, kHidden);
      layer.o = PackWeights(RandomBf16(kHidden * kHeads * kHeadDim, seed).data(), kHidden,
                            kHeads * kHeadDim);
      const std::vector<Bf16> gate = RandomBf16(kFfn * kHidden, seed);
      layer.gate_up = PackGateUp(gate.data(), gate.data(), kFfn, kHidden);
      layer.down = PackWeights(RandomBf16(kHidden * kFfn, seed).data(), kHidden, kFfn);
      layers_.push_back(std::move(layer));
    }
    head_ = PackWeights(RandomBf16(kVocab * kHidden, 99).data(), kVocab, kHidden);
    norm_.assign(kHidden, 1.0f);
  }

  void Run(int64_t m, double bandwidth);

 private:
  void Print(const char* name, double seconds, double bytes, double flops, double floor_seconds) {
    std::printf("  %-22s %9.2f us %8.1f GB/s %8.1f GFLOP/s", name, seconds * 1e6,
                bytes / seconds * 1e-9, flops / seconds * 1e-9);
    if (floor_seconds > 0) std::printf(" %6.1f %% of floor", floor_seconds / seconds * 100);
    std::printf("\n");
  }
  void RunSampler();

  ThreadPool pool_;
  RopeTable rope_;
  std::vector<Layer> layers_;
  PackedWeights head_;
  std::vector<float> norm_;
};

// m = 200: one prompt. Else m streams with one row each and kContext keys before it.
void Bench::Run(int64_t m, double bandwidth) {
  const bool prefill = m == 200;
  const int64_t spans = prefill ? 1 : m;
  const int32_t context = prefill ? 0 : kContext;
  const int32_t rows_per_span = static_cast<int32_t>(m / spans);
  const int32_t table_len = (context + rows_per_span + kBlock - 1) / kBlock;
  KvShape kv{static_cast<int32_t>(spans) * table_len, kBlock, kKvHeads, kHeadDim};
  for (Layer& layer : layers_) {
    layer.k_cache = RandomBf16(kv.elements(), 5);
    layer.v_cache = RandomBf16(kv.elements(), 6);
  }
  std::vector<int32_t> tables(static_cast<size_t>(kv.num_blocks));
  std::iota(tables.begin(), tables.end(), 0);
  std::vector<AttentionSpan> span(static_cast<size_t>(spans));
  std::vector<int64_t> slots;
  std::vector<int32_t> positions;
  for (int64_t s = 0; s < spans; ++s) {
    span[s] = {&tables[s * table_len], context, static_cast<int32_t>(s) * rows_per_span,
               rows_per_span, nullptr};
    for (int32_t r = 0; r < rows_per_span; ++r) {
      slots.push_back(s * table_len * kBlock + context + r);
      positions.push_back(context + r);
    }
  }
  std::vector<float> hidden = RandomFloat(m * kHidden, 1);
  std::vector<Bf16> normed = RandomBf16(m * kHidden, 2);
  std::vector<float> qkv = RandomFloat(m * kQkv, 3);
  std::vector<Bf16> attended = RandomBf16(m * kHeads * kHeadDim, 4);
  std::vector<Bf16> inner = RandomBf16(m * kFfn, 5);
  std::vector<float> logits(static_cast<size_t>((prefill ? 1 : m) * kVocab));

  const auto linear = [&](const PackedWeights& w, const Bf16* x, float* y, Bf16* y_bf16,
                          LinearOutput output, int64_t rows) {
    LinearParams p;
    p.weights = &w;
    p.x = x;
    p.y_f32 = y;
    p.y_bf16 = y_bf16;
    p.m = rows;
    p.output = output;
    if (output == LinearOutput::kSwiGlu) p.n = kFfn;
    if (Linear(p, pool_) != CpuResult::kOk) std::abort();
  };
  const auto norm = [&] {
    RmsNormParams p{.x = hidden.data(), .weight = norm_.data(), .y_bf16 = normed.data()};
    p.rows = m;
    p.dim = kHidden;
    if (RmsNorm(p, pool_) != CpuResult::kOk) std::abort();
  };
  const auto do_qkv = [&](Layer& l) {
    linear(l.qkv, normed.data(), qkv.data(), nullptr, LinearOutput::kFloat, m);
  };
  const auto do_rope = [&](Layer& l) {
    RopeParams r{&rope_, qkv.data(), positions.data(), m, kHeads + kKvHeads, kHeadDim, kQkv};
    if (Rope(r, pool_) != CpuResult::kOk) std::abort();
    StoreKvParams s{kv, l.k_cache.data(), l.v_cache.data()};
    s.k = qkv.data() + kHeads * kHeadDim;
    s.v = s.k + kKvHeads * kHeadDim;
    s.slots = slots.data();
    s.rows = m;
    s.k_stride = s.v_stride = kQkv;
    if (StoreKv(s, pool_) != CpuResult::kOk) std::abort();
  };
  const auto attention = [&](Layer& l) {
    AttentionParams a;
    a.kv = kv;
    a.k_cache = l.k_cache.data();
    a.v_cache = l.v_cache.data();
    a.q = qkv.data();
    a.q_stride = kQkv;
    a.out = attended.data();
    a.spans = span.data();
    a.num_spans = static_cast<int32_t>(spans);
    a.num_heads = kHeads;
    a.scale = 0.125f;
    if (Attention(a, pool_) != CpuResult::kOk) std::abort();
  };
  const auto do_o = [&](Layer& l) {
    linear(l.o, attended.data(), hidden.data(), nullptr, LinearOutput::kAddFloat, m);
  };
  const auto gate_up = [&](Layer& l) {
    linear(l.gate_up, normed.data(), nullptr, inner.data(), LinearOutput::kSwiGlu, m);
  };
  const auto down = [&](Layer& l) {
    linear(l.down, inner.data(), hidden.data(), nullptr, LinearOutput::kAddFloat, m);
  };
  const auto head = [&] {
    linear(head_, normed.data(), logits.data(), nullptr, LinearOutput::kFloat, prefill ? 1 : m);
  };

  std::printf("M = %ld (%s)\n", static_cast<long>(m),
              prefill ? "one prompt, logits of its last row" : "decode, 256 keys before each row");
  const double dm = static_cast<double>(m);
  const auto per_layer = [&](const char* name, auto fn, double weights, double flops) {
    const double seconds = Time([&] {
                             for (Layer& l : layers_) fn(l);
                           }) /
                           kLayers;
    Print(name, seconds, weights, flops, weights / bandwidth);
  };
  const auto plain = [&](const char* name, const PackedWeights& w, auto fn) {
    const double elements = static_cast<double>(w.n() * w.k());
    per_layer(name, fn, elements * 2, 2 * elements * dm);
  };
  per_layer(
      "rms_norm", [&](Layer&) { norm(); }, 0, 4 * dm * kHidden);
  plain("qkv", layers_[0].qkv, do_qkv);
  per_layer("rope + store_kv", do_rope, 0, 0);
  const double keys = prefill ? (dm + 1) / 2 * dm : dm * (kContext + 1);
  per_layer("attention", attention, prefill ? 0 : dm * kContext * kKvHeads * kHeadDim * 4,
            keys * kHeads * kHeadDim * 4);
  plain("o + residual", layers_[0].o, do_o);
  plain("gate_up + swiglu", layers_[0].gate_up, gate_up);
  plain("down + residual", layers_[0].down, down);
  const double head_rows = prefill ? 1 : dm;
  const double head_elements = static_cast<double>(kVocab * kHidden);
  const double head_seconds = Time(head);
  Print("head", head_seconds, head_elements * 2, 2 * head_elements * head_rows,
        head_elements * 2 / bandwidth);

  const double step = Time([&] {
    for (Layer& l : layers_) {
      norm();
      do_qkv(l);
      do_rope(l);
      attention(l);
      do_o(l);
      norm();
      gate_up(l);
      down(l);
    }
    norm();
    head();
  });
  double weights = head_elements * 2;
  for (const Layer& l : layers_) {
    weights +=
        static_cast<double>(l.qkv.bytes() + l.o.bytes() + l.gate_up.bytes() + l.down.bytes());
  }
  Print("whole step", step, weights, weights * dm, weights / bandwidth);
  std::printf("  = %.0f rows/s\n", dm / step);
  if (m == 1) RunSampler();
}

void Bench::RunSampler() {
  const std::vector<float> logits = RandomFloat(kVocab, 8);
  SampleParams p;
  p.logits = logits.data();
  p.vocab_size = kVocab;
  SampleOutput out;
  const auto time = [&](const char* name) {
    const double seconds = Time([&] {
      ++p.position;
      if (Sample(&p, 1, &out, pool_) != CpuResult::kOk) std::abort();
    });
    std::printf("  sample %-15s %9.2f us\n", name, seconds * 1e6);
  };
  p.temperature = 0;
  time("greedy");
  p.temperature = 1;
  time("T=1");
  p.top_logprobs = 5;
  time("T=1, logprobs");
  p.top_logprobs = -1;
  p.top_k = 50;
  time("top-k 50");
  p.top_k = 0;
  p.top_p = 0.9f;
  time("top-p 0.9 (flat)");
  p.top_p = 1;
  p.min_p = 0.05f;
  time("min-p 0.05");
}

int Main(int argc, char** argv) {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  Isa isa = DetectIsa();
  std::vector<int64_t> rows = {1, 4, 16, 64, 200};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--threads") threads = std::max(1, std::atoi(argv[i + 1]));
    if (flag == "--rows") rows = {std::max(1, std::atoi(argv[i + 1]))};
    for (Isa one : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512Bf16}) {
      if (flag == "--isa" && IsaName(one) == std::string(argv[i + 1])) isa = one;
    }
  }
  if (!IsaSupported(isa)) {
    std::fprintf(stderr, "this machine does not run %s\n", IsaName(isa));
    return 1;
  }
  std::printf("isa %s, threads %d\n", IsaName(isa), threads);
  double bandwidth = 0;
  for (int t = 1; t <= threads; ++t) {
    bandwidth = ReadBandwidth(t);
    std::printf("read bandwidth, 44 MB, %d thread(s): %.1f GB/s\n", t, bandwidth * 1e-9);
  }
  Bench bench(threads, isa);
  for (int64_t m : rows) bench.Run(m, bandwidth);
  return 0;
}

}  // namespace
}  // namespace paceline::kernels

int main(int argc, char** argv) { return paceline::kernels::Main(argc, argv); }

// Microseconds and rates of the CUDA kernels on random data, beside the copy ceiling of the same
// run. Weights and KV rotate through more memory than the L2 cache holds. One table per area.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/sampler.h"

namespace paceline::kernels {
namespace {

constexpr int64_t kRotateBytes = int64_t{512} << 20;

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "error: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    Must(cudaMalloc(&data_, static_cast<size_t>(count) * sizeof(T)), "cudaMalloc");
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(static_cast<int64_t>(values.size())) {
    Must(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
         "cudaMemcpy");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  T* get() const { return static_cast<T*>(data_); }

 private:
  void* data_ = nullptr;
};

// Random bf16 of [-1, 1): a drawn megabyte, repeated.
void FillRandom(Bf16* to, int64_t count) {
  static const std::vector<Bf16> piece = [] {
    std::mt19937_64 rng(1);
    std::vector<Bf16> values(1 << 20);
    for (Bf16& v : values) v = ToBf16(static_cast<float>(rng() >> 40) * 0x1p-23f - 1.0f);
    return values;
  }();
  for (int64_t at = 0; at < count; at += static_cast<int64_t>(piece.size())) {
    const auto part =
        static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(piece.size()), count - at));
    Must(cudaMemcpy(to + at, piece.data(), part * sizeof(Bf16), cudaMemcpyHostToDevice), "fill");
  }
}

// The median of several runs of `repeat` launches, in microseconds per launch.
double Microseconds(int repeat, const std::function<void(int)>& launch) {
  cudaEvent_t from, to;
  Must(cudaEventCreate(&from), "event");
  Must(cudaEventCreate(&to), "event");
  for (int i = 0; i < repeat; ++i) launch(i);
  std::vector<double> times;
  for (int run = 0; run < 7; ++run) {
    Must(cudaEventRecord(from, nullptr), "event");
    for (int i = 0; i < repeat; ++i) launch(i);
    Must(cudaEventRecord(to, nullptr), "event");
    Must(cudaEventSynchronize(to), "benchmark");
    float milliseconds = 0;
    Must(cudaEventElapsedTime(&milliseconds, from, to), "event");
    times.push_back(milliseconds * 1e3 / repeat);
  }
  std::ranges::sort(times);
  cudaEventDestroy(from);
  cudaEventDestroy(to);
  return times[times.size() / 2];
}

// GB/s of a device copy, read and written bytes counted.
double CopyCeiling() {
  const int64_t bytes = int64_t{1} << 30;
  Buffer<uint8_t> from(bytes), to(bytes);
  Must(cudaMemset(from.get(), 1, static_cast<size_t>(bytes)), "memset");
  const double us = Microseconds(5, [&](int) {
    Must(cudaMemcpyAsync(to.get(), from.get(), static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                         nullptr),
         "copy");
  });
  return 2.0 * static_cast<double>(bytes) / us * 1e-3;
}

void BenchDecode(double ceiling, int32_t batch, int32_t context, int32_t rows) {
  const int32_t heads = 32, kv_heads = 8, dim = 128, block = 16;
  const int32_t per_sequence = (context + rows + block - 1) / block;
  const int64_t set_bytes = int64_t{batch} * per_sequence * block * kv_heads * dim * 4;
  const int32_t sets = static_cast<int32_t>(std::max<int64_t>(1, kRotateBytes / set_bytes));
  const CudaKvShape shape{sets * batch * per_sequence, block, kv_heads, dim};
  Buffer<Bf16> k(shape.elements()), v(shape.elements());
  FillRandom(k.get(), shape.elements());
  FillRandom(v.get(), shape.elements());
  std::vector<int32_t> tables(static_cast<size_t>(shape.num_blocks));
  std::iota(tables.begin(), tables.end(), 0);
  std::shuffle(tables.begin(), tables.end(), std::mt19937_64(7));
  std::vector<AttentionSpanInput> spans;
  for (int32_t s = 0; s < batch; ++s) {
    spans.push_back({.table_begin = s * per_sequence,
                     .context_len = context,
                     .row_begin = s * rows,
                     .num_rows = rows});
  }
  AttentionPlan plan;
  PlanAttention(spans, {heads, kv_heads, dim, 0, 1 << 16}, &plan);
  const int64_t unit = int64_t{kv_heads} * kAttentionUnit;
  Buffer<int32_t> d_tables(tables), d_visible(plan.visible);
  Buffer<CudaAttentionSpan> d_spans(plan.spans);
  Buffer<CudaAttentionItem> small(plan.small_items), medium(plan.medium_items),
      large(plan.large_items);
  Buffer<CudaAttentionSplit> splits(plan.splits);
  Buffer<float> partials(plan.num_units * unit * dim + 1), stats(plan.num_units * unit * 2 + 1);
  Buffer<Bf16> q(int64_t{batch} * rows * heads * dim), out(int64_t{batch} * rows * heads * dim);
  FillRandom(q.get(), int64_t{batch} * rows * heads * dim);
  CudaAttentionParams p;
  p.shape = shape;
  p.k_cache = k.get();
  p.v_cache = v.get();
  p.q = q.get();
  p.out = out.get();
  p.spans = d_spans.get();
  p.visible = d_visible.get();
  p.small_items = small.get();
  p.medium_items = medium.get();
  p.large_items = large.get();
  p.splits = splits.get();
  p.num_small_items = static_cast<int32_t>(plan.small_items.size());
  p.num_medium_items = static_cast<int32_t>(plan.medium_items.size());
  p.num_large_items = static_cast<int32_t>(plan.large_items.size());
  p.num_splits = static_cast<int32_t>(plan.splits.size());
  p.partials = partials.get();
  p.partial_stats = stats.get();
  p.num_heads = heads;
  p.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const double us = Microseconds(20, [&](int i) {
    p.block_tables = d_tables.get() + int64_t{i % sets} * batch * per_sequence;
    Must(CudaAttention(p, nullptr), "attention");
  });
  const double bytes = static_cast<double>(batch) * (context + rows) * kv_heads * dim * 4;
  std::printf("| B%-3d x %-6d rows %-2d | %8.1f | %7.0f | %5.1f |\n", batch, context, rows, us,
              bytes / us * 1e-3, 100 * bytes / us * 1e-3 / ceiling);
}

void BenchPrefill(int32_t batch, int32_t length) {
  const int32_t heads = 32, kv_heads = 8, dim = 128, block = 16;
  const int32_t per_sequence = (length + block - 1) / block;
  const CudaKvShape shape{batch * per_sequence, block, kv_heads, dim};
  Buffer<Bf16> k(shape.elements()), v(shape.elements());
  FillRandom(k.get(), shape.elements());
  FillRandom(v.get(), shape.elements());
  std::vector<int32_t> tables(static_cast<size_t>(shape.num_blocks));
  std::iota(tables.begin(), tables.end(), 0);
  std::shuffle(tables.begin(), tables.end(), std::mt19937_64(7));
  std::vector<AttentionSpanInput> spans;
  for (int32_t s = 0; s < batch; ++s) {
    spans.push_back({.table_begin = s * per_sequence, .row_begin = s * length, .num_rows = length});
  }
  AttentionPlan plan;
  PlanAttention(spans, {heads, kv_heads, dim, 0, 0}, &plan);
  Buffer<int32_t> d_tables(tables), d_visible(plan.visible);
  Buffer<CudaAttentionSpan> d_spans(plan.spans);
  Buffer<CudaAttentionItem> large(plan.large_items);
  const int64_t width = int64_t{batch} * length * heads * dim;
  Buffer<Bf16> q(width), out(width);
  FillRandom(q.get(), width);
  CudaAttentionParams p;
  p.shape = shape;
  p.k_cache = k.get();
  p.v_cache = v.get();
  p.q = q.get();
  p.out = out.get();
  p.block_tables = d_tables.get();
  p.spans = d_spans.get();
  p.visible = d_visible.get();
  p.large_items = large.get();
  p.num_large_items = static_cast<int32_t>(plan.large_items.size());
  p.num_heads = heads;
  p.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const double us = Microseconds(3, [&](int) { Must(CudaAttention(p, nullptr), "attention"); });
  const double flops = 2.0 * batch * heads * dim * static_cast<double>(length) * (length + 1);
  std::printf("| B%-3d x %-6d | %9.1f | %7.1f |\n", batch, length, us, flops / us * 1e-6);
}

struct Matrix {
  const char* name;
  int32_t n, k;
  CudaLinearOutput output;
};

// Of the output that the decoder takes.
void BenchLinear(double ceiling, const Matrix& matrix, int32_t m) {
  const int32_t n = matrix.n, k = matrix.k;
  const int64_t elements = int64_t{n} * k;
  const int32_t copies = static_cast<int32_t>(std::max<int64_t>(1, kRotateBytes / (2 * elements)));
  Buffer<Bf16> w(copies * elements), x(int64_t{m} * k);
  Buffer<float> y(int64_t{m} * n);
  FillRandom(w.get(), copies * elements);
  FillRandom(x.get(), int64_t{m} * k);
  CudaLinearParams p;
  p.x = x.get();
  p.y_f32 = y.get();
  p.y_bf16 = reinterpret_cast<Bf16*>(y.get());
  p.m = m;
  p.n = n;
  p.k = k;
  p.output = matrix.output;
  const double us = Microseconds(m <= 256 ? 20 : 4, [&](int i) {
    p.w = w.get() + i % copies * elements;
    Must(CudaLinear(p, nullptr), "linear");
  });
  const double bytes = 2.0 * static_cast<double>(elements);
  std::printf("| %-8s M=%-5d | %8.1f | %7.0f | %5.1f | %6.1f |\n", matrix.name, m, us,
              bytes / us * 1e-3, 100 * bytes / us * 1e-3 / ceiling,
              2.0 * m * static_cast<double>(elements) / us * 1e-6);
}

void BenchAttention(double ceiling) {
  std::printf("\nattention over paged KV, 32/8 heads of 128, blocks of 16\n");
  std::printf("| sequences x context   |       us |    GB/s |     %% |\n|---|---|---|---|\n");
  BenchDecode(ceiling, 64, 2048, 1);
  BenchDecode(ceiling, 64, 8192, 1);
  BenchDecode(ceiling, 16, 8192, 1);
  BenchDecode(ceiling, 1, 8192, 1);
  BenchDecode(ceiling, 1, 1024, 1);
  BenchDecode(ceiling, 32, 4096, 1);
  BenchDecode(ceiling, 32, 4096, 4);
  BenchDecode(ceiling, 32, 4096, 8);
  std::printf("\nprefill attention, causal, the same heads\n");
  std::printf("| sequences x rows |  us | TFLOP/s |\n|---|---|---|\n");
  for (int32_t batch : {16, 8, 4, 2, 1}) BenchPrefill(batch, 16384 / batch);
}

void BenchLinears(double ceiling) {
  std::printf("\nlinear, bf16 weights of Llama-3-8B\n");
  std::printf(
      "| matrix, rows         |  us | GB/s of weights | %% | TFLOP/s |\n|---|---|---|---|---|\n");
  for (const Matrix& m : {Matrix{"qkv", 6144, 4096, CudaLinearOutput::kBf16},
                          Matrix{"o", 4096, 4096, CudaLinearOutput::kAddFloat},
                          Matrix{"gate_up", 28672, 4096, CudaLinearOutput::kSwiGlu},
                          Matrix{"down", 4096, 14336, CudaLinearOutput::kAddFloat},
                          Matrix{"lm_head", 128256, 4096, CudaLinearOutput::kFloat}}) {
    for (int32_t rows : {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096}) {
      if (m.n < 65536 || rows <= 64) BenchLinear(ceiling, m, rows);
    }
  }
}

void BenchSampler(double ceiling, const char* name, int32_t rows, CudaSampleRow row) {
  const int32_t vocab = 128256;
  std::mt19937_64 rng(3);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(static_cast<size_t>(rows) * vocab);
  for (float& l : logits) l = normal(rng);
  std::vector<CudaSampleRow> all;
  for (int32_t i = 0; i < rows; ++i) {
    row.logits_row = i;
    row.seed = static_cast<uint64_t>(i);
    all.push_back(row);
  }
  Buffer<float> d_logits(logits), values(int64_t{rows} * vocab), scores(int64_t{rows} * vocab);
  Buffer<CudaSampleRow> d_rows(all);
  Buffer<CudaSampleResult> results(rows);
  Buffer<uint8_t> workspace(CudaSampleWorkspaceBytes(rows, vocab));
  CudaSampleParams p;
  p.logits = d_logits.get();
  p.vocab_size = vocab;
  p.rows = d_rows.get();
  p.num_rows = rows;
  p.values = values.get();
  p.scores = scores.get();
  p.workspace = workspace.get();
  p.results = results.get();
  const double us = Microseconds(10, [&](int) { Must(CudaSample(p, nullptr), "sampler"); });
  const double bytes = 4.0 * rows * vocab;
  std::printf("| %-20s B%-3d | %8.1f | %7.0f | %5.1f |\n", name, rows, us, bytes / us * 1e-3,
              100 * bytes / us * 1e-3 / ceiling);
}

void BenchSamplers(double ceiling) {
  std::printf("\nsampler, 128256 ids\n");
  std::printf("| rule                      |  us | GB/s of logits | %% |\n|---|---|---|---|\n");
  CudaSampleRow row;
  row.temperature = 0;
  BenchSampler(ceiling, "greedy", 64, row);
  row.temperature = 1;
  BenchSampler(ceiling, "temperature", 64, row);
  row.top_k = 50;
  BenchSampler(ceiling, "top-k", 64, row);
  row.top_p = 0.95f;
  BenchSampler(ceiling, "top-k and top-p", 64, row);
  BenchSampler(ceiling, "top-k and top-p", 1, row);
  row.top_k = 0;
  row.num_candidates = 8;
  BenchSampler(ceiling, "top-p, 8 candidates", 64, row);
  row.temperature = 0.5f;  // few ids are left, as of a model's logits
  BenchSampler(ceiling, "the same, sharper", 64, row);
  row.top_p = 1.0f;
  row.temperature = 1;
  BenchSampler(ceiling, "8 candidates", 64, row);
  row.num_candidates = 0;
  BenchSampler(ceiling, "temperature", 1, row);
  row.temperature = 0;
  BenchSampler(ceiling, "greedy", 1, row);
}

// only: "attention", "linear", "sampler", or "" for everything.
void Main(std::string_view only) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("skipped: no GPU\n");
    return;
  }
  cudaDeviceProp properties = {};
  Must(cudaGetDeviceProperties(&properties, 0), "device");
  const double ceiling = CopyCeiling();
  std::printf("%s, copy ceiling %.0f GB/s (read and written)\n", properties.name, ceiling);

  if (only.empty() || only == "attention") BenchAttention(ceiling);
  if (only.empty() || only == "linear") BenchLinears(ceiling);
  if (only.empty() || only == "sampler") BenchSamplers(ceiling);
}

}  // namespace
}  // namespace paceline::kernels

int main(int argc, char** argv) {
  paceline::kernels::Main(argc > 1 ? argv[1] : "");
  return 0;
}

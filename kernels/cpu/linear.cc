#include "kernels/cpu/linear.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/isa_kernels.h"

namespace paceline::kernels {
namespace {

constexpr int64_t kPanel = PackedWeights::kPanel;
constexpr size_t kHugePage = size_t{2} << 20;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t PackedIndex(int64_t row, int64_t k, int64_t pairs) {
  return ((row / kPanel * pairs + k / 2) * kPanel + row % kPanel) * 2 + k % 2;
}

}  // namespace

void PackedWeights::Free::operator()(Bf16* p) const { std::free(p); }

PackedWeights::PackedWeights(int64_t n, int64_t k) : n_(n), k_(k) {
  const size_t size = bytes();
  if (size == 0) return;
  const size_t alignment = size >= kHugePage ? kHugePage : 64;
  const size_t rounded = (size + alignment - 1) / alignment * alignment;
  data_.reset(static_cast<Bf16*>(std::aligned_alloc(alignment, rounded)));
  if (data_ == nullptr) std::abort();
  if (alignment == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
  std::memset(static_cast<void*>(data_.get()), 0, rounded);
}

size_t PackedWeights::bytes() const {
  return static_cast<size_t>(CeilDiv(n_, kPanel) * kPanel * CeilDiv(k_, 2) * 2) * sizeof(Bf16);
}

void PackedWeights::Pack(const Bf16* src, int64_t row_begin, int64_t num_rows) {
  const int64_t pairs = CeilDiv(k_, 2);
  for (int64_t r = 0; r < num_rows; ++r) {
    const Bf16* row = src + r * k_;
    for (int64_t k = 0; k < k_; ++k) {
      data_[static_cast<size_t>(PackedIndex(row_begin + r, k, pairs))] = row[k];
    }
  }
}

void PackedWeights::PackFloat(const float* src, int64_t row_begin, int64_t num_rows) {
  const int64_t pairs = CeilDiv(k_, 2);
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t k = 0; k < k_; ++k) {
      data_[static_cast<size_t>(PackedIndex(row_begin + r, k, pairs))] = ToBf16(src[r * k_ + k]);
    }
  }
}

void PackedWeights::UnpackRow(int64_t row, Bf16* dst) const {
  const int64_t pairs = CeilDiv(k_, 2);
  for (int64_t k = 0; k < k_; ++k) dst[k] = data_[static_cast<size_t>(PackedIndex(row, k, pairs))];
}

PackedWeights PackWeights(const Bf16* src, int64_t n, int64_t k) {
  PackedWeights packed(n, k);
  packed.Pack(src, 0, n);
  return packed;
}

PackedWeights PackGateUp(const Bf16* gate, const Bf16* up, int64_t n, int64_t k) {
  PackedWeights packed(CeilDiv(n, kPanel) * 2 * kPanel, k);
  for (int64_t row = 0; row < n; row += kPanel) {
    const int64_t count = std::min(kPanel, n - row);
    packed.Pack(gate + row * k, row * 2, count);
    packed.Pack(up + row * k, row * 2 + kPanel, count);
  }
  return packed;
}

CpuResult Linear(const LinearParams& params, ThreadPool& pool) {
  if (params.weights == nullptr) return CpuResult::kBadShape;
  const PackedWeights& weights = *params.weights;
  const bool glu = params.output == LinearOutput::kSwiGlu;
  const bool to_bf16 = glu || params.output == LinearOutput::kBf16;
  LinearTask whole;
  whole.weights = weights.data();
  whole.x = params.x;
  whole.bias = params.bias;
  whole.y_f32 = params.y_f32;
  whole.y_bf16 = params.y_bf16;
  whole.k = weights.k();
  whole.n = params.n != 0 ? params.n : weights.n();
  whole.x_stride = params.x_stride != 0 ? params.x_stride : whole.k;
  whole.y_stride = params.y_stride != 0 ? params.y_stride : whole.n;
  whole.output = params.output;
  if (params.m < 0 || whole.n < 0 || whole.x_stride < whole.k || whole.y_stride < whole.n) {
    return CpuResult::kBadShape;
  }
  if (glu ? (params.n <= 0 || params.bias != nullptr ||
             weights.n() != CeilDiv(params.n, kPanel) * 2 * kPanel)
          : whole.n > weights.n()) {
    return CpuResult::kBadShape;
  }
  if (params.m == 0 || whole.n == 0) return CpuResult::kOk;
  if (whole.k > 0 && params.x == nullptr) return CpuResult::kBadShape;
  if (to_bf16 ? params.y_bf16 == nullptr : params.y_f32 == nullptr) return CpuResult::kBadShape;

  // Units of two panels (64 columns, or 32 of gate and up). With few rows the weights' stream is
  // what costs: a few long contiguous runs per thread. With many rows, rows are cut too.
  const int64_t panels = (glu ? 2 : 1) * CeilDiv(whole.n, kPanel);
  const int64_t units = CeilDiv(panels, 2);
  const int64_t threads = pool.num_threads();
  const int64_t weight_bytes = panels * kPanel * whole.k * 2;
  const int64_t work = weight_bytes * (1 + params.m / 8);
  int64_t tasks = threads == 1 ? 1 : std::min<int64_t>({units, threads * 4, work / 16384});
  tasks = std::max<int64_t>(tasks, 1);
  int64_t row_tasks = 1;
  if (threads > 1 && tasks < threads * 4 && params.m >= 48 && work > 65536) {
    row_tasks = std::min(CeilDiv(threads * 4, tasks), params.m / 24);
  }
  const IsaKernels& kernels = KernelsFor(pool.isa());
  pool.ParallelFor(tasks * row_tasks, [&](int64_t i) {
    LinearTask task = whole;
    const int64_t column_task = i / row_tasks;
    const int64_t row_task = i % row_tasks;
    task.panel_begin = units * column_task / tasks * 2;
    task.panel_end = std::min(units * (column_task + 1) / tasks * 2, panels);
    task.row_begin = params.m * row_task / row_tasks;
    task.row_end = params.m * (row_task + 1) / row_tasks;
    kernels.linear(task);
  });
  return CpuResult::kOk;
}

}  // namespace paceline::kernels

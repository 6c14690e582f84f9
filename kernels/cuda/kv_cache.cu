#include "kernels/cuda/kv_cache.h"

#include "kernels/cuda/launch.cuh"

namespace paceline::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxPairs = 256 / 2 / kWarp;  // pairs (i, i + head_dim / 2) of a lane

// One warp per (row, head); heads of q, then k, then v.
__global__ void __launch_bounds__(kThreads) RopeKvKernel(CudaRopeKvParams p) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int heads = p.num_heads + 2 * p.shape.kv_heads;
  const int64_t item = int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  LetNextStart();
  WaitForPrevious();
  if (item >= int64_t{p.rows} * heads) return;  // whole warps
  const int64_t row = item / heads;
  const int head = static_cast<int>(item % heads);
  const int dim = p.shape.head_dim;
  const int half = dim / 2;
  const bool is_q = head < p.num_heads;
  const bool is_v = head >= p.num_heads + p.shape.kv_heads;
  const float* x = p.qkv + item * dim;

  float low[kMaxPairs], high[kMaxPairs];
  float squares = 0;
  for (int j = 0; j < kMaxPairs; ++j) {
    const int i = j * kWarp + lane;
    low[j] = i < half ? x[i] : 0.0f;
    high[j] = i < half ? x[half + i] : 0.0f;
    squares += low[j] * low[j] + high[j] * high[j];
  }
  const float* norm = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
  if (norm != nullptr) {
    const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(dim) + p.eps);
    for (int j = 0; j < kMaxPairs; ++j) {
      const int i = j * kWarp + lane;
      if (i >= half) continue;
      low[j] = low[j] * scale * norm[i];
      high[j] = high[j] * scale * norm[half + i];
    }
  }
  if (!is_v) {
    const float* turn = p.cos_sin + int64_t{p.positions[row]} * dim;
    for (int j = 0; j < kMaxPairs; ++j) {
      const int i = j * kWarp + lane;
      if (i >= half) continue;
      const float c = turn[i], s = turn[half + i];
      const float a = low[j], b = high[j];
      low[j] = __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s));
      high[j] = __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s));
    }
  }

  Bf16* to;
  if (is_q) {
    to = p.q + (row * p.num_heads + head) * dim;
  } else {
    const int64_t slot = p.slots[row];
    if (slot < 0) return;
    const int kv_head = (head - p.num_heads) % p.shape.kv_heads;
    to = (is_v ? p.v_cache : p.k_cache) + p.shape.Index(slot, kv_head);
  }
  for (int j = 0; j < kMaxPairs; ++j) {
    const int i = j * kWarp + lane;
    if (i >= half) continue;
    to[i] = ToBf16(low[j]);
    to[half + i] = ToBf16(high[j]);
  }
}

// A thread owns 16 bytes of a slot in one cache and walks a group's copies in order: no two threads
// ever touch the same bytes, so a copy sees what the one before it wrote.
__global__ void __launch_bounds__(kThreads) CopyKvKernel(CudaCopyKvParams p) {
  const int vectors = p.shape.head_dim / 8;
  const int64_t columns = int64_t{p.num_caches} * p.shape.kv_heads * vectors;
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= columns) return;
  const int vector = static_cast<int>(column % vectors);
  const int head = static_cast<int>(column / vectors % p.shape.kv_heads);
  Bf16* cache = p.caches + column / vectors / p.shape.kv_heads * p.shape.elements() + vector * 8;
  const int32_t end = p.group_begin[blockIdx.y + 1];
  for (int32_t i = p.group_begin[blockIdx.y]; i < end; ++i) {
    const CudaKvSlotCopy copy = p.copies[i];
    // As memmove: upwards or downwards, so that an overlap is read before it is written.
    for (int32_t n = 0; n < copy.count; ++n) {
      const int32_t at = copy.dst <= copy.src ? n : copy.count - 1 - n;
      *reinterpret_cast<uint4*>(cache + p.shape.Index(copy.dst + at, head)) =
          *reinterpret_cast<const uint4*>(cache + p.shape.Index(copy.src + at, head));
    }
  }
}

}  // namespace

cudaError_t CudaRopeKv(const CudaRopeKvParams& p, cudaStream_t stream) {
  if (!p.shape.Valid() || p.rows < 0 || p.num_heads <= 0) return cudaErrorInvalidValue;
  if (p.rows == 0) return cudaSuccess;
  if (p.k_cache == nullptr || p.v_cache == nullptr || p.qkv == nullptr || p.q == nullptr ||
      p.cos_sin == nullptr || p.positions == nullptr || p.slots == nullptr) {
    return cudaErrorInvalidValue;
  }
  const int64_t items = int64_t{p.rows} * (p.num_heads + 2 * p.shape.kv_heads);
  const auto blocks = static_cast<unsigned>(CeilDiv<int64_t>(items, kWarps));
  static const LaunchOrder order = OverlapIfAble(RopeKvKernel);
  return Launch(RopeKvKernel, dim3(blocks), kThreads, 0, p, stream, order);
}

cudaError_t CudaCopyKv(const CudaCopyKvParams& p, cudaStream_t stream) {
  if (!p.shape.Valid() || p.num_caches < 0 || p.num_groups < 0 || p.num_groups > 65535) {
    return cudaErrorInvalidValue;
  }
  if (p.num_groups == 0 || p.num_caches == 0) return cudaSuccess;
  if (p.caches == nullptr || p.copies == nullptr || p.group_begin == nullptr) {
    return cudaErrorInvalidValue;
  }
  const int64_t columns = int64_t{p.num_caches} * p.shape.kv_heads * (p.shape.head_dim / 8);
  const auto blocks = static_cast<unsigned>(CeilDiv<int64_t>(columns, kThreads));
  return Launch(CopyKvKernel, dim3(blocks, static_cast<unsigned>(p.num_groups)), kThreads, 0, p,
                stream);
}

}  // namespace paceline::kernels

#include "kernels/cpu/elementwise.h"

#include <vector>

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/row_blocks.h"

namespace paceline::kernels {
namespace {

constexpr int64_t kPiece = 4096;  // elements of a flat array per task

template <typename Fn>
void ForPieces(int64_t count, ThreadPool& pool, Fn&& fn) {
  ForRows((count + kPiece - 1) / kPiece, kPiece, pool, [&](int64_t piece) {
    const int64_t begin = piece * kPiece;
    fn(begin, std::min(kPiece, count - begin));
  });
}

}  // namespace

CpuResult Embed(const EmbedParams& p, ThreadPool& pool) {
  if (p.rows < 0 || p.dim < 0) return CpuResult::kBadShape;
  if (p.rows == 0 || p.dim == 0) return CpuResult::kOk;
  if ((p.table == nullptr) == (p.packed == nullptr) || p.ids == nullptr || p.y == nullptr) {
    return CpuResult::kBadShape;
  }
  if (p.packed != nullptr && p.packed->k() != p.dim) return CpuResult::kBadShape;
  const IsaKernels& kernels = KernelsFor(pool.isa());
  ForRows(p.rows, p.dim, pool, [&](int64_t row) {
    const int64_t id = p.ids[row];
    const Bf16* src = nullptr;
    if (p.table != nullptr) {
      src = p.table + id * p.dim;
    } else {
      static thread_local std::vector<Bf16> unpacked;
      unpacked.resize(static_cast<size_t>(p.dim));
      p.packed->UnpackRow(id, unpacked.data());
      src = unpacked.data();
    }
    kernels.from_bf16(src, p.y + row * p.dim, p.dim, p.scale);
  });
  return CpuResult::kOk;
}

CpuResult SwiGlu(const SwiGluParams& p, ThreadPool& pool) {
  const int64_t stride = p.x_stride != 0 ? p.x_stride : p.dim;
  if (p.rows < 0 || p.dim < 0 || stride < p.dim) return CpuResult::kBadShape;
  if (p.rows == 0 || p.dim == 0) return CpuResult::kOk;
  if (p.gate == nullptr || p.up == nullptr || p.y == nullptr) return CpuResult::kBadShape;
  const IsaKernels& kernels = KernelsFor(pool.isa());
  ForRows(p.rows, 4 * p.dim, pool, [&](int64_t row) {
    kernels.swiglu(p.gate + row * stride, p.up + row * stride, p.y + row * p.dim, p.dim);
  });
  return CpuResult::kOk;
}

CpuResult AddInPlace(const float* x, float* y, int64_t count, ThreadPool& pool) {
  if (count < 0 || (count > 0 && (x == nullptr || y == nullptr))) return CpuResult::kBadShape;
  const IsaKernels& kernels = KernelsFor(pool.isa());
  ForPieces(count, pool,
            [&](int64_t begin, int64_t size) { kernels.add(x + begin, y + begin, size); });
  return CpuResult::kOk;
}

CpuResult ConvertToBf16(const float* x, Bf16* y, int64_t count, ThreadPool& pool) {
  if (count < 0 || (count > 0 && (x == nullptr || y == nullptr))) return CpuResult::kBadShape;
  const IsaKernels& kernels = KernelsFor(pool.isa());
  ForPieces(count, pool,
            [&](int64_t begin, int64_t size) { kernels.to_bf16(x + begin, y + begin, size); });
  return CpuResult::kOk;
}

}  // namespace paceline::kernels

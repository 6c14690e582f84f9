#include "kernels/cpu/norm.h"

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/row_blocks.h"

namespace paceline::kernels {

CpuResult RmsNorm(const RmsNormParams& p, ThreadPool& pool) {
  const int64_t x_stride = p.x_stride != 0 ? p.x_stride : p.dim;
  const int64_t y_stride = p.y_stride != 0 ? p.y_stride : p.dim;
  if (p.rows < 0 || p.dim < 0 || x_stride < p.dim || y_stride < p.dim) return CpuResult::kBadShape;
  if (p.rows == 0 || p.dim == 0) return CpuResult::kOk;
  if (p.x == nullptr || p.weight == nullptr || (p.y_bf16 == nullptr && p.y_f32 == nullptr)) {
    return CpuResult::kBadShape;
  }
  const IsaKernels& kernels = KernelsFor(pool.isa());
  ForRows(p.rows, p.dim, pool, [&](int64_t row) {
    kernels.rms_norm(p.x + row * x_stride, p.weight, p.dim, p.eps,
                     p.y_bf16 != nullptr ? p.y_bf16 + row * y_stride : nullptr,
                     p.y_f32 != nullptr ? p.y_f32 + row * y_stride : nullptr);
  });
  return CpuResult::kOk;
}

}  // namespace paceline::kernels

// Matrices as the copy engine of sm_90 and later sees them. Host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace paceline::kernels {

// Passed to a kernel by value, in a __grid_constant__ parameter.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

inline constexpr int kBoxColumns = 64;  // 128 bytes, a row of a swizzled tile

// A row-major matrix [rows, columns] of bf16, 16-byte aligned, columns a multiple of 8, that is
// copied in boxes of box_rows (<= 256) x kBoxColumns. In shared memory a box's rows follow each
// other, 128 bytes each, and 16-byte vector v of row r lies at v ^ (r % 8): the layout that
// wgmma.cuh reads. cudaErrorNotSupported where the driver has no copy engine to offer.
cudaError_t MakeTensorMap(const Bf16* matrix, int64_t rows, int32_t columns, int32_t box_rows,
                          TensorMap* map);

#ifdef PACELINE_CUDA_EMULATION
struct EmulatedMap {
  const Bf16* matrix;
  int64_t rows;
  int32_t columns, box_rows;
  void Copy(void* to, int column, int row) const;
};
#endif

}  // namespace paceline::kernels

// The order in which Linear sums, the same on every path, for every M and tile.
//
// K is cut into kSlices slices of whole stages of kStageK columns, each a chain of products of 16
// columns, ascending; the slices' sums are added in ascending order to zero. A path may compute
// slices side by side, so one row's long K is no chain. Within a product the order of its columns
// changes no bit, nor does the instruction (mma.cuh, wgmma.cuh), nor which operand W is.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

namespace paceline::kernels {

inline constexpr int kSlices = 8;
inline constexpr int kStageK = 64;

__host__ __device__ constexpr int SliceStages(int k) {
  return CeilDiv(CeilDiv(k, kStageK), kSlices);
}
__host__ __device__ constexpr int SliceColumns(int k) { return SliceStages(k) * kStageK; }

}  // namespace paceline::kernels

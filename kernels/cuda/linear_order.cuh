// The order in which Linear sums, the same on every path, for every M and tile.
//
// K is cut into kSlices slices, each a chain of products over groups of 32 columns, ascending; the
// slices' sums are added in ascending order to zero. A path may compute slices side by side, so one
// row's long K is no chain. Within a group lane t of four holds columns 8t .. 8t + 7, the 16 bytes
// that one load brings: the first four of each lane make one product of 16, the last four the next.
// W is always operand A.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

namespace paceline::kernels {

inline constexpr int kSlices = 8;
inline constexpr int kGroupK = 32;

// Columns of a slice: whole stages of shared memory.
__host__ __device__ constexpr int SliceColumns(int k) {
  return CeilDiv(CeilDiv(k, 2 * kGroupK), kSlices) * 2 * kGroupK;
}

// c[16 rows of W, 8 rows of x] += one group. With g = lane / 4: low and high hold rows g and g + 8
// of W, x row g of x.
__device__ __forceinline__ void MmaGroup(float (&c)[4], const uint4& low, const uint4& high,
                                         const uint4& x) {
  const unsigned a_first[4] = {low.x, high.x, low.y, high.y};
  const unsigned b_first[2] = {x.x, x.y};
  MmaBf16(c, a_first, b_first);
  const unsigned a_second[4] = {low.z, high.z, low.w, high.w};
  const unsigned b_second[2] = {x.z, x.w};
  MmaBf16(c, a_second, b_second);
}

}  // namespace paceline::kernels

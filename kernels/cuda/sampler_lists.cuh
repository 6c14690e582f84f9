// The few ids of a row that can be kept or win, found by the bounds of its groups: no pass over the
// logits.
#pragma once

#include "kernels/cuda/sampler_whole_row.cuh"

namespace paceline::kernels::sampler {

// The sum of all threads' values before this one's and its own.
template <typename T>
__device__ T BlockScan(T value, T* warp_sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const T other = __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(step));
    if (lane >= step) value += other;
  }
  __syncthreads();  // the last use of warp_sums is over
  if (lane == kWarp - 1) warp_sums[warp] = value;
  __syncthreads();
  T sum = lane < warp ? warp_sums[lane] : 0;
  return value + WarpSum(sum);
}

// Distances are floats >= 0 as bits, which have their order; kNowhere: none.
inline constexpr unsigned kNowhere = 0xffffffffu;
inline constexpr unsigned kAnywhere = 0x7f7fffffu;  // every finite one
__device__ __forceinline__ unsigned Distance(float from, float to) {
  if (!(to > kMasked)) return kNowhere;
  return __float_as_uint(fminf(fmaxf(from - to, 0.0f), FLT_MAX));
}

// At least `wanted` of the threads' distances are at most the result, if there are as many, and
// few more: a radix search that ends as soon as little would be gained.
__device__ unsigned CutOf(unsigned distance, int wanted, Shared& s) {
  const int thread = static_cast<int>(threadIdx.x);
  const unsigned enough = static_cast<unsigned>(2 * wanted + 32);
  unsigned prefix = 0, before = 0;
  for (int shift = 20;; shift = shift == 20 ? 9 : 0) {
    const int bits = shift == 0 ? 9 : 11;
    __syncthreads();
    if (thread == 0) s.bin = -1;
    for (int bin = thread; bin < kCutBins; bin += kThreads) s.histogram[bin] = 0;
    __syncthreads();
    if (distance != kNowhere && distance >> (shift + bits) == prefix >> (shift + bits)) {
      atomicAdd(&s.histogram[distance >> shift & ((1u << bits) - 1)], 1u);
    }
    __syncthreads();
    const unsigned first = s.histogram[2 * thread], second = s.histogram[2 * thread + 1];
    const unsigned through = before + BlockScan(first + second, s.warp_counts);
    const unsigned middle = through - second, start = middle - first;
    const auto needed = static_cast<unsigned>(wanted);
    if (start < needed && needed <= through) {
      const bool in_first = needed <= middle;
      s.bin = 2 * thread + (in_first ? 0 : 1);
      s.before = in_first ? start : middle;
      s.in_bin = in_first ? first : second;
    }
    __syncthreads();
    if (s.bin < 0) return kAnywhere;
    prefix |= static_cast<unsigned>(s.bin) << shift;
    before = s.before;
    if (shift == 0 || before + s.in_bin <= enough) return prefix | ((1u << shift) - 1);
  }
}

// Groups that `may` holds for, into s.groups.
template <typename May>
__device__ void ListGroups(int num_groups, Shared& s, const May& may) {
  __syncthreads();
  if (threadIdx.x == 0) {
    s.num_groups = 0;
    s.listed = 0;
  }
  __syncthreads();
  for (int group = static_cast<int>(threadIdx.x); group < num_groups; group += kThreads) {
    if (!may(group)) continue;
    const int at = atomicAdd(&s.num_groups, 1);
    if (at < kGroupListSize) s.groups[at] = static_cast<unsigned short>(group);
  }
  __syncthreads();
}

__device__ __forceinline__ void PushKey(Key key, Shared& s) {
  if (key == 0) return;
  const int at = atomicAdd(&s.listed, 1);
  if (at < kListSize) s.list[at] = key;
}

// Calls visit(first id) for each run of the listed groups, in parallel.
template <typename Visit>
__device__ void VisitRuns(Shared& s, const Visit& visit) {
  const int runs = min(s.num_groups, kGroupListSize) * kRuns;
  for (int i = static_cast<int>(threadIdx.x); i < runs; i += kThreads) {
    visit(RunOf(s.groups[i / kRuns], i % kRuns));
  }
  __syncthreads();
}

__device__ __forceinline__ bool Overflown(const Shared& s) {
  return s.num_groups > kGroupListSize || s.listed > kListSize;
}

// s.list in order into s.sorted: a key's rank is the number of greater ones.
__device__ void SortList(Shared& s) {
  const int thread = static_cast<int>(threadIdx.x);
  const int count = s.listed;
  if (thread < count) {
    const Key own = s.list[thread];
    int rank = 0;
    for (int i = 0; i < count; ++i) rank += s.list[i] > own;
    s.sorted[rank] = own;
  }
  __syncthreads();
}

// Lists and sorts the `wanted` greatest of a row's values and perhaps more, by `map` of them,
// which must be monotonic with a greatest result of `best`. wanted <= kThreads / 4. False if they
// are too many for the list.
template <typename Map>
__device__ bool ListGreatest(const float* values, int count, const float* group_max, int num_groups,
                             float best, int wanted, const Map& map, Shared& s) {
  float greatest = kMasked;
  for (int group = static_cast<int>(threadIdx.x); group < num_groups; group += kThreads) {
    greatest = fmaxf(greatest, group_max[group]);
  }
  const unsigned cut = CutOf(Distance(best, map(greatest)), wanted, s);
  const auto near = [&](float x) { return Distance(best, map(x)) <= cut; };
  ListGroups(num_groups, s, [&](int group) { return near(group_max[group]); });
  VisitRuns(s, [&](int id) {
    float x[4];
    Load4(values, id, count, x);
    for (int lane = 0; lane < 4; ++lane) {
      if (near(x[lane])) PushKey(KeyOf(map(x[lane]), id + lane), s);
    }
  });
  if (Overflown(s)) return false;
  SortList(s);
  return true;
}

}  // namespace paceline::kernels::sampler

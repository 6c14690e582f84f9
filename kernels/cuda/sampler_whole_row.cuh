// The sampler's rule over a whole row in global memory, by one block: for rows where thousands of
// ids tie or are kept, which no list in shared memory holds.
#pragma once

#include "kernels/cuda/sampler_row.cuh"

namespace paceline::kernels::sampler {

inline constexpr int kWarps = kThreads / kWarp;
inline constexpr int kBins = 256;
inline constexpr int kDigitBits = 8;
inline constexpr int kListSize = 1024;  // one key a thread
inline constexpr int kGroupListSize = 2048;
inline constexpr int kCutBins = 2048;

struct Shared {
  Key warp_keys[kWarps];
  float warp_max[kWarps];
  unsigned warp_counts[kWarps];
  unsigned counts[kBins];
  Key masses[kBins];
  // The digit chosen, what is still needed below it, and whether the search is over.
  int digit;
  Key needed;
  int done;
  int ranked;
  Key ranked_keys[kMaxRankedIds];
  // The search among groups: a histogram, the bin chosen, the values before it and in it.
  unsigned histogram[kCutBins];
  int bin;
  unsigned before, in_bin;
  // Groups and keys that may win, in any order; keys in order. Counts may exceed the sizes: then
  // the lists are cut short and not to be used.
  int num_groups, listed;
  unsigned short groups[kGroupListSize];
  Key list[kListSize];
  Key sorted[kListSize];
};

__device__ Key BlockMax(Key key, Shared& s) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const Key other = __shfl_xor_sync(kAllLanes, key, mask);
    key = other > key ? other : key;
  }
  __syncthreads();  // the last use of warp_keys is over
  if (threadIdx.x % kWarp == 0) s.warp_keys[threadIdx.x / kWarp] = key;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) key = s.warp_keys[w] > key ? s.warp_keys[w] : key;
  return key;
}

__device__ float BlockMax(float value, Shared& s) {
  value = WarpMax(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) s.warp_max[threadIdx.x / kWarp] = value;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) value = fmaxf(value, s.warp_max[w]);
  return value;
}

__device__ Key BlockMass(Key mass, Shared& s) {
  mass = WarpSum(mass);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) s.warp_keys[threadIdx.x / kWarp] = mass;
  __syncthreads();
  Key total = 0;
  for (int w = 0; w < kWarps; ++w) total += s.warp_keys[w];
  return total;
}

// Adds one thread's elements to the histograms; runs of equal digits are added at once, since
// leading digits of logits are nearly all alike.
struct Run {
  int digit = -1;
  unsigned count = 0;
  Key mass = 0;
  __device__ __forceinline__ void Add(int at, Key weight, Shared& s) {
    if (at != digit) Flush(s);
    digit = at;
    ++count;
    mass += weight;
  }
  __device__ __forceinline__ void Flush(Shared& s) {
    if (count == 0) return;
    atomicAdd(&s.counts[digit], count);
    atomicAdd(&s.masses[digit], mass);
    count = 0;
    mass = 0;
  }
};

// The greatest key such that the weights of all keys at or above it reach `needed`; keys below
// `floor` do not count. A weight is 1, or with by_mass e^value in mass units. 1 if all together do
// not reach it: then every key counts. needed > 0. Values are at most 0 with by_mass.
__device__ Key SelectKey(const float* values, int count, Key floor, bool by_mass, Key needed,
                         Shared& s) {
  const int thread = static_cast<int>(threadIdx.x);
  Key prefix = 0;  // the digits chosen so far
  for (int shift = 64 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    __syncthreads();  // the last digit is read
    for (int bin = thread; bin < kBins; bin += kThreads) {
      s.counts[bin] = 0;
      s.masses[bin] = 0;
    }
    __syncthreads();
    Run run;
    for (int i = thread; i < count; i += kThreads) {
      const Key key = KeyOf(values[i], i);
      if (key == 0 || key < floor) continue;
      if (shift + kDigitBits < 64 &&
          key >> (shift + kDigitBits) != prefix >> (shift + kDigitBits)) {
        continue;
      }
      run.Add(static_cast<int>(key >> shift & (kBins - 1)), by_mass ? MassOf(values[i]) : 1, s);
    }
    run.Flush(s);
    __syncthreads();
    if (thread == 0) {
      int digit = kBins - 1;
      for (; digit >= 0 && s.masses[digit] < needed; --digit) needed -= s.masses[digit];
      s.digit = digit;
      s.needed = needed;
      // A digit that is taken whole ends the search: its least possible key is the answer.
      s.done = digit < 0 || s.counts[digit] == 1 || (!by_mass && s.masses[digit] == needed);
    }
    __syncthreads();
    if (s.digit < 0) return 1;
    prefix |= static_cast<Key>(s.digit) << shift;
    needed = s.needed;
    if (s.done != 0) return prefix;
  }
  return prefix;
}

// The best `wanted` of values, best first, into s.ranked_keys; s.ranked: how many there are.
__device__ void Rank(const float* values, int count, int wanted, Shared& s) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (thread == 0) s.ranked = 0;
  __syncthreads();
  if (wanted <= 0) return;
  const Key least = SelectKey(values, count, 0, false, static_cast<Key>(wanted), s);
  for (int i = thread; i < count; i += kThreads) {
    const Key key = KeyOf(values[i], i);
    if (key != 0 && key >= least) s.ranked_keys[atomicAdd(&s.ranked, 1)] = key;
  }
  __syncthreads();
  // Each key's rank is the number of greater ones.
  const int found = s.ranked;
  const Key own = thread < found ? s.ranked_keys[thread] : 0;
  int rank = 0;
  for (int i = 0; thread < found && i < found; ++i) rank += s.ranked_keys[i] > own;
  __syncthreads();
  if (thread < found) s.ranked_keys[rank] = own;
  __syncthreads();
}

// The least key that top-k and top-p leave of values, which are scaled and at most 0.
__device__ Key Threshold(const float* values, int count, const CudaSampleRow& row, Shared& s) {
  Key floor = 1;
  if (row.top_k > 0 && row.top_k < count) {
    floor = SelectKey(values, count, floor, false, static_cast<Key>(row.top_k), s);
  }
  if (row.top_p < 1.0f) {
    Key mass = 0;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const Key key = KeyOf(values[i], i);
      if (key != 0 && key >= floor) mass += MassOf(values[i]);
    }
    const Key total = BlockMass(mass, s);
    const double needed = ceil(static_cast<double>(row.top_p) * static_cast<double>(total));
    const Key least =
        SelectKey(values, count, floor, true, needed >= 1.0 ? static_cast<Key>(needed) : Key{1}, s);
    floor = least > floor ? least : floor;
  }
  return floor;
}

// Scores of what is kept, the noise with it; -infinity for the rest. Returns the best key.
__device__ Key Score(const float* values, float* scores, int count, Key floor,
                     const CudaSampleRow& row) {
  Key best = 0;
  for (int group = static_cast<int>(threadIdx.x); group * 4 < count; group += kThreads) {
    bool kept[4];
    bool any = false;
    for (int lane = 0; lane < 4; ++lane) {
      const int i = group * 4 + lane;
      const Key key = i < count ? KeyOf(values[i], i) : 0;
      kept[lane] = key != 0 && key >= floor && (row.min_p <= 0.0f || expf(values[i]) >= row.min_p);
      any = any || kept[lane];
    }
    PhiloxBlock words = {};
    if (any) words = NoiseWords(row.seed, row.sample, row.position, static_cast<uint32_t>(group));
    for (int lane = 0; lane < 4; ++lane) {
      const int i = group * 4 + lane;
      if (i >= count) continue;
      const float score =
          kept[lane] ? __fadd_rn(values[i], GumbelFromWord(words.word[lane])) : kMasked;
      scores[i] = score;
      const Key key = KeyOf(score, i);
      best = key > best ? key : best;
    }
  }
  return best;
}

}  // namespace paceline::kernels::sampler

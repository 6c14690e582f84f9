// What the sampler's kernels share: keys, a row's workspace, its values, block reductions.
#pragma once

#include <cfloat>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sampler.h"
#include "kernels/noise.h"

namespace paceline::kernels::sampler {

// A row is cut into chunks of 4096 ids, one block of 256 threads each, whatever the batch, so that
// the order of every sum is the row's own. A thread's 16 ids are a group: four runs of four.
inline constexpr int kChunk = 4096;
inline constexpr int kScanThreads = 256;
inline constexpr int kGroup = kChunk / kScanThreads;
inline constexpr int kRuns = kGroup / 4;
// The block that ends a row.
inline constexpr int kThreads = 1024;
inline constexpr int kMaxGroups = (1 << 18) / kGroup;
inline constexpr int kGroupsPerThread = kMaxGroups / kThreads;

inline constexpr float kMasked = -INFINITY;
using Key = unsigned long long;

// Mass is counted in units of 2^-40: 2^18 tokens of weight 1 stay below 2^58.
inline constexpr float kMassUnit = 1099511627776.0f;

__device__ __forceinline__ Key MassOf(float value) {
  return static_cast<Key>(__fmul_rn(expf(value), kMassUnit));
}

// Greater for greater values; of equal values, for lower ids. 0 for -infinity (and NaN): never
// kept.
__device__ __forceinline__ Key KeyOf(float value, int id) {
  if (!(value > kMasked)) return 0;
  const unsigned bits = __float_as_uint(value == 0.0f ? 0.0f : value);  // -0 equals 0
  const unsigned ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<Key>(ordered) << 32 | (0xffffffffu - static_cast<unsigned>(id));
}
__device__ __forceinline__ int IdOf(Key key) {
  return static_cast<int>(0xffffffffu - static_cast<unsigned>(key & 0xffffffffu));
}
__device__ __forceinline__ float ValueOf(Key key) {
  const unsigned ordered = static_cast<unsigned>(key >> 32);
  return __uint_as_float((ordered & 0x80000000u) != 0 ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ float Clean(float x) {
  if (!(x > kMasked)) return kMasked;
  return x < FLT_MAX ? x : FLT_MAX;
}

struct Chunk {
  double raw_sum;  // of e^(logit - raw_max)
  Key best;        // at temperature 0
  float raw_max;   // before edits
  float max;       // after
};

// A row's part of the workspace. Of each group: the greatest logit before edits, and two floats of
// which the first is the greatest after edits or a score that an id of the group reaches, the
// second a bound of the scores of all.
struct Space {
  Chunk* chunks;
  float* raw_max;
  float* max;
  float* lower;
  float* upper;
};
__host__ __device__ inline int Chunks(int vocab_size) { return CeilDiv(vocab_size, kChunk); }
__host__ __device__ inline size_t SpaceBytes(int vocab_size) {
  return static_cast<size_t>(Chunks(vocab_size)) *
         (sizeof(Chunk) + 3 * kScanThreads * sizeof(float));
}
__device__ __forceinline__ Space SpaceOf(const CudaSampleParams& p, int row) {
  const int chunks = Chunks(p.vocab_size);
  unsigned char* at = static_cast<unsigned char*>(p.workspace) +
                      static_cast<size_t>(row) * SpaceBytes(p.vocab_size);
  Space space;
  space.chunks = reinterpret_cast<Chunk*>(at);
  space.raw_max = reinterpret_cast<float*>(space.chunks + chunks);
  space.lower = space.raw_max + chunks * kScanThreads;
  space.max = space.lower;
  space.upper = space.lower + chunks * kScanThreads;
  return space;
}

__device__ __forceinline__ bool Edited(const CudaSampleParams& p, const CudaSampleRow& row) {
  return row.edit_end > row.edit_begin || p.allowed != nullptr;
}
__device__ __forceinline__ bool UsesTopK(const CudaSampleParams& p, const CudaSampleRow& row) {
  return row.top_k > 0 && row.top_k < p.vocab_size;
}
// Noise alone decides: no id is dropped.
__device__ __forceinline__ bool KeepsAll(const CudaSampleParams& p, const CudaSampleRow& row) {
  return row.temperature > 0 && !UsesTopK(p, row) && row.top_p >= 1.0f && row.min_p <= 0.0f;
}

// Four cleaned values from `id` on; -infinity behind the end. Rows of a vocabulary that four
// divides are read 16 bytes at a time.
__device__ __forceinline__ void Load4(const float* from, int id, int count, float* to) {
  if ((count & 3) == 0 && id < count) {
    const float4 v = *reinterpret_cast<const float4*>(from + id);
    to[0] = Clean(v.x);
    to[1] = Clean(v.y);
    to[2] = Clean(v.z);
    to[3] = Clean(v.w);
    return;
  }
  for (int lane = 0; lane < 4; ++lane)
    to[lane] = id + lane < count ? Clean(from[id + lane]) : kMasked;
}

// The first id of a group's run.
__device__ __forceinline__ int RunOf(int group, int run) {
  return group / kScanThreads * kChunk + run * (kScanThreads * 4) + group % kScanThreads * 4;
}

__device__ __forceinline__ float Scaled(float x, float greatest, float temperature) {
  return __fdiv_rn(__fsub_rn(x, greatest), temperature);
}

// What an id's score can and does reach in a group, up to rounding, relative to `reference`.
struct Bounds {
  float lower = kMasked;
  float upper = kMasked;
};
// Rounding of bounds against exact scores near `score`.
__device__ __forceinline__ float Margin(float score) { return 1e-3f + 2e-6f * fabsf(score); }

// Noise G = -log(E) with E = -log(1 - q) >= q for q in (0, 1): at most -log(q). One logarithm per
// id instead of the exact noise; that only for the id that may win its group.
__device__ __forceinline__ Bounds BoundsOf(const float* values, int group, float reference,
                                           const CudaSampleRow& row) {
  const float rate = __fdiv_rn(1.0f, row.temperature);
  Bounds bounds;
  float best = kMasked;
  unsigned best_word = 0;
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    const PhiloxBlock words = NoiseWords(row.seed, row.sample, row.position,
                                         static_cast<uint32_t>(RunOf(group, run)) / 4);
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      // q rounded down to 23 bits; 0 gives an infinite bound.
      const float q = __uint_as_float(0x3f800000u | words.word[lane] >> 9) - 1.0f;
      const float value = (values[run * 4 + lane] - reference) * rate;
      const float upper = value - __logf(q);
      if (upper > bounds.upper) {
        bounds.upper = upper;
        best = value;
        best_word = words.word[lane];
      }
    }
  }
  if (best > kMasked) bounds.lower = best + GumbelFromWord(best_word);
  return bounds;
}

}  // namespace paceline::kernels::sampler

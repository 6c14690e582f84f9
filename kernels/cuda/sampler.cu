#include "kernels/cuda/sampler.h"

#include <cfloat>

#include "kernels/cuda/launch.cuh"
#include "kernels/noise.h"

namespace paceline::kernels {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBins = 256;
constexpr int kDigitBits = 8;
constexpr float kMasked = -INFINITY;
using Key = unsigned long long;

// Mass is counted in units of 2^-40: 2^18 tokens of weight 1 stay below 2^58.
constexpr float kMassUnit = 1099511627776.0f;

struct Shared {
  Key warp_keys[kWarps];
  double warp_sums[kWarps];
  float warp_max[kWarps];
  unsigned counts[kBins];
  Key masses[kBins];
  // The digit chosen, what is still needed below it, and whether the search is over.
  int digit;
  Key needed;
  int done;
  int ranked;
  Key ranked_keys[kMaxRankedIds];
};

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

__device__ __forceinline__ float Clean(float x) {
  if (!(x > kMasked)) return kMasked;
  return x < FLT_MAX ? x : FLT_MAX;
}

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

__device__ double BlockSum(double value, Shared& s) {
  value = WarpSum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) s.warp_sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kWarps; ++w) total += s.warp_sums[w];
  return total;
}

__device__ __forceinline__ Key MassOf(float value) {
  return static_cast<Key>(__fmul_rn(expf(value), kMassUnit));
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

__device__ float CleanLogits(const float* from, float* to, int count, Shared& s) {
  float greatest = kMasked;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const float x = Clean(from[i]);
    to[i] = x;
    greatest = fmaxf(greatest, x);
  }
  return BlockMax(greatest, s);  // a barrier: all of `to` is written
}

// Of the cleaned logits: log of the sum of exponentials, and the best ones.
__device__ double RawLogprobs(const float* values, int count, float greatest,
                              const CudaSampleRow& row, Shared& s, CudaSampleResult* result) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    sum += static_cast<double>(expf(values[i] - greatest));
  }
  const double log_sum = static_cast<double>(greatest) + log(BlockSum(sum, s));
  Rank(values, count, row.top_logprobs, s);
  for (int i = static_cast<int>(threadIdx.x); i < s.ranked; i += kThreads) {
    const int id = IdOf(s.ranked_keys[i]);
    result->top_ids[i] = id;
    result->top_logprobs[i] = static_cast<float>(static_cast<double>(values[id]) - log_sum);
  }
  if (threadIdx.x == 0) result->num_top = s.ranked;
  __syncthreads();
  return log_sum;
}

__device__ void ApplyEdits(const CudaSampleParams& p, const CudaSampleRow& row, float* values) {
  const int thread = static_cast<int>(threadIdx.x);
  if (p.allowed != nullptr) {
    const uint32_t* allowed = p.allowed + int64_t{blockIdx.x} * CeilDiv(p.vocab_size, 32);
    for (int i = thread; i < p.vocab_size; i += kThreads) {
      if ((allowed[i / 32] >> (i % 32) & 1u) == 0) values[i] = kMasked;
    }
    __syncthreads();
  }
  for (int e = row.edit_begin + thread; e < row.edit_end; e += kThreads) {
    const CudaSampleEdit edit = p.edits[e];
    float logit = __fadd_rn(values[edit.id], edit.bias);
    if (edit.output_count >= 0) {
      logit = logit > 0 ? __fdiv_rn(logit, row.repetition_penalty)
                        : __fmul_rn(logit, row.repetition_penalty);
      if (edit.output_count > 0) {
        logit = __fsub_rn(logit, row.presence_penalty);
        logit = __fsub_rn(logit,
                          __fmul_rn(row.frequency_penalty, static_cast<float>(edit.output_count)));
      }
    }
    values[edit.id] = edit.banned != 0 ? kMasked : logit;
  }
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
    mass = WarpSum(mass);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) s.warp_keys[threadIdx.x / kWarp] = mass;
    __syncthreads();
    Key total = 0;
    for (int w = 0; w < kWarps; ++w) total += s.warp_keys[w];
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

__global__ void __launch_bounds__(kThreads) SampleKernel(CudaSampleParams p) {
  __shared__ Shared s;
  const CudaSampleRow row = p.rows[blockIdx.x];
  const int count = p.vocab_size;
  const int thread = static_cast<int>(threadIdx.x);
  const float* logits = p.logits + int64_t{row.logits_row} * count;
  float* values = p.values + int64_t{blockIdx.x} * count;
  float* scores = p.scores + int64_t{blockIdx.x} * count;
  CudaSampleResult* result = p.results + blockIdx.x;
  if (thread == 0) {
    result->token = -1;
    result->logprob = 0;
    result->num_top = 0;
    result->num_candidates = 0;
  }
  float greatest = CleanLogits(logits, values, count, s);
  double log_sum = 0;
  if (row.top_logprobs >= 0 && greatest > kMasked) {
    log_sum = RawLogprobs(values, count, greatest, row, s, result);
  }
  if (row.edit_end > row.edit_begin || p.allowed != nullptr) {
    ApplyEdits(p, row, values);
    greatest = CleanLogits(values, values, count, s);
  }
  if (!(greatest > kMasked)) return;  // the whole block

  Key best = 0;
  const float* ranked_by = values;
  if (row.temperature > 0) {
    for (int i = thread; i < count; i += kThreads) {
      values[i] = __fdiv_rn(__fsub_rn(values[i], greatest), row.temperature);
    }
    __syncthreads();
    const Key floor = Threshold(values, count, row, s);
    best = Score(values, scores, count, floor, row);
    ranked_by = scores;
  } else {
    for (int i = thread; i < count; i += kThreads) {
      const Key key = KeyOf(values[i], i);
      best = key > best ? key : best;
    }
  }
  best = BlockMax(best, s);
  Rank(ranked_by, count, row.num_candidates, s);
  for (int i = thread; i < s.ranked; i += kThreads) {
    result->candidates[i] = IdOf(s.ranked_keys[i]);
  }
  if (thread == 0 && best != 0) {
    result->token = IdOf(best);
    result->num_candidates = s.ranked;
    if (row.top_logprobs >= 0) {
      const float raw = fminf(logits[IdOf(best)], FLT_MAX);
      result->logprob = static_cast<float>(static_cast<double>(raw) - log_sum);
    }
  }
}

}  // namespace

cudaError_t CudaSample(const CudaSampleParams& p, cudaStream_t stream) {
  if (p.num_rows < 0 || p.vocab_size <= 0 || p.vocab_size > 1 << 18) return cudaErrorInvalidValue;
  if (p.num_rows == 0) return cudaSuccess;
  if (p.logits == nullptr || p.rows == nullptr || p.values == nullptr || p.scores == nullptr ||
      p.results == nullptr) {
    return cudaErrorInvalidValue;
  }
  return Launch(SampleKernel, dim3(static_cast<unsigned>(p.num_rows)), kThreads, 0, p, stream);
}

}  // namespace paceline::kernels

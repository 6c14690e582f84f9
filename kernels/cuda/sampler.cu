// Two kernels. The first reads the logits, once, in blocks of 4096 ids of a row: sums, maxima and
// bounds of what each group of 16 ids can reach. The second, a block per row, finds by them the few
// ids that can be kept or win, and computes only those exactly.
#include "kernels/cuda/sampler.h"

#include "kernels/cuda/sampler_lists.cuh"

namespace paceline::kernels {
namespace {

using namespace sampler;  // NOLINT: the parts of this kernel

constexpr int kScanWarps = kScanThreads / kWarp;
// Up to this top-k the kept are found through the groups' maxima.
constexpr int kNarrowTopK = kThreads / 4;

// --- The first kernel ---

struct ScanShared {
  float warp_max[kScanWarps];
  double warp_sums[kScanWarps];
  Key warp_keys[kScanWarps];
  float tile[kChunk];  // of rows with edits
};

__device__ __forceinline__ float GroupMax(const float* x) {
  float greatest = x[0];
#pragma unroll
  for (int i = 1; i < kGroup; ++i) greatest = fmaxf(greatest, x[i]);
  return greatest;
}

__device__ float ScanMax(float value, ScanShared& s) {
  value = WarpMax(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) s.warp_max[threadIdx.x / kWarp] = value;
  __syncthreads();
  for (int w = 0; w < kScanWarps; ++w) value = fmaxf(value, s.warp_max[w]);
  return value;
}

// The chunk's sum of e^(x - max), on thread 0.
__device__ double ScanSum(const float* x, float max, ScanShared& s) {
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) sum += static_cast<double>(expf(x[i] - max));
  sum = WarpSum(sum);
  if (threadIdx.x % kWarp == 0) s.warp_sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < kScanWarps; ++w) sum += s.warp_sums[w];
  return sum;
}

// The greatest key of the chunk, on thread 0.
__device__ Key ScanBest(const float* x, int group, float group_max, ScanShared& s) {
  int best = 0;
#pragma unroll
  for (int i = kGroup - 1; i >= 0; --i) best = x[i] == group_max ? i : best;
  Key key = KeyOf(group_max, RunOf(group, best / 4) + best % 4);
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const Key other = __shfl_xor_sync(kAllLanes, key, mask);
    key = other > key ? other : key;
  }
  if (threadIdx.x % kWarp == 0) s.warp_keys[threadIdx.x / kWarp] = key;
  __syncthreads();
  for (int w = 0; w < kScanWarps; ++w) key = s.warp_keys[w] > key ? s.warp_keys[w] : key;
  return key;
}

// `id` is of this chunk.
__device__ void ApplyEdit(const CudaSampleEdit& edit, const CudaSampleRow& row, float* value) {
  float logit = __fadd_rn(*value, edit.bias);
  if (edit.output_count >= 0) {
    logit = logit > 0 ? __fdiv_rn(logit, row.repetition_penalty)
                      : __fmul_rn(logit, row.repetition_penalty);
    if (edit.output_count > 0) {
      logit = __fsub_rn(logit, row.presence_penalty);
      logit =
          __fsub_rn(logit, __fmul_rn(row.frequency_penalty, static_cast<float>(edit.output_count)));
    }
  }
  *value = edit.banned != 0 ? kMasked : logit;
}

// The edited values of the thread's group into x and into the row's scratch.
__device__ void ApplyEdits(const CudaSampleParams& p, const CudaSampleRow& row, int row_index,
                           int group, float* x, ScanShared& s) {
  const int chunk_begin = static_cast<int>(blockIdx.x) * kChunk;
  for (int run = 0; run < kRuns; ++run) {
    const int id = RunOf(group, run);
    unsigned allowed = 0xf;
    if (p.allowed != nullptr && id < p.vocab_size) {
      allowed = p.allowed[int64_t{row_index} * CeilDiv(p.vocab_size, 32) + id / 32] >> (id % 32);
    }
    for (int lane = 0; lane < 4; ++lane) {
      s.tile[id - chunk_begin + lane] = (allowed >> lane & 1u) != 0 ? x[run * 4 + lane] : kMasked;
    }
  }
  __syncthreads();
  for (int e = row.edit_begin + static_cast<int>(threadIdx.x); e < row.edit_end;
       e += kScanThreads) {
    const CudaSampleEdit edit = p.edits[e];
    if (edit.id / kChunk != static_cast<int>(blockIdx.x)) continue;
    ApplyEdit(edit, row, &s.tile[edit.id - chunk_begin]);
  }
  __syncthreads();
  float* values = p.values + int64_t{row_index} * p.vocab_size;
  for (int run = 0; run < kRuns; ++run) {
    const int id = RunOf(group, run);
    for (int lane = 0; lane < 4; ++lane) {
      const float value = Clean(s.tile[id - chunk_begin + lane]);
      x[run * 4 + lane] = value;
      if (id + lane < p.vocab_size) values[id + lane] = value;
    }
  }
}

// grid: (chunks, rows)
__global__ void __launch_bounds__(kScanThreads) ScanKernel(CudaSampleParams p) {
  __shared__ ScanShared s;
  const int row_index = static_cast<int>(blockIdx.y);
  LetNextStart();
  WaitForPrevious();
  const CudaSampleRow row = p.rows[row_index];
  const float* logits = p.logits + int64_t{row.logits_row} * p.vocab_size;
  const int group = static_cast<int>(blockIdx.x) * kScanThreads + static_cast<int>(threadIdx.x);
  const Space space = SpaceOf(p, row_index);
  float x[kGroup];
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
    Load4(logits, RunOf(group, run), p.vocab_size, x + run * 4);
  }
  float group_max = GroupMax(x);
  Chunk chunk = {};
  chunk.raw_max = chunk.max = ScanMax(group_max, s);
  if (row.top_logprobs >= 0) {
    space.raw_max[group] = group_max;
    if (chunk.raw_max > kMasked) chunk.raw_sum = ScanSum(x, chunk.raw_max, s);
  }
  if (Edited(p, row)) {
    ApplyEdits(p, row, row_index, group, x, s);
    group_max = GroupMax(x);
    chunk.max = ScanMax(group_max, s);
  }
  if (KeepsAll(p, row)) {
    const Bounds bounds = BoundsOf(x, group, chunk.max, row);
    space.lower[group] = bounds.lower;
    space.upper[group] = bounds.upper;
  } else {
    space.max[group] = group_max;
    if (!(row.temperature > 0)) chunk.best = ScanBest(x, group, group_max, s);
  }
  if (threadIdx.x == 0) space.chunks[blockIdx.x] = chunk;
}

// --- The second kernel ---

struct Row {
  const CudaSampleRow& params;
  const float* logits;
  const float* edited;  // or the logits themselves
  float* values;        // scratch
  float* scores;        // scratch
  CudaSampleResult* result;
  Space space;
  int count, num_groups;
  float raw_greatest, greatest;
};

// The row's scaled values into its scratch.
__device__ void WriteScaled(const Row& r) {
  for (int i = static_cast<int>(threadIdx.x); i < r.count; i += kThreads) {
    r.values[i] = Scaled(Clean(r.edited[i]), r.greatest, r.params.temperature);
  }
  __syncthreads();
}

__device__ void WriteTopLogprobs(const Row& r, double log_sum, const Key* keys, int found) {
  for (int i = static_cast<int>(threadIdx.x); i < found; i += kThreads) {
    const int id = IdOf(keys[i]);
    r.result->top_ids[i] = id;
    r.result->top_logprobs[i] =
        static_cast<float>(static_cast<double>(Clean(r.logits[id])) - log_sum);
  }
  if (threadIdx.x == 0) r.result->num_top = found;
}

// Of the logits before edits: log of the sum of exponentials, and the best ones.
__device__ double RawLogprobs(const Row& r, Shared& s) {
  double sum = 0;  // by every warp, a lane per chunk
  for (int c = static_cast<int>(threadIdx.x) % kWarp; c < Chunks(r.count); c += kWarp) {
    const Chunk& chunk = r.space.chunks[c];
    if (chunk.raw_max > kMasked) {
      sum += chunk.raw_sum * exp(static_cast<double>(chunk.raw_max) - r.raw_greatest);
    }
  }
  const double log_sum = static_cast<double>(r.raw_greatest) + log(WarpSum(sum));
  const int wanted = r.params.top_logprobs;
  if (wanted == 0) return log_sum;
  if (ListGreatest(
          r.logits, r.count, r.space.raw_max, r.num_groups, r.raw_greatest, wanted,
          [](float x) { return x; }, s)) {
    WriteTopLogprobs(r, log_sum, s.sorted, min(wanted, s.listed));
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < r.count; i += kThreads) {
      r.scores[i] = Clean(r.logits[i]);
    }
    Rank(r.scores, r.count, wanted, s);
    WriteTopLogprobs(r, log_sum, s.ranked_keys, s.ranked);
  }
  __syncthreads();
  return log_sum;
}

// The greatest of `ranked_by` [count] and the best ones as candidates. Returns the greatest key.
__device__ Key RankWholeRow(const Row& r, const float* ranked_by, Key best, Shared& s) {
  best = BlockMax(best, s);
  Rank(ranked_by, r.count, r.params.num_candidates, s);
  for (int i = static_cast<int>(threadIdx.x); i < s.ranked; i += kThreads) {
    r.result->candidates[i] = IdOf(s.ranked_keys[i]);
  }
  if (threadIdx.x == 0) r.result->num_candidates = s.ranked;
  return best;
}

__device__ void WriteCandidates(const Row& r, int found, Shared& s) {
  const int wanted = min(r.params.num_candidates, found);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < wanted) r.result->candidates[thread] = IdOf(s.sorted[thread]);
  if (thread == 0) r.result->num_candidates = wanted;
}

__device__ Key Greedy(const Row& r, Shared& s) {
  const int thread = static_cast<int>(threadIdx.x);
  const Key best = BlockMax(thread < Chunks(r.count) ? r.space.chunks[thread].best : Key{0}, s);
  if (r.params.num_candidates == 0) return best;
  if (ListGreatest(
          r.edited, r.count, r.space.max, r.num_groups, r.greatest, r.params.num_candidates,
          [](float x) { return x; }, s)) {
    WriteCandidates(r, s.listed, s);
    return best;
  }
  for (int i = static_cast<int>(threadIdx.x); i < r.count; i += kThreads) {
    r.scores[i] = Clean(r.edited[i]);
  }
  return RankWholeRow(r, r.scores, best, s);
}

// The mass of all scaled values. Below -28 it is nothing: e^-28 < 2^-40.
__device__ Key MassOfRow(const Row& r, Shared& s) {
  Key mass = 0;
  for (int id = static_cast<int>(threadIdx.x) * 4; id < r.count; id += kThreads * 4) {
    float x[4];
    Load4(r.edited, id, r.count, x);
    for (int lane = 0; lane < 4; ++lane) {
      const float value = Scaled(x[lane], r.greatest, r.params.temperature);
      if (value > -28.0f) mass += MassOf(value);
    }
  }
  return BlockMass(mass, s);
}

// How many of the best keys in s.sorted top-p leaves: the first that together have the share top_p
// of `total`; of the mass of the first `count` itself if that is 0. 0 if `count` are too few.
__device__ int TopP(int count, float top_p, Key total, Shared& s) {
  if (top_p >= 1.0f) return count;
  const int thread = static_cast<int>(threadIdx.x);
  const Key mass = thread < count ? MassOf(ValueOf(s.sorted[thread])) : 0;
  const Key through = BlockScan(mass, s.warp_keys);
  __syncthreads();
  if (thread == kThreads - 1) s.needed = through;  // the sum of all
  if (thread == 0) s.ranked = 0;
  __syncthreads();
  if (total == 0) total = s.needed;
  const double limit = ceil(static_cast<double>(top_p) * static_cast<double>(total));
  const Key needed = limit >= 1.0 ? static_cast<Key>(limit) : Key{1};
  if (thread < count && through < needed) atomicAdd(&s.ranked, 1);
  __syncthreads();
  return s.ranked < count ? s.ranked + 1 : 0;
}

__device__ __forceinline__ float Noise(const CudaSampleRow& row, int id) {
  return GumbelNoise(row.seed, row.sample, row.position, static_cast<uint32_t>(id));
}

// The best score among the first `count` of s.sorted, and the candidates.
__device__ Key ChooseFromSorted(const Row& r, int count, Shared& s) {
  const int thread = static_cast<int>(threadIdx.x);
  Key key = 0;
  if (thread < count) {
    const float value = ValueOf(s.sorted[thread]);
    const int id = IdOf(s.sorted[thread]);
    if (r.params.min_p <= 0.0f || expf(value) >= r.params.min_p) {
      key = KeyOf(__fadd_rn(value, Noise(r.params, id)), id);
    }
  }
  if (r.params.num_candidates > 0) {
    __syncthreads();
    if (thread == 0) s.listed = 0;
    __syncthreads();
    PushKey(key, s);
    __syncthreads();
    SortList(s);
    WriteCandidates(r, s.listed, s);
  }
  return BlockMax(key, s);
}

// All by the whole row: for what lists cannot hold.
__device__ Key ChooseFromRow(const Row& r, Shared& s) {
  WriteScaled(r);
  const Key floor = Threshold(r.values, r.count, r.params, s);
  const Key best = Score(r.values, r.scores, r.count, floor, r.params);
  __syncthreads();
  return RankWholeRow(r, r.scores, best, s);
}

// Every id may win: by the bounds of the groups. 0 if too many remain for the lists.
__device__ Key ChooseByBounds(const Row& r, Shared& s) {
  const CudaSampleRow& row = r.params;
  const float rate = __fdiv_rn(1.0f, row.temperature);
  const auto offset = [&](int group) {
    return (r.space.chunks[group / kScanThreads].max - r.greatest) * rate;
  };
  float lower = kMasked;
  for (int group = static_cast<int>(threadIdx.x); group < r.num_groups; group += kThreads) {
    lower = fmaxf(lower, r.space.lower[group] + offset(group));
  }
  const float best = BlockMax(lower, s);
  const int wanted = max(row.num_candidates, 1);
  const unsigned cut = wanted == 1 ? 0 : CutOf(Distance(best, lower), wanted, s);
  float least = best - __uint_as_float(cut);
  least -= Margin(least);
  ListGroups(r.num_groups, s, [&](int group) {
    const float upper = r.space.upper[group] + offset(group);
    return upper > kMasked && upper >= least;
  });
  VisitRuns(s, [&](int id) {
    float x[4];
    Load4(r.edited, id, r.count, x);
    const PhiloxBlock words =
        NoiseWords(row.seed, row.sample, row.position, static_cast<uint32_t>(id) / 4);
    for (int lane = 0; lane < 4; ++lane) {
      const float value = Scaled(x[lane], r.greatest, row.temperature);
      if (!(value > kMasked)) continue;
      const float score = __fadd_rn(value, GumbelFromWord(words.word[lane]));
      if (score >= least) PushKey(KeyOf(score, id + lane), s);
    }
  });
  if (Overflown(s)) return 0;
  if (row.num_candidates > 0) {
    SortList(s);
    WriteCandidates(r, s.listed, s);
  }
  const int thread = static_cast<int>(threadIdx.x);
  return BlockMax(thread < s.listed ? s.list[thread] : Key{0}, s);
}

// How many of s.sorted, which becomes a list of the greatest scaled values, are all that top-k (if
// not 0), top-p and min-p leave; min-p may leave fewer. 0 if more are left than the list holds.
__device__ int KeptOfList(const Row& r, int top_k, Shared& s) {
  const CudaSampleRow& row = r.params;
  const auto scaled = [&](float x) { return Scaled(x, r.greatest, row.temperature); };
  if (!ListGreatest(r.edited, r.count, r.space.max, r.num_groups, 0.0f,
                    top_k > 0 ? top_k : kNarrowTopK, scaled, s)) {
    return 0;
  }
  if (top_k > 0) return TopP(min(top_k, s.listed), row.top_p, 0, s);
  if (row.top_p < 1.0f) return TopP(s.listed, row.top_p, MassOfRow(r, s), s);
  // Of what is not listed, nothing reaches min-p if the last that is listed is well below it.
  const float last = ValueOf(s.sorted[s.listed - 1]);
  return last < logf(row.min_p) - 0.01f ? s.listed : 0;
}

__device__ Key Draw(const CudaSampleParams& p, const Row& r, Shared& s) {
  const CudaSampleRow& row = r.params;
  Key best = 0;  // in the end at least the greatest value's
  const bool top_k = UsesTopK(p, row);
  if (KeepsAll(p, row)) {
    best = ChooseByBounds(r, s);
  } else if (!top_k || row.top_k <= kNarrowTopK) {
    const int kept = KeptOfList(r, top_k ? row.top_k : 0, s);
    if (kept > 0) best = ChooseFromSorted(r, kept, s);
  }
  return best != 0 ? best : ChooseFromRow(r, s);
}

// grid: rows
__global__ void __launch_bounds__(kThreads, 1) ChooseKernel(CudaSampleParams p) {
  __shared__ Shared s;
  const int row_index = static_cast<int>(blockIdx.x);
  LetNextStart();
  WaitForPrevious();
  Row r = {.params = p.rows[row_index]};
  r.count = p.vocab_size;
  r.logits = p.logits + int64_t{r.params.logits_row} * r.count;
  r.values = p.values + int64_t{row_index} * r.count;
  r.scores = p.scores + int64_t{row_index} * r.count;
  r.edited = Edited(p, r.params) ? r.values : r.logits;
  r.result = p.results + row_index;
  r.space = SpaceOf(p, row_index);
  r.num_groups = Chunks(r.count) * kScanThreads;
  r.raw_greatest = r.greatest = kMasked;
  for (int c = static_cast<int>(threadIdx.x) % kWarp; c < Chunks(r.count); c += kWarp) {
    r.raw_greatest = fmaxf(r.raw_greatest, r.space.chunks[c].raw_max);
    r.greatest = fmaxf(r.greatest, r.space.chunks[c].max);
  }
  r.raw_greatest = WarpMax(r.raw_greatest);
  r.greatest = WarpMax(r.greatest);
  if (threadIdx.x == 0) {
    r.result->token = -1;
    r.result->logprob = 0;
    r.result->num_top = 0;
    r.result->num_candidates = 0;
  }
  __syncthreads();
  double log_sum = 0;
  if (r.params.top_logprobs >= 0 && r.raw_greatest > kMasked) log_sum = RawLogprobs(r, s);
  if (!(r.greatest > kMasked)) return;  // the whole block
  const Key best = r.params.temperature > 0 ? Draw(p, r, s) : Greedy(r, s);
  if (threadIdx.x == 0 && best != 0) {
    r.result->token = IdOf(best);
    if (r.params.top_logprobs >= 0) {
      const float raw = fminf(r.logits[IdOf(best)], FLT_MAX);
      r.result->logprob = static_cast<float>(static_cast<double>(raw) - log_sum);
    }
  }
}

}  // namespace

int64_t CudaSampleWorkspaceBytes(int32_t num_rows, int32_t vocab_size) {
  return num_rows * static_cast<int64_t>(SpaceBytes(vocab_size));
}

cudaError_t CudaSample(const CudaSampleParams& p, cudaStream_t stream) {
  if (p.num_rows < 0 || p.vocab_size <= 0 || p.vocab_size > 1 << 18) return cudaErrorInvalidValue;
  if (p.num_rows == 0) return cudaSuccess;
  if (p.logits == nullptr || p.rows == nullptr || p.values == nullptr || p.scores == nullptr ||
      p.workspace == nullptr || p.results == nullptr) {
    return cudaErrorInvalidValue;
  }
  const auto rows = static_cast<unsigned>(p.num_rows);
  const auto chunks = static_cast<unsigned>(Chunks(p.vocab_size));
  static const LaunchOrder scan_order = OverlapIfAble(ScanKernel);
  static const LaunchOrder choose_order = OverlapIfAble(ChooseKernel);
  const cudaError_t error =
      Launch(ScanKernel, dim3(chunks, rows), kScanThreads, 0, p, stream, scan_order);
  if (error != cudaSuccess) return error;
  return Launch(ChooseKernel, dim3(rows), kThreads, 0, p, stream, choose_order);
}

}  // namespace paceline::kernels

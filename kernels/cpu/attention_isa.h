// One attention task: some query rows and heads against one kv head. Included by isa_*.cc only.
//
// Why a row's bits do not depend on its span: a score is one chain over head_dim in a lane of its
// own; tiles and chunks are cut at fixed ordinals of the row's visible sequence; within a tile the
// maximum, the sum (fixed tree over lanes = ordinals) and the chain of p v over ordinals see the
// same terms in the same order. Keys of a tree's path lie apart and are gathered first, so that
// they take the very lanes they will have once the path is accepted and moved.
#pragma once

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/vec.h"

namespace paceline::kernels::PACELINE_ISA_NAMESPACE {

inline constexpr int kGroups = kAttentionTile / kLanes;
#if PACELINE_ISA == 2
inline constexpr int kRunQueries = 6;    // queries that share loads of K and V
inline constexpr int kScoreVectors = 4;  // x 16 keys in registers
inline constexpr int kValueVectors = 4;  // x 16 elements of a head
#else
inline constexpr int kRunQueries = 2;
inline constexpr int kScoreVectors = 1;
inline constexpr int kValueVectors = 1;
#endif

// Sixteen keys of consecutive ordinals: K as [head_dim / 2][k_stride][2], V by rows of head_dim.
struct KeyGroup {
  const Bf16* k;
  const Bf16* v;
  int64_t k_stride;  // elements between pairs
};

struct AttentionState {
  float maximum[kMaxQueries];
  float sum[kMaxQueries];
  float o[kMaxQueries][kMaxHeadDim];
};

struct AttentionWork {
  AttentionState chunk;   // of the chunk in progress
  AttentionState folded;  // of the chunks before it
  float scores[kMaxQueries][kAttentionTile];
  Bf16 q[kMaxQueries][kMaxHeadDim];
  Bf16 gathered_k[kGroups][kMaxHeadDim * kLanes];
  Bf16 gathered_v[kGroups][kMaxHeadDim * kLanes];
};

template <int R, int V>
void Scores(AttentionWork& work, int query, const KeyGroup* groups, int first, bool prefetch,
            int32_t head_dim, float scale) {
  F32 acc[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v] = Set(0.0f);
  }
  for (int64_t d = 0; d < head_dim / 2; ++d) {
    PairVec k[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) k[v] = LoadPairs(groups[v].k + d * groups[v].k_stride);
    if (prefetch) {  // a cache line of the values, needed next: 16 rows are head_dim / 2 lines
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) Prefetch(groups[v].v + d * 2 * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const PairVec q = SetPair(&work.q[query + r][2 * d]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[r][v] = Dot(acc[r][v], k[v], q);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      Store(&work.scores[query + r][(first + v) * kLanes], Mul(acc[r][v], Set(scale)));
    }
  }
}

// Scores -> probabilities of the tile relative to the new maximum; returns the old sums'
// correction.
PACELINE_INLINE float SoftmaxTile(AttentionWork& work, int query, int64_t begin, int64_t end) {
  float* scores = work.scores[query];
  F32 s[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    s[g] = Set(-kInfinity);
    if (g * kLanes < end) {
      s[g] = KeepLanes(Load(scores + g * kLanes), begin - g * kLanes, end - g * kLanes, s[g]);
    }
  }
  const float tile_max = ReduceMax(MaxOf(MaxOf(s[0], s[1]), MaxOf(s[2], s[3])));
  const float old_max = work.chunk.maximum[query];
  const float new_max = tile_max > old_max ? tile_max : old_max;
  for (int g = 0; g < kGroups; ++g) {
    s[g] = Exp(Sub(s[g], Set(new_max)));
    Store(scores + g * kLanes, s[g]);
  }
  float correction[kLanes];
  Store(correction, Exp(Set(old_max - new_max)));
  work.chunk.maximum[query] = new_max;
  work.chunk.sum[query] =
      work.chunk.sum[query] * correction[0] + ReduceAdd(Add(Add(s[0], s[1]), Add(s[2], s[3])));
  return correction[0];
}

// o = o * correction + p V over keys [begin, end) of the tile, elements [d, d + 16 V) of the head.
template <int R, int V>
PACELINE_INLINE void Values(AttentionWork& work, int query, const KeyGroup* groups,
                            const KeyGroup* next, int64_t begin, int64_t end, int32_t head_dim,
                            int64_t d, const float* correction) {
  const int64_t last = Min(kLanes, head_dim - d - (V - 1) * kLanes);
  F32 acc[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      acc[r][v] = Mul(Load(&work.chunk.o[query + r][d + v * kLanes]), Set(correction[r]));
    }
  }
  for (int64_t j = begin; j < end; ++j) {
    const Bf16* row = groups[j / kLanes].v + j % kLanes * head_dim + d;
    if (next != nullptr) {  // 1/16 of a group's keys
      const KeyGroup& group = next[j / kLanes];
      const int64_t lines = (head_dim / 2 + kLanes - 1) / kLanes;
      for (int64_t i = 0; i < lines; ++i) {
        Prefetch(group.k + (j % kLanes * lines + i) * group.k_stride);
      }
    }
    F32 value[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      value[v] = V == 1 ? LoadBf16N(row, last) : LoadBf16(row + v * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F32 p = Set(work.scores[query + r][j]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[r][v] = MulAdd(p, value[v], acc[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) Store(&work.chunk.o[query + r][d + v * kLanes], acc[r][v]);
  }
}

// R queries that see the same keys [begin, end) of a tile. `prefetch`: these keys' values and the
// keys of `next` (if any) are likely in memory only.
template <int R>
void RunTile(AttentionWork& work, int query, const KeyGroup* groups, bool prefetch,
             const KeyGroup* next, int64_t begin, int64_t end, int32_t head_dim, float scale) {
  const int used = static_cast<int>((end + kLanes - 1) / kLanes);
  int g = static_cast<int>(begin / kLanes);
  while (g < used) {
    if (g + kScoreVectors <= used) {
      Scores<R, kScoreVectors>(work, query, groups + g, g, prefetch, head_dim, scale);
      g += kScoreVectors;
    } else {
      Scores<R, 1>(work, query, groups + g, g, prefetch, head_dim, scale);
      ++g;
    }
  }
  float correction[R];
  for (int r = 0; r < R; ++r) correction[r] = SoftmaxTile(work, query + r, begin, end);
  int64_t d = 0;
  for (; d + kValueVectors * kLanes <= head_dim; d += kValueVectors * kLanes) {
    Values<R, kValueVectors>(work, query, groups, d == 0 ? next : nullptr, begin, end, head_dim, d,
                             correction);
  }
  for (; d < head_dim; d += kLanes) {
    Values<R, 1>(work, query, groups, d == 0 ? next : nullptr, begin, end, head_dim, d, correction);
  }
}

PACELINE_INLINE void RunQueries(AttentionWork& work, int query, int count, const KeyGroup* groups,
                                bool prefetch, const KeyGroup* next, int64_t begin, int64_t end,
                                int32_t head_dim, float scale) {
  using Fn = void (*)(AttentionWork&, int, const KeyGroup*, bool, const KeyGroup*, int64_t, int64_t,
                      int32_t, float);
#if PACELINE_ISA == 2
  static constexpr Fn kFns[] = {nullptr,    RunTile<1>, RunTile<2>, RunTile<3>,
                                RunTile<4>, RunTile<5>, RunTile<6>};
#else
  static constexpr Fn kFns[] = {nullptr, RunTile<1>, RunTile<2>};
#endif
  while (count > 0) {
    const int run = static_cast<int>(Min(count, kRunQueries));
    kFns[run](work, query, groups, prefetch, next, begin, end, head_dim, scale);
    prefetch = false;
    next = nullptr;
    query += run;
    count -= run;
  }
}

// Adds a chunk's result to those before it; `first`: there are none.
PACELINE_INLINE void Fold(bool first, int32_t head_dim, float chunk_max, float chunk_sum,
                          const float* chunk_o, float* maximum, float* sum, float* o) {
  if (first) {
    *maximum = chunk_max;
    *sum = chunk_sum;
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      StoreN(o + d, LoadN(chunk_o + d, head_dim - d), head_dim - d);
    }
    return;
  }
  const float both = chunk_max > *maximum ? chunk_max : *maximum;
  const F32 old_scale = Exp(Set(*maximum - both));
  const F32 new_scale = Exp(Set(chunk_max - both));
  float a[kLanes], b[kLanes];
  Store(a, old_scale);
  Store(b, new_scale);
  *maximum = both;
  *sum = *sum * a[0] + chunk_sum * b[0];
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const int64_t left = head_dim - d;
    StoreN(o + d, MulAdd(LoadN(chunk_o + d, left), new_scale, Mul(LoadN(o + d, left), old_scale)),
           left);
  }
}

PACELINE_INLINE void StoreOutput(const float* o, float sum, int32_t head_dim, Bf16* out) {
  const F32 scale = Set(1.0f / sum);
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    StoreBf16N(out + d, Mul(LoadN(o + d, head_dim - d), scale), head_dim - d);
  }
}

void Combine(const float* partials, int64_t stride, int32_t num_chunks, int32_t head_dim,
             Bf16* out) {
  float maximum = 0, sum = 0;
  float o[kMaxHeadDim];
  for (int32_t c = 0; c < num_chunks; ++c) {
    const float* p = partials + c * stride;
    Fold(c == 0, head_dim, p[head_dim], p[head_dim + 1], p, &maximum, &sum, o);
  }
  StoreOutput(o, sum, head_dim, out);
}

// What the rows of a span see.
class VisibleKeys {
 public:
  VisibleKeys(const AttentionTask& task) : task_(task), span_(*task.span) {}

  int64_t Count(int32_t row) const {
    int64_t count = int64_t{span_.context_len} + 1;
    if (span_.parents == nullptr) return count + row;
    for (int32_t r = span_.parents[row]; r >= 0; r = span_.parents[r]) ++count;
    return count;
  }

  // Keys of ordinals [tile, tile + count), which are KV indices too.
  void Direct(int64_t tile, int64_t count, KeyGroup* groups) const {
    for (int64_t g = 0; g * kLanes < count; ++g) groups[g] = DirectGroup(tile + g * kLanes);
  }

  // The same for a tree's row that sees `visible` keys, of which [context_len, visible) are its
  // path.
  void Gather(int32_t row, int64_t visible, int64_t tile, int64_t count, AttentionWork& work,
              KeyGroup* groups) const {
    const int32_t head_dim = task_.params->kv.head_dim;
    for (int64_t g = 0; g * kLanes < count; ++g) {
      const int64_t first = tile + g * kLanes;
      if (first + kLanes <= span_.context_len) {
        groups[g] = DirectGroup(first);
        continue;
      }
      Bf16* k = work.gathered_k[g];
      Bf16* v = work.gathered_v[g];
      memset(static_cast<void*>(k), 0, sizeof(Bf16) * static_cast<size_t>(head_dim) * kLanes);
      int32_t at = row;  // walks up from the row's own key, the last ordinal
      int64_t ordinal = visible - 1;
      for (; ordinal >= first + kLanes; --ordinal) at = span_.parents[at];
      for (; ordinal >= first; --ordinal) {
        const bool in_context = ordinal < span_.context_len;
        const int64_t index = in_context ? ordinal : int64_t{span_.context_len} + at;
        if (!in_context) at = span_.parents[at];
        CopyKey(index, ordinal - first, k, v);
      }
      groups[g] = {k, v, 2 * kLanes};
    }
  }

 private:
  int64_t Slot(int64_t index) const {
    const int64_t block_size = task_.params->kv.block_size;
    return span_.block_table[index / block_size] * block_size + index % block_size;
  }
  KeyGroup DirectGroup(int64_t index) const {
    const AttentionParams& p = *task_.params;
    const int64_t slot = Slot(index);
    return {p.k_cache + p.kv.KIndex(slot, task_.kv_head, 0),
            p.v_cache + p.kv.VIndex(slot, task_.kv_head, 0), 2 * int64_t{p.kv.block_size}};
  }
  void CopyKey(int64_t index, int64_t lane, Bf16* k, Bf16* v) const {
    const AttentionParams& p = *task_.params;
    const int64_t head_dim = p.kv.head_dim;
    const KeyGroup from = DirectGroup(index);
    for (int64_t d = 0; d < head_dim / 2; ++d) {
      memcpy(static_cast<void*>(k + (d * kLanes + lane) * 2), from.k + d * from.k_stride,
             2 * sizeof(Bf16));
    }
    memcpy(static_cast<void*>(v + lane * head_dim), from.v,
           static_cast<size_t>(head_dim) * sizeof(Bf16));
  }

  const AttentionTask& task_;
  const AttentionSpan& span_;
};

PACELINE_INLINE void LoadQueries(const AttentionTask& t, AttentionWork& work) {
  const int32_t head_dim = t.params->kv.head_dim;
  int query = 0;
  for (int32_t row = t.row_begin; row < t.row_end; ++row) {
    for (int32_t head = t.head_begin; head < t.head_end; ++head, ++query) {
      const float* q =
          t.params->q + (t.span->row_begin + row) * t.params->q_stride + int64_t{head} * head_dim;
      for (int64_t d = 0; d < head_dim; d += kLanes) {
        StoreBf16N(work.q[query] + d, LoadN(q + d, head_dim - d), head_dim - d);
      }
    }
  }
}

// The tile from ordinal `tile` on, for every row of the task that sees keys in it.
PACELINE_INLINE void AttendTile(const AttentionTask& t, const VisibleKeys& keys,
                                const int64_t* visible, int64_t tile, AttentionWork& work) {
  const AttentionParams& p = *t.params;
  const int heads = t.head_end - t.head_begin;
  const bool shared = t.span->parents == nullptr || tile + kAttentionTile <= t.span->context_len;
  const int rows = t.row_end - t.row_begin;
  KeyGroup groups[kGroups];
  KeyGroup next_groups[kGroups];
  const KeyGroup* ahead = nullptr;
  if (shared) {
    int64_t most = 0;
    for (int r = 0; r < rows; ++r) most = Max(most, visible[r]);
    keys.Direct(tile, Min(kAttentionTile, most - tile), groups);
    const int64_t next_tile = tile + kAttentionTile;
    if (next_tile + kAttentionTile <= t.span->context_len) {
      keys.Direct(next_tile, kAttentionTile, next_groups);
      ahead = next_groups;
    }
  }
  bool prefetch = shared;
  for (int r = 0; r < rows;) {
    const int64_t end = Min(kAttentionTile, visible[r] - tile);
    const int64_t begin = p.window > 0 ? Max(0, visible[r] - p.window - tile) : 0;
    int next = r + 1;
    if (end <= 0 || begin >= end) {
      r = next;
      continue;
    }
    if (shared) {  // rows that see all of the tile run together
      while (next < rows && begin == 0 && end == kAttentionTile &&
             visible[next] - tile >= kAttentionTile &&
             (p.window <= 0 || visible[next] - p.window - tile <= 0)) {
        ++next;
      }
    } else {
      keys.Gather(t.row_begin + r, visible[r], tile, end, work, groups);
    }
    RunQueries(work, r * heads, (next - r) * heads, groups, prefetch, ahead, begin, end,
               p.kv.head_dim, p.scale);
    prefetch = false;
    ahead = nullptr;
    r = next;
  }
}

void Attention(const AttentionTask& t) {
  AttentionWork work;  // ~180 KB, of which a task touches what its head_dim needs
  const AttentionParams& p = *t.params;
  const int32_t head_dim = p.kv.head_dim;
  const int32_t padded = (head_dim + kLanes - 1) / kLanes * kLanes;
  const int heads = t.head_end - t.head_begin;
  const int queries = (t.row_end - t.row_begin) * heads;
  const VisibleKeys keys(t);
  int64_t visible[kMaxQueries];
  int64_t most = 0;
  for (int32_t r = t.row_begin; r < t.row_end; ++r) {
    visible[r - t.row_begin] = keys.Count(r);
    most = Max(most, visible[r - t.row_begin]);
  }
  LoadQueries(t, work);
  bool any[kMaxQueries] = {};
  for (int32_t chunk = t.chunk_begin; chunk < t.chunk_end; ++chunk) {
    const int64_t begin = int64_t{chunk} * kAttentionChunk;
    const int64_t end = Min(begin + kAttentionChunk, most);
    for (int q = 0; q < queries; ++q) {
      work.chunk.maximum[q] = -kInfinity;
      work.chunk.sum[q] = 0;
      memset(work.chunk.o[q], 0, sizeof(float) * static_cast<size_t>(padded));
    }
    for (int64_t tile = begin; tile < end; tile += kAttentionTile) {
      AttendTile(t, keys, visible, tile, work);
    }
    for (int q = 0; q < queries; ++q) {
      if (t.partial != nullptr) {
        float* partial = t.partial + int64_t{q} * (head_dim + 2);
        memcpy(partial, work.chunk.o[q], sizeof(float) * static_cast<size_t>(head_dim));
        partial[head_dim] = work.chunk.maximum[q];
        partial[head_dim + 1] = work.chunk.sum[q];
      } else if (work.chunk.maximum[q] != -kInfinity || work.chunk.sum[q] != 0) {
        Fold(!any[q], head_dim, work.chunk.maximum[q], work.chunk.sum[q], work.chunk.o[q],
             &work.folded.maximum[q], &work.folded.sum[q], work.folded.o[q]);
        any[q] = true;
      }
    }
  }
  if (t.partial != nullptr) return;
  for (int q = 0; q < queries; ++q) {
    const int64_t row = t.span->row_begin + t.row_begin + q / heads;
    StoreOutput(work.folded.o[q], work.folded.sum[q], head_dim,
                p.out + row * p.out_stride + int64_t{t.head_begin + q % heads} * head_dim);
  }
}

}  // namespace paceline::kernels::PACELINE_ISA_NAMESPACE

// The register tiles of Linear. Included by isa_*.cc only.
//
// A tile holds R rows x V vectors of 16 columns in registers and walks k once. Every accumulator is
// one chain over k in ascending pairs, whatever R and V are: that is the batch invariance.
#pragma once

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/vec.h"

namespace paceline::kernels::PACELINE_ISA_NAMESPACE {

#if PACELINE_ISA == 2
inline constexpr int kWideRows = 6;     // x 4 vectors: 24 accumulators
inline constexpr int kNarrowRows = 12;  // x 2 vectors
#else
inline constexpr int kWideRows = 1;
inline constexpr int kNarrowRows = 2;
#endif
// How far weights are prefetched ahead, by the first block of rows that walks a panel: 8 KB, since
// the hardware's streams end with each page.
inline constexpr int64_t kPrefetchPairs = 64;

// Weights of vector i of a tile start at w[i]; the next pair of k lies 64 elements on. `skip`:
// elements from the end of a panel of this tile to where the next tile's begins; negative: no
// prefetch.
template <int R, int V>
PACELINE_INLINE void Accumulate(const Bf16* const (&w)[V], const Bf16* x, int64_t x_stride,
                                int64_t k, int64_t skip, F32 (&acc)[R][V]) {
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v] = Set(0.0f);
  }
  constexpr int64_t kStep = 2 * PackedWeights::kPanel;
  const int64_t pairs = k / 2;
  for (int64_t p = 0; p < pairs; ++p) {
    PairVec wv[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) wv[v] = LoadPairs(w[v] + p * kStep);
    if (skip >= 0) {
      const int64_t ahead = p + kPrefetchPairs;
      const int64_t offset = ahead * kStep + (ahead >= pairs ? skip : 0);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) Prefetch(w[v] + offset);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const PairVec xv = SetPair(x + r * x_stride + 2 * p);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[r][v] = Dot(acc[r][v], wv[v], xv);
    }
  }
  if (k % 2 != 0) {
    for (int v = 0; v < V; ++v) {
      const PairVec wv = LoadPairs(w[v] + pairs * kStep);
      for (int r = 0; r < R; ++r) {
        acc[r][v] = Dot(acc[r][v], wv, SetHalfPair(x + r * x_stride + 2 * pairs));
      }
    }
  }
}

PACELINE_INLINE void StoreColumns(const LinearTask& t, int64_t row, int64_t column, F32 sum) {
  const int64_t count = Min(kLanes, t.n - column);
  if (count <= 0) return;
  if (t.bias != nullptr) sum = Add(sum, LoadN(t.bias + column, count));
  const int64_t at = row * t.y_stride + column;
  if (t.output == LinearOutput::kBf16) {
    StoreBf16N(t.y_bf16 + at, sum, count);
  } else {
    if (t.output == LinearOutput::kAddFloat) sum = Add(LoadN(t.y_f32 + at, count), sum);
    StoreN(t.y_f32 + at, sum, count);
  }
}

template <int R, int V>
void LinearTile(const LinearTask& t, int64_t row, int64_t vector) {
  const int64_t panel_elements = (t.k + 1) / 2 * 2 * PackedWeights::kPanel;
  const Bf16* w[V];
  for (int v = 0; v < V; ++v) {
    w[v] = t.weights + (vector + v) / 2 * panel_elements + (vector + v) % 2 * 2 * kLanes;
  }
  F32 acc[R][V];
  Accumulate<R, V>(w, t.x + row * t.x_stride, t.x_stride, t.k,
                   row == t.row_begin ? Max(V / 2 - 1, 0) * panel_elements : -1, acc);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) StoreColumns(t, row + r, (vector + v) * kLanes, acc[r][v]);
  }
}

// G vectors of gate and the same of up; `vector` counts columns of y.
template <int R, int G>
void SwiGluTile(const LinearTask& t, int64_t row, int64_t vector) {
  const int64_t panel_elements = (t.k + 1) / 2 * 2 * PackedWeights::kPanel;
  const Bf16* w[2 * G];
  for (int g = 0; g < G; ++g) {
    w[g] = t.weights + (vector + g) / 2 * 2 * panel_elements + (vector + g) % 2 * 2 * kLanes;
    w[G + g] = w[g] + panel_elements;
  }
  F32 acc[R][2 * G];
  Accumulate<R, 2 * G>(w, t.x + row * t.x_stride, t.x_stride, t.k,
                       row == t.row_begin ? panel_elements : -1, acc);
  for (int r = 0; r < R; ++r) {
    for (int g = 0; g < G; ++g) {
      const int64_t column = (vector + g) * kLanes;
      const int64_t count = Min(kLanes, t.n - column);
      if (count <= 0) continue;
      StoreBf16N(t.y_bf16 + (row + r) * t.y_stride + column, Mul(Silu(acc[r][g]), acc[r][G + g]),
                 count);
    }
  }
}

using TileFn = void (*)(const LinearTask&, int64_t row, int64_t vector);

template <int V, int... R>
struct PlainTiles {
  static constexpr TileFn kFns[] = {nullptr, LinearTile<R, V>...};
};
template <int G, int... R>
struct SwiGluTiles {
  static constexpr TileFn kFns[] = {nullptr, SwiGluTile<R, G>...};
};

// Rows in blocks as equal as can be, none above max_rows.
template <typename Fn>
PACELINE_INLINE void ForRowBlocks(int64_t begin, int64_t end, int64_t max_rows, Fn fn) {
  const int64_t rows = end - begin;
  const int64_t blocks = (rows + max_rows - 1) / max_rows;
  int64_t row = begin;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t next = begin + rows * (b + 1) / blocks;
    fn(row, next - row);
    row = next;
  }
}

void Linear(const LinearTask& t) {
#if PACELINE_ISA == 2
  using Wide = PlainTiles<4, 1, 2, 3, 4, 5, 6>;
  using Narrow = PlainTiles<2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
  using GluWide = SwiGluTiles<2, 1, 2, 3, 4, 5, 6>;
  using GluNarrow = SwiGluTiles<1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>;
  constexpr int kWideVectors = 4;
  constexpr int kNarrowVectors = 2;
#else
  using Wide = PlainTiles<2, 1>;
  using Narrow = PlainTiles<1, 1, 2>;
  using GluWide = SwiGluTiles<1, 1>;
  using GluNarrow = SwiGluTiles<1, 1>;
  constexpr int kWideVectors = 2;
  constexpr int kNarrowVectors = 1;
#endif
  const bool glu = t.output == LinearOutput::kSwiGlu;
  const bool wide = t.row_end - t.row_begin <= kWideRows;
  // In columns of y: two vectors a panel, or one a panel where panels come as gate and up.
  const int64_t per_panel = glu ? 1 : 2;
  int64_t vector = t.panel_begin * per_panel;
  const int64_t end = t.panel_end * per_panel;
  while (vector < end) {
    if (glu) {
      const int step = wide ? Max(kWideVectors / 2, 1) : Max(kNarrowVectors / 2, 1);
      const TileFn* fns = wide ? GluWide::kFns : GluNarrow::kFns;
      const int64_t rows = PACELINE_ISA == 2 ? (wide ? kWideRows : kNarrowRows) : 1;
      ForRowBlocks(t.row_begin, t.row_end, rows,
                   [&](int64_t row, int64_t count) { fns[count](t, row, vector); });
      vector += step;
    } else {
      const bool fits = wide && vector + kWideVectors <= end;
      const TileFn* fns = fits ? Wide::kFns : Narrow::kFns;
      ForRowBlocks(t.row_begin, t.row_end, fits ? kWideRows : kNarrowRows,
                   [&](int64_t row, int64_t count) { fns[count](t, row, vector); });
      vector += fits ? kWideVectors : kNarrowVectors;
    }
  }
}

}  // namespace paceline::kernels::PACELINE_ISA_NAMESPACE

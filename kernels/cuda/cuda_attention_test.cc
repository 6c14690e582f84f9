// CUDA attention against double precision over shuffled tables and a pool of NaN; bits of a row
// however its keys came and whatever runs beside it.
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "kernels/cpu/random_inputs.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/device_buffers.h"

namespace paceline::kernels {
namespace {

struct Shape {
  int32_t head_dim, num_heads, kv_heads, block_size;
  int32_t window = 0;
};

struct TestSpan {
  int32_t context_len, num_rows;
  std::vector<int32_t> parents;  // empty: causal
};

// Spans with their KV written at random blocks, and q for all rows.
class Batch {
 public:
  Batch(const Shape& shape, std::vector<TestSpan> spans, RandomInputs& random)
      : shape_(shape), spans_(std::move(spans)) {
    int32_t blocks = 1;
    for (const TestSpan& s : spans_) {
      blocks += (s.context_len + s.num_rows) / shape.block_size + 1;
    }
    std::vector<int32_t> free(static_cast<size_t>(blocks));
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), random.engine());
    kv_ = {blocks, shape.block_size, shape.kv_heads, shape.head_dim};
    const Bf16 nan{0xffff};
    k.assign(static_cast<size_t>(kv_.elements()), nan);
    v = k;
    int32_t rows = 0;
    for (const TestSpan& s : spans_) {
      AttentionSpanInput input;
      input.table_begin = static_cast<int32_t>(tables.size());
      input.context_len = s.context_len;
      input.row_begin = rows;
      input.num_rows = s.num_rows;
      rows += s.num_rows;
      const int32_t total = s.context_len + s.num_rows;
      for (int32_t i = 0; i < total; i += shape.block_size) {
        tables.push_back(free.back());
        free.pop_back();
      }
      for (int32_t i = 0; i < total; ++i) {
        for (int32_t h = 0; h < shape.kv_heads; ++h) {
          for (int32_t d = 0; d < shape.head_dim; ++d) {
            k[At(input.table_begin, i, h) + d] = ToBf16(random.Uniform());
            v[At(input.table_begin, i, h) + d] = ToBf16(random.Uniform());
          }
        }
      }
      inputs.push_back(input);
    }
    for (size_t i = 0; i < spans_.size(); ++i) {
      if (!spans_[i].parents.empty()) inputs[i].parents = spans_[i].parents.data();
    }
    q = random.Bf16s(int64_t{rows} * shape.num_heads * shape.head_dim);
    for (Bf16& x : q) x = ToBf16(ToFloat(x) * 2);
  }

  int64_t At(int32_t table_begin, int32_t index, int32_t head) const {
    const int64_t block = tables[static_cast<size_t>(table_begin + index / shape_.block_size)];
    return kv_.Index(block * shape_.block_size + index % shape_.block_size, head);
  }

  // Bits of `out`, with at most max_units partial units.
  std::vector<Bf16> Run(int32_t max_units, int32_t* splits = nullptr, bool portable = false) const {
    AttentionPlan plan;
    PlanAttention(inputs,
                  {shape_.num_heads, shape_.kv_heads, shape_.head_dim, shape_.window, max_units},
                  &plan);
    if (splits != nullptr) *splits = static_cast<int32_t>(plan.splits.size());
    // Lists may be padded with what does nothing.
    const CudaAttentionItem nothing{.span = static_cast<int32_t>(plan.spans.size())};
    plan.spans.push_back({});
    for (auto* items : {&plan.small_items, &plan.medium_items, &plan.large_items}) {
      items->push_back(nothing);
    }
    plan.splits.push_back({.span = nothing.span});
    const int64_t unit = int64_t{shape_.kv_heads} * kAttentionUnit;
    DeviceArray<Bf16> d_k(k), d_v(v), d_q(q), out(static_cast<int64_t>(q.size()));
    DeviceArray<int32_t> d_tables(tables), d_visible(plan.visible);
    DeviceArray<CudaAttentionSpan> d_spans(plan.spans);
    DeviceArray<uint32_t> d_masks(plan.masks);
    DeviceArray<CudaAttentionItem> d_small(plan.small_items), d_medium(plan.medium_items),
        d_large(plan.large_items);
    DeviceArray<CudaAttentionSplit> d_splits(plan.splits);
    DeviceArray<float> partials(plan.num_units * unit * shape_.head_dim);
    DeviceArray<float> stats(plan.num_units * unit * 2);
    CudaAttentionParams p;
    p.shape = kv_;
    p.k_cache = d_k.data();
    p.v_cache = d_v.data();
    p.q = d_q.data();
    p.out = out.data();
    p.block_tables = d_tables.data();
    p.spans = d_spans.data();
    p.visible = d_visible.data();
    p.masks = d_masks.data();
    p.small_items = d_small.data();
    p.medium_items = d_medium.data();
    p.large_items = d_large.data();
    p.splits = d_splits.data();
    p.num_small_items = static_cast<int32_t>(plan.small_items.size());
    p.num_medium_items = static_cast<int32_t>(plan.medium_items.size());
    p.num_large_items = static_cast<int32_t>(plan.large_items.size());
    p.num_splits = static_cast<int32_t>(plan.splits.size());
    p.partials = partials.data();
    p.partial_stats = stats.data();
    p.num_heads = shape_.num_heads;
    p.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
    p.window = shape_.window;
    p.portable = portable;
    EXPECT_LE(plan.num_units, max_units);
    Must(CudaAttention(p, nullptr));
    auto bits = out.Get();
    out.ExpectGuards();
    partials.ExpectGuards();
    stats.ExpectGuards();
    return bits;
  }

  // KV indices that a row sees, in the order of its sequence.
  std::vector<int32_t> Seen(size_t span, int32_t row) const {
    const TestSpan& s = spans_[span];
    std::vector<int32_t> seen;
    for (int32_t at = row; at >= 0; at = s.parents.empty() ? at - 1 : s.parents[at]) {
      seen.push_back(s.context_len + at);
    }
    for (int32_t i = s.context_len - 1; i >= 0; --i) seen.push_back(i);
    if (shape_.window > 0 && static_cast<int32_t>(seen.size()) > shape_.window) {
      seen.resize(static_cast<size_t>(shape_.window));
    }
    std::ranges::reverse(seen);
    return seen;
  }

  void ExpectDouble(const std::vector<Bf16>& out) const {
    const int32_t dim = shape_.head_dim;
    for (size_t s = 0; s < spans_.size(); ++s) {
      for (int32_t r = 0; r < spans_[s].num_rows; ++r) {
        const std::vector<int32_t> seen = Seen(s, r);
        for (int32_t h = 0; h < shape_.num_heads; ++h) {
          const int64_t at = (int64_t{inputs[s].row_begin + r} * shape_.num_heads + h) * dim;
          const int32_t kv_head = h / (shape_.num_heads / shape_.kv_heads);
          std::vector<double> weights;
          double total = 0;
          for (int32_t key : seen) {
            double dot = 0;
            for (int32_t d = 0; d < dim; ++d) {
              dot += double{ToFloat(q[at + d])} *
                     ToFloat(k[At(inputs[s].table_begin, key, kv_head) + d]);
            }
            weights.push_back(std::exp(dot / std::sqrt(static_cast<double>(dim))));
            total += weights.back();
          }
          for (int32_t d = 0; d < dim; ++d) {
            double expected = 0;
            for (size_t i = 0; i < seen.size(); ++i) {
              expected +=
                  weights[i] / total * ToFloat(v[At(inputs[s].table_begin, seen[i], kv_head) + d]);
            }
            ASSERT_NEAR(ToFloat(out[at + d]), expected, 6e-3)
                << "span " << s << " row " << r << " head " << h << " column " << d;
          }
        }
      }
    }
  }

  std::vector<AttentionSpanInput> inputs;
  std::vector<Bf16> k, v, q;
  std::vector<int32_t> tables;

 private:
  Shape shape_;
  CudaKvShape kv_;
  std::vector<TestSpan> spans_;
};

std::vector<int32_t> RandomTree(int32_t rows, RandomInputs& random) {
  std::vector<int32_t> parents;
  for (int32_t r = 0; r < rows; ++r) parents.push_back(r == 0 ? -1 : random.Int(0, r - 1));
  return parents;
}

TEST(CudaAttention, MatchesDouble) {
  PACELINE_NEEDS_GPU();
  const Shape shapes[] = {{64, 4, 2, 16},  {128, 8, 2, 32}, {128, 4, 4, 64},
                          {16, 4, 1, 16},  {72, 6, 2, 32},  {80, 3, 1, 16},
                          {256, 4, 2, 16}, {64, 32, 1, 64}, {8, 2, 2, 64}};
  for (const Shape& shape : shapes) {
    if (kEmulated && shape.head_dim > 80 && TestSeed() % 4 != 0) continue;
    SCOPED_TRACE(testing::Message() << "head_dim " << shape.head_dim << " heads " << shape.num_heads
                                    << "/" << shape.kv_heads);
    RandomInputs random(shape.head_dim * 100 + shape.num_heads);
    std::vector<TestSpan> spans;
    for (int32_t context : {0, 1, 62, 63, 64, 255, 256, 257, 600})
      spans.push_back({context, 1, {}});
    for (int32_t rows : {2, 5, 17}) spans.push_back({random.Int(0, 300), rows, {}});
    spans.push_back({0, 70, {}});
    spans.push_back({250, 9, RandomTree(9, random)});
    spans.push_back({0, 40, RandomTree(40, random)});
    spans.push_back({5, 0, {}});
    const Batch batch(shape, spans, random);
    int32_t splits = 0;
    const auto out = batch.Run(1 << 20, &splits);
    EXPECT_GT(splits, 0);
    batch.ExpectDouble(out);
    // The same bits without split, and with a workspace that ends in between.
    EXPECT_TRUE(SameBits(out.data(), batch.Run(0).data(), static_cast<int64_t>(out.size())));
    EXPECT_TRUE(SameBits(out.data(), batch.Run(7).data(), static_cast<int64_t>(out.size())));
    // And by the code for any GPU.
    EXPECT_TRUE(
        SameBits(out.data(), batch.Run(0, nullptr, true).data(), static_cast<int64_t>(out.size())));
  }
}

TEST(CudaAttention, Windows) {
  PACELINE_NEEDS_GPU();
  for (int32_t window : {1, 2, 64, 257, 300}) {
    SCOPED_TRACE(window);
    RandomInputs random(window);
    const Shape shape{64, 4, 2, 16, window};
    std::vector<TestSpan> spans;
    for (int32_t context : {0, 1, 63, 256, 300, 700}) spans.push_back({context, 1, {}});
    spans.push_back({500, 30, {}});
    spans.push_back({0, 40, {}});
    spans.push_back({300, 12, RandomTree(12, random)});
    spans.push_back({255, 40, RandomTree(40, random)});
    const Batch batch(shape, spans, random);
    const auto out = batch.Run(1 << 20);
    batch.ExpectDouble(out);
    EXPECT_TRUE(
        SameBits(out.data(), batch.Run(0, nullptr, true).data(), static_cast<int64_t>(out.size())));
  }
}

// A sequence's rows by prefill in one span, in chunks, by decode, and as a chain given as a tree.
TEST(CudaAttention, ARowsBitsDoNotDependOnItsSpan) {
  PACELINE_NEEDS_GPU();
  for (int32_t head_dim : {64, 128, 256}) {
    RandomInputs random(head_dim);
    const Shape shape{head_dim, 8, 2, 16};
    if (kEmulated && head_dim != 64) continue;
    const int32_t total = 300;
    Batch batch(shape, {{0, total, {}}}, random);
    const auto expected = batch.Run(0);
    const int64_t width = int64_t{shape.num_heads} * head_dim;
    std::vector<int32_t> chain(total);
    for (int32_t r = 0; r < total; ++r) chain[r] = r - 1;
    for (bool tree : {false, true}) {
      for (int32_t rows : {1, 2, 3, 8, 33}) {
        if (kEmulated && tree && rows != 8) continue;
        std::vector<AttentionSpanInput> spans;
        const std::vector<Bf16> q = batch.q;
        std::vector<int32_t> origin;
        int32_t at = rows <= 3 ? 250 : 0;  // the last rows are enough
        Batch cut = batch;
        cut.q.clear();
        for (; at < total; at += rows) {
          const int32_t count = std::min(rows, total - at);
          AttentionSpanInput input;
          input.context_len = at;
          input.row_begin = static_cast<int32_t>(origin.size());
          input.num_rows = count;
          if (tree) input.parents = chain.data();
          for (int32_t r = 0; r < count; ++r) origin.push_back(at + r);
          spans.push_back(input);
          cut.q.insert(cut.q.end(), q.begin() + at * width, q.begin() + (at + count) * width);
        }
        cut.inputs = spans;
        const auto out = cut.Run(rows == 3 ? 0 : 1 << 20);
        for (size_t r = 0; r < origin.size(); ++r) {
          ASSERT_TRUE(SameBits(out.data() + static_cast<int64_t>(r) * width,
                               expected.data() + origin[r] * width, width))
              << "rows " << rows << " tree " << tree << " row " << origin[r];
        }
      }
    }
  }
}

TEST(CudaAttention, LongContexts) {
  PACELINE_NEEDS_GPU();
  if (kEmulated) GTEST_SKIP() << "skipped: takes a GPU";
  RandomInputs random(31);
  const Batch batch({128, 8, 2, 16}, {{33000, 1, {}}, {5000, 7, {}}, {70, 1, {}}, {1500, 300, {}}},
                    random);
  const auto out = batch.Run(1 << 20);
  batch.ExpectDouble(out);
  EXPECT_TRUE(SameBits(out.data(), batch.Run(0).data(), static_cast<int64_t>(out.size())));
  EXPECT_TRUE(
      SameBits(out.data(), batch.Run(0, nullptr, true).data(), static_cast<int64_t>(out.size())));
}

TEST(CudaAttention, RefusesBadShapes) {
  PACELINE_NEEDS_GPU();
  CudaAttentionParams p;
  EXPECT_EQ(CudaAttention(p, nullptr), cudaSuccess);  // nothing to do
  p.num_small_items = 1;
  EXPECT_EQ(CudaAttention(p, nullptr), cudaErrorInvalidValue);
  // A scale that is not positive, everything else in order: one row, no keys before it.
  const DeviceArray<Bf16> cache(std::vector<Bf16>(16 * 8)), q(std::vector<Bf16>(8));
  DeviceArray<Bf16> out(8);
  const DeviceArray<int32_t> table(std::vector<int32_t>{0}), visible(std::vector<int32_t>{1});
  const DeviceArray<CudaAttentionSpan> spans(std::vector<CudaAttentionSpan>{{.num_rows = 1}});
  const DeviceArray<CudaAttentionItem> items(std::vector<CudaAttentionItem>{{.chunk_end = 1}});
  p.shape = {1, 16, 1, 8};
  p.k_cache = p.v_cache = cache.data();
  p.q = q.data();
  p.out = out.data();
  p.block_tables = table.data();
  p.visible = visible.data();
  p.spans = spans.data();
  p.small_items = items.data();
  p.num_heads = 1;
  p.scale = 1;
  EXPECT_EQ(CudaAttention(p, nullptr), cudaSuccess);
  p.scale = 0;
  EXPECT_EQ(CudaAttention(p, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace paceline::kernels

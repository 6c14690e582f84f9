#include "kernels/cpu/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/cpu/random_inputs.h"

namespace paceline::kernels {
namespace {

constexpr uint16_t kNanBits = 0x7fff;

struct SpanSpec {
  int32_t context = 0;
  int32_t rows = 1;
  bool tree = false;
};

// A batch over a pool whose blocks are shuffled and whose unused slots are NaN.
class Batch {
 public:
  Batch(KvShape shape, int32_t num_heads, int32_t window, const std::vector<SpanSpec>& specs,
        uint64_t salt)
      : random_(salt), shape_(shape), num_heads_(num_heads), window_(window) {
    int32_t blocks = 3;
    for (const SpanSpec& s : specs) blocks += Blocks(s);
    shape_.num_blocks = blocks;
    Bf16 nan;
    std::memcpy(&nan, &kNanBits, sizeof(nan));
    k_.assign(shape_.elements(), nan);
    v_.assign(shape_.elements(), nan);
    std::vector<int32_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::shuffle(order, random_.engine());
    tables_.resize(specs.size());
    parents_.resize(specs.size());
    for (size_t i = 0; i < specs.size(); ++i) {
      for (int32_t b = Blocks(specs[i]); b > 0; --b) {
        tables_[i].push_back(order.back());
        order.pop_back();
      }
      Add(specs[i], i);
    }
    q_ = random_.Floats(int64_t{rows_} * width(), 2);
    for (float& x : q_) x = ToFloat(ToBf16(x));
  }

  int32_t rows() const { return rows_; }
  int64_t width() const { return int64_t{num_heads_} * shape_.head_dim; }
  const std::vector<AttentionSpan>& spans() const { return spans_; }

  // Of some spans only; rows elsewhere stay as they were.
  std::vector<Bf16> Attend(const std::vector<AttentionSpan>& spans, ThreadPool& pool) {
    GuardedOutput<Bf16> out(rows_ * width());
    const CpuResult result = Attention(Params(spans, out.data()), pool);
    EXPECT_EQ(result, CpuResult::kOk);
    out.ExpectGuards();
    return out.values();
  }

  AttentionParams Params(const std::vector<AttentionSpan>& spans, Bf16* out) const {
    return {.kv = shape_,
            .k_cache = k_.data(),
            .v_cache = v_.data(),
            .q = q_.data(),
            .out = out,
            .spans = spans.data(),
            .num_spans = static_cast<int32_t>(spans.size()),
            .num_heads = num_heads_,
            .scale = scale(),
            .window = window_};
  }

  // Of one row and head, in double.
  std::vector<double> Reference(const AttentionSpan& span, int32_t row, int32_t head) const {
    std::vector<int32_t> keys;
    if (span.parents == nullptr) {
      for (int32_t i = 0; i <= span.context_len + row; ++i) keys.push_back(i);
    } else {
      for (int32_t r = row; r >= 0; r = span.parents[r]) keys.push_back(span.context_len + r);
      for (int32_t i = span.context_len - 1; i >= 0; --i) keys.push_back(i);
      std::ranges::reverse(keys);
    }
    if (window_ > 0 && static_cast<int32_t>(keys.size()) > window_) {
      keys.erase(keys.begin(), keys.end() - window_);
    }
    const int32_t kv_head = head / (num_heads_ / shape_.kv_heads);
    const float* q = q_.data() + (span.row_begin + row) * width() + int64_t{head} * shape_.head_dim;
    std::vector<double> scores;
    for (int32_t key : keys) {
      double dot = 0;
      for (int32_t d = 0; d < shape_.head_dim; ++d) {
        dot += double{q[d]} * double{ToFloat(k_[shape_.KIndex(Slot(span, key), kv_head, d)])};
      }
      scores.push_back(dot * double{scale()});
    }
    const double most = *std::ranges::max_element(scores);
    double sum = 0;
    for (double& s : scores) sum += s = std::exp(s - most);
    std::vector<double> out(shape_.head_dim, 0);
    for (size_t i = 0; i < keys.size(); ++i) {
      for (int32_t d = 0; d < shape_.head_dim; ++d) {
        out[d] +=
            scores[i] / sum * double{ToFloat(v_[shape_.VIndex(Slot(span, keys[i]), kv_head, d)])};
      }
    }
    return out;
  }

  void ExpectCorrect(const std::vector<Bf16>& out, int32_t every) const {
    for (const AttentionSpan& span : spans_) {
      for (int32_t row = 0; row < span.num_rows; ++row) {
        if (row % every != 0 && row != span.num_rows - 1) continue;
        for (int32_t head = 0; head < num_heads_; ++head) {
          const std::vector<double> expected = Reference(span, row, head);
          const int64_t at = (span.row_begin + row) * width() + int64_t{head} * shape_.head_dim;
          for (int32_t d = 0; d < shape_.head_dim; ++d) {
            const double got = double{ToFloat(out[at + d])};
            // Half a unit of the output's last place, and the rounding of the weights.
            ASSERT_NEAR(got, expected[d], 4e-3 + 4e-3 * std::fabs(expected[d]))
                << "context " << span.context_len << " row " << row << " head " << head;
          }
        }
      }
    }
  }

 private:
  int32_t Blocks(const SpanSpec& s) const {
    return (s.context + s.rows + shape_.block_size - 1) / shape_.block_size;
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim)); }
  int64_t Slot(const AttentionSpan& span, int32_t key) const {
    return int64_t{span.block_table[key / shape_.block_size]} * shape_.block_size +
           key % shape_.block_size;
  }

  void Add(const SpanSpec& spec, size_t i) {
    AttentionSpan span{.block_table = tables_[i].data(),
                       .context_len = spec.context,
                       .row_begin = rows_,
                       .num_rows = spec.rows};
    if (spec.tree) {
      for (int32_t r = 0; r < spec.rows; ++r) {
        parents_[i].push_back(r == 0 ? -1 : random_.Int(-1, r - 1));
      }
      span.parents = parents_[i].data();
    }
    for (int32_t key = 0; key < spec.context + spec.rows; ++key) {
      for (int32_t h = 0; h < shape_.kv_heads; ++h) {
        for (int32_t d = 0; d < shape_.head_dim; ++d) {
          k_[shape_.KIndex(Slot(span, key), h, d)] = ToBf16(random_.Uniform() * 2);
          v_[shape_.VIndex(Slot(span, key), h, d)] = ToBf16(random_.Uniform());
        }
      }
    }
    rows_ += spec.rows;
    spans_.push_back(span);
  }

  RandomInputs random_;
  KvShape shape_;
  int32_t num_heads_;
  int32_t window_;
  int32_t rows_ = 0;
  std::vector<Bf16> k_, v_;
  std::vector<float> q_;
  std::vector<std::vector<int32_t>> tables_, parents_;
  std::vector<AttentionSpan> spans_;
};

struct Shape {
  int32_t block_size, kv_heads, heads, head_dim;
};
const Shape kShapes[] = {{16, 2, 6, 64}, {32, 1, 4, 32},   {64, 4, 4, 80},
                         {16, 1, 1, 2},  {32, 2, 16, 128}, {16, 1, 7, 96}};

KvShape KvOf(const Shape& s) {
  return {.block_size = s.block_size, .kv_heads = s.kv_heads, .head_dim = s.head_dim};
}

class AttentionTest : public testing::TestWithParam<Isa> {};
INSTANTIATE_TEST_SUITE_P(Isas, AttentionTest, testing::ValuesIn(SupportedIsas()),
                         [](const auto& info) { return IsaName(info.param); });

TEST_P(AttentionTest, MatchesDoubleOnRaggedBatches) {
  ThreadPool pool(2, GetParam());
  RandomInputs random(7);
  for (const Shape& s : kShapes) {
    for (int32_t window : Thin() ? std::vector{0, 50} : std::vector{0, 1, 50, 700}) {
      std::vector<SpanSpec> specs;
      for (int i = 0; i < 6; ++i) {
        specs.push_back({.context = random.Int(0, 1) == 0 ? random.Int(0, 80) : random.Int(0, 700),
                         .rows = random.Int(0, 1) == 0 ? 1 : random.Int(1, 24),
                         .tree = random.Int(0, 1) == 0});
      }
      Batch batch(KvOf(s), s.heads, window, specs, random.engine()());
      batch.ExpectCorrect(batch.Attend(batch.spans(), pool), /*every=*/5);
      ASSERT_FALSE(HasFailure()) << "block " << s.block_size << " heads " << s.heads << " dim "
                                 << s.head_dim << " window " << window;
    }
  }
}

// Lengths around the borders of blocks, tiles and chunks, alone so that chunks are split.
TEST_P(AttentionTest, MatchesDoubleAtBorders) {
  ThreadPool pool(3, GetParam());
  uint64_t salt = 100;
  for (int32_t border : Thin() ? std::vector{16, 512} : std::vector{16, 64, 512, 1024}) {
    for (int32_t context : {border - 2, border - 1, border, border + 1}) {
      for (int32_t rows : {1, 2, 9}) {
        for (bool tree : {false, true}) {
          Batch batch({.block_size = 16, .kv_heads = 1, .head_dim = 32}, 3, 0,
                      {{.context = context, .rows = rows, .tree = tree}}, ++salt);
          batch.ExpectCorrect(batch.Attend(batch.spans(), pool), 1);
          ASSERT_FALSE(HasFailure()) << context << " + " << rows << (tree ? " tree" : "");
        }
      }
    }
  }
}

// A row has the same bits alone, in any batch, on any number of threads.
TEST_P(AttentionTest, ARowDoesNotDependOnItsNeighbours) {
  RandomInputs random(11);
  ThreadPool one(1, GetParam()), three(3, GetParam());
  for (int round = 0; round < (Thin() ? 3 : 12); ++round) {
    const Shape& s = kShapes[round % std::size(kShapes)];
    std::vector<SpanSpec> specs;
    for (int i = 0; i < 8; ++i) {
      specs.push_back({.context = random.Int(0, i % 2 == 0 ? 60 : 1300),
                       .rows = random.Int(1, 20),
                       .tree = random.Int(0, 2) == 0});
    }
    Batch batch(KvOf(s), s.heads, round % 3 == 0 ? 90 : 0, specs, random.engine()());
    const std::vector<Bf16> all = batch.Attend(batch.spans(), one);
    EXPECT_TRUE(SameBits(all.data(), batch.Attend(batch.spans(), three).data(),
                         batch.rows() * batch.width()));
    for (const AttentionSpan& span : batch.spans()) {
      const std::vector<Bf16> alone = batch.Attend({span}, three);
      const int64_t at = span.row_begin * batch.width();
      EXPECT_TRUE(SameBits(all.data() + at, alone.data() + at, span.num_rows * batch.width()));
    }
  }
}

// ... and whether its keys came by prefill, in chunks, or one by one.
TEST_P(AttentionTest, PrefillAndDecodeHaveTheSameBits) {
  ThreadPool pool(2, GetParam());
  RandomInputs random(13);
  for (const Shape& s : kShapes) {
    Batch batch(KvOf(s), s.heads, 0, {{.context = random.Int(0, 600), .rows = 40}},
                random.engine()());
    const AttentionSpan whole = batch.spans()[0];
    const std::vector<Bf16> prefill = batch.Attend({whole}, pool);
    for (int32_t chunk : {1, 7}) {
      std::vector<AttentionSpan> spans;
      for (int32_t r = 0; r < whole.num_rows; r += chunk) {
        AttentionSpan part = whole;
        part.context_len += r;
        part.row_begin += r;
        part.num_rows = std::min(chunk, whole.num_rows - r);
        spans.push_back(part);
      }
      const std::vector<Bf16> parts = batch.Attend(spans, pool);
      EXPECT_TRUE(SameBits(prefill.data(), parts.data(), batch.rows() * batch.width()))
          << "chunks of " << chunk;
    }
    // A chain told as a tree.
    std::vector<int32_t> parents(whole.num_rows);
    std::iota(parents.begin(), parents.end(), -1);
    AttentionSpan chain = whole;
    chain.parents = parents.data();
    EXPECT_TRUE(
        SameBits(prefill.data(), batch.Attend({chain}, pool).data(), batch.rows() * batch.width()));
  }
}

TEST(Attention, RefusesBadShapes) {
  ThreadPool pool(1);
  Batch batch({.block_size = 16, .kv_heads = 2, .head_dim = 8}, 4, 0,
              {{.context = 3, .rows = 2, .tree = true}}, 1);
  std::vector<Bf16> out(static_cast<size_t>(batch.rows() * batch.width()));
  const auto result = [&](auto change) {
    std::vector<AttentionSpan> spans = batch.spans();
    AttentionParams p = batch.Params(spans, out.data());
    change(p, spans[0]);
    return Attention(p, pool);
  };
  std::vector<int32_t> later = {-1, 1};
  EXPECT_EQ(result([](auto&, auto&) {}), CpuResult::kOk);
  EXPECT_EQ(result([](auto& p, auto&) { p.num_spans = 0; }), CpuResult::kOk);
  EXPECT_EQ(result([](auto& p, auto&) { p.num_heads = 3; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p, auto&) { p.window = -1; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p, auto&) { p.q = nullptr; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p, auto&) { p.q_stride = 5; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto&, auto& s) { s.context_len = -1; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto&, auto& s) { s.block_table = nullptr; }), CpuResult::kBadShape);
  EXPECT_EQ(result([&](auto&, auto& s) { s.parents = later.data(); }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p, auto&) { p.kv.head_dim = 7; }), CpuResult::kUnsupported);
  EXPECT_EQ(result([](auto& p, auto&) { p.kv.block_size = 8; }), CpuResult::kUnsupported);
}

}  // namespace
}  // namespace paceline::kernels

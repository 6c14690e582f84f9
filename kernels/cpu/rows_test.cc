#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/random_inputs.h"
#include "kernels/cpu/rope.h"

namespace paceline::kernels {
namespace {

class RowsTest : public testing::TestWithParam<Isa> {};
INSTANTIATE_TEST_SUITE_P(Isas, RowsTest, testing::ValuesIn(SupportedIsas()),
                         [](const auto& info) { return IsaName(info.param); });

TEST_P(RowsTest, RmsNormMatchesDoubleAndIsInvariant) {
  for (int64_t dim : {1, 15, 16, 17, 64, 100, 384, 4096}) {
    RandomInputs random(dim);
    const int64_t rows = 37;
    const std::vector<float> x = random.Floats(rows * dim, 3);
    const std::vector<float> weight = random.Floats(dim);
    ThreadPool pool(2, GetParam());
    GuardedOutput<float> y(rows * dim);
    GuardedOutput<Bf16> rounded(rows * dim);
    RmsNormParams p{.x = x.data(), .weight = weight.data()};
    p.y_f32 = y.data();
    p.y_bf16 = rounded.data();
    p.rows = rows;
    p.dim = dim;
    p.eps = 1e-5f;
    ASSERT_EQ(RmsNorm(p, pool), CpuResult::kOk);
    y.ExpectGuards();
    rounded.ExpectGuards();
    for (int64_t row = 0; row < rows; ++row) {
      double squares = 0;
      for (int64_t i = 0; i < dim; ++i) squares += double{x[row * dim + i]} * x[row * dim + i];
      const double scale = 1 / std::sqrt(squares / static_cast<double>(dim) + 1e-5);
      for (int64_t i = 0; i < dim; ++i) {
        const double expected = x[row * dim + i] * scale * weight[i];
        ASSERT_NEAR(y.data()[row * dim + i], expected, 2e-6 * (std::fabs(expected) + 1));
        ASSERT_EQ(rounded.data()[row * dim + i].bits, ToBf16(y.data()[row * dim + i]).bits);
      }
      std::vector<float> alone(static_cast<size_t>(dim));
      RmsNormParams single = p;
      single.x += row * dim;
      single.y_f32 = alone.data();
      single.y_bf16 = nullptr;
      single.rows = 1;
      ThreadPool one(1, GetParam());
      ASSERT_EQ(RmsNorm(single, one), CpuResult::kOk);
      ASSERT_TRUE(SameBits(alone.data(), y.data() + row * dim, dim));
    }
  }
}

double RopeAngle(const RopeConfig& c, int32_t position, int32_t i) {
  double f = std::pow(c.theta, -2.0 * i / c.rotary_dim);
  if (c.scaling == RopeScaling::kLinear) f /= c.factor;
  if (c.scaling == RopeScaling::kLlama3) {
    const double turns = c.original_max_position * f / (2 * std::acos(-1.0));
    if (turns < c.low_freq_factor) {
      f /= c.factor;
    } else if (turns <= c.high_freq_factor) {
      const double smooth = (turns - c.low_freq_factor) / (c.high_freq_factor - c.low_freq_factor);
      f = (1 - smooth) * f / c.factor + smooth * f;
    }
  }
  return position * f;
}

TEST_P(RowsTest, RopeMatchesDouble) {
  for (int32_t rotary : {2, 32, 64, 72}) {
    for (RopeScaling scaling : {RopeScaling::kNone, RopeScaling::kLinear, RopeScaling::kLlama3}) {
      RopeConfig config{.rotary_dim = rotary, .theta = 500000.0, .scaling = scaling, .factor = 8};
      config.original_max_position = 512;
      const RopeTable table(config, 3000);
      RandomInputs random(rotary);
      const int32_t heads = 3, head_dim = 80;
      const int64_t rows = 20, stride = heads * head_dim + 5;
      GuardedOutput<float> x(rows * stride);
      const std::vector<float> before = random.Floats(rows * stride);
      std::copy(before.begin(), before.end(), x.data());
      std::vector<int32_t> positions;
      for (int64_t r = 0; r < rows; ++r) positions.push_back(r == 0 ? 0 : random.Int(0, 2999));
      ThreadPool pool(2, GetParam());
      RopeParams p{&table, x.data(), positions.data(), rows, heads, head_dim, stride};
      ASSERT_EQ(Rope(p, pool), CpuResult::kOk);
      x.ExpectGuards();
      for (int64_t i = 0; i < rows * stride; ++i) {
        const int64_t row = i / stride, column = i % stride;
        const int64_t d = column % head_dim;
        double expected = before[i];
        if (column < heads * head_dim && d < rotary) {
          const int64_t half = rotary / 2;
          const double angle = RopeAngle(config, positions[row], static_cast<int32_t>(d % half));
          const double other = before[d < half ? i + half : i - half];
          expected = before[i] * std::cos(angle) + (d < half ? -other : other) * std::sin(angle);
        }
        ASSERT_NEAR(x.data()[i], expected, 1e-6) << row << " " << column;
      }
      positions[3] = 3000;
      EXPECT_EQ(Rope(p, pool), CpuResult::kBadShape);
      positions[3] = -1;
      EXPECT_EQ(Rope(p, pool), CpuResult::kBadShape);
    }
  }
}

TEST_P(RowsTest, SwiGluAddConvert) {
  for (int64_t dim : {1, 16, 33, 1000}) {
    RandomInputs random(dim + 1);
    const int64_t rows = 9;
    std::vector<float> gate = random.Floats(rows * dim, 20);
    const std::vector<float> up = random.Floats(rows * dim);
    gate[0] = -100;  // e^100 overflows a naive silu
    gate[1 % gate.size()] = 100;
    ThreadPool pool(2, GetParam());
    GuardedOutput<Bf16> y(rows * dim);
    SwiGluParams p{gate.data(), up.data(), y.data(), rows, dim};
    ASSERT_EQ(SwiGlu(p, pool), CpuResult::kOk);
    y.ExpectGuards();
    for (int64_t i = 0; i < rows * dim; ++i) {
      const double g = gate[i];
      const double expected = g / (1 + std::exp(-g)) * up[i];
      ASSERT_NEAR(ToFloat(y.data()[i]), expected, 4e-3 * std::fabs(expected) + 1e-6);
    }
    GuardedOutput<float> sum(rows * dim);
    std::copy(up.begin(), up.end(), sum.data());
    ASSERT_EQ(AddInPlace(gate.data(), sum.data(), rows * dim, pool), CpuResult::kOk);
    GuardedOutput<Bf16> converted(rows * dim);
    ASSERT_EQ(ConvertToBf16(gate.data(), converted.data(), rows * dim, pool), CpuResult::kOk);
    for (int64_t i = 0; i < rows * dim; ++i) {
      ASSERT_EQ(sum.data()[i], up[i] + gate[i]);
      ASSERT_EQ(converted.data()[i].bits, ToBf16(gate[i]).bits);
    }
    sum.ExpectGuards();
    converted.ExpectGuards();
  }
}

TEST_P(RowsTest, EmbedFromTableAndPacked) {
  RandomInputs random(5);
  const int64_t vocab = 75, dim = 50;
  const std::vector<Bf16> table = random.Bf16s(vocab * dim);
  const PackedWeights packed = PackWeights(table.data(), vocab, dim);
  const std::vector<int32_t> ids = {0, 74, 3, 3, 31, 32};
  ThreadPool pool(2, GetParam());
  GuardedOutput<float> a(6 * dim), b(6 * dim);
  EmbedParams p{table.data(), nullptr, ids.data(), a.data(), 6, dim, 2.0f};
  ASSERT_EQ(Embed(p, pool), CpuResult::kOk);
  p.table = nullptr;
  EXPECT_EQ(Embed(p, pool), CpuResult::kBadShape);
  p.packed = &packed;
  p.y = b.data();
  ASSERT_EQ(Embed(p, pool), CpuResult::kOk);
  for (int64_t i = 0; i < 6 * dim; ++i) {
    EXPECT_EQ(a.data()[i], 2 * ToFloat(table[ids[i / dim] * dim + i % dim]));
  }
  EXPECT_TRUE(SameBits(a.data(), b.data(), 6 * dim));
  a.ExpectGuards();
  b.ExpectGuards();
}

TEST_P(RowsTest, StoreAndCopyKv) {
  for (int32_t block_size : {16, 32, 64}) {
    RandomInputs random(block_size);
    const KvShape shape{5, block_size, 2, 24};
    const int64_t rows = 23, width = 48, slots = 5 * block_size;
    const std::vector<float> k = random.Floats(rows * width), v = random.Floats(rows * width);
    std::vector<int64_t> at(static_cast<size_t>(slots));
    for (int64_t i = 0; i < slots; ++i) at[i] = i;
    std::shuffle(at.begin(), at.end(), random.engine());
    at.resize(rows);
    at[4] = -1;
    ThreadPool pool(2, GetParam());
    GuardedOutput<Bf16> k_cache(shape.elements()), v_cache(shape.elements());
    StoreKvParams p{shape, k_cache.data(), v_cache.data(), k.data(), v.data(), at.data(), rows};
    ASSERT_EQ(StoreKv(p, pool), CpuResult::kOk);
    k_cache.ExpectGuards();
    v_cache.ExpectGuards();
    std::vector<bool> written(static_cast<size_t>(slots));
    const auto expect_slot = [&](int64_t slot, int64_t row) {
      for (int32_t c = 0; c < width; ++c) {
        const int32_t head = c / 24, d = c % 24;
        ASSERT_EQ(k_cache.data()[shape.KIndex(slot, head, d)].bits,
                  ToBf16(k[row * width + c]).bits);
        ASSERT_EQ(v_cache.data()[shape.VIndex(slot, head, d)].bits,
                  ToBf16(v[row * width + c]).bits);
      }
    };
    for (int64_t row = 0; row < rows; ++row) {
      if (at[row] < 0) continue;
      written[at[row]] = true;
      expect_slot(at[row], row);
    }
    for (int64_t slot = 0; slot < slots; ++slot) {  // the others keep their poison
      if (!written[slot]) ASSERT_EQ(k_cache.data()[shape.KIndex(slot, 1, 3)].bits, 0xffff);
    }
    // A chain of copies in order: 0 -> unused -> unused.
    std::vector<int64_t> unused;
    for (int64_t s = 0; s < slots; ++s) {
      if (!written[s]) unused.push_back(s);
    }
    const KvSlotCopy copies[] = {
        {at[0], unused[0], 1}, {unused[0], unused[1], 1}, {at[2], at[3], 1}};
    Bf16* ks[] = {k_cache.data()};
    Bf16* vs[] = {v_cache.data()};
    CopyKvParams c{shape, ks, vs, 1, copies, 3};
    ASSERT_EQ(CopyKvSlots(c, pool), CpuResult::kOk);
    expect_slot(unused[1], 0);
    expect_slot(at[3], 2);
    const KvSlotCopy across[] = {{block_size - 1, 0, 2}};
    c.copies = across;
    c.num_copies = 1;
    EXPECT_EQ(CopyKvSlots(c, pool), CpuResult::kBadShape);
    const KvSlotCopy outside[] = {{0, slots, 1}};
    c.copies = outside;
    EXPECT_EQ(CopyKvSlots(c, pool), CpuResult::kBadShape);
    at[1] = slots;
    EXPECT_EQ(StoreKv(p, pool), CpuResult::kBadShape);
    p.shape.block_size = 8;
    EXPECT_EQ(StoreKv(p, pool), CpuResult::kUnsupported);
  }
}

TEST(KvCache, WholeBlockCopy) {
  RandomInputs random(77);
  const KvShape shape{4, 16, 1, 8};
  const int layers = 3;
  std::vector<std::vector<Bf16>> k, v;
  std::vector<Bf16*> ks, vs;
  for (int l = 0; l < layers; ++l) {
    k.push_back(random.Bf16s(shape.elements()));
    v.push_back(random.Bf16s(shape.elements()));
  }
  for (int l = 0; l < layers; ++l) {
    ks.push_back(k[l].data());
    vs.push_back(v[l].data());
  }
  const KvSlotCopy copy{2 * 16, 0, 11};
  const std::vector<Bf16> before = k[1];
  ThreadPool pool(2);
  ASSERT_EQ(CopyKvSlots({shape, ks.data(), vs.data(), layers, &copy, 1}, pool), CpuResult::kOk);
  for (int64_t slot = 0; slot < 16; ++slot) {
    for (int32_t d = 0; d < 8; ++d) {
      const int64_t from = slot < 11 ? slot + 32 : slot;
      EXPECT_EQ(k[1][shape.KIndex(slot, 0, d)].bits, before[shape.KIndex(from, 0, d)].bits);
    }
  }
}

TEST(Rows, RefuseBadShapes) {
  ThreadPool pool(1);
  std::vector<float> x(8);
  RmsNormParams norm{.x = x.data(), .weight = x.data()};
  norm.rows = 1;
  norm.dim = 8;
  EXPECT_EQ(RmsNorm(norm, pool), CpuResult::kBadShape);  // no output
  norm.y_f32 = x.data();
  EXPECT_EQ(RmsNorm(norm, pool), CpuResult::kOk);
  norm.x_stride = 7;
  EXPECT_EQ(RmsNorm(norm, pool), CpuResult::kBadShape);
  EXPECT_EQ(SwiGlu({x.data(), nullptr, nullptr, 1, 8}, pool), CpuResult::kBadShape);
  EXPECT_EQ(AddInPlace(nullptr, x.data(), 1, pool), CpuResult::kBadShape);
  EXPECT_EQ(ConvertToBf16(x.data(), nullptr, 1, pool), CpuResult::kBadShape);
}

}  // namespace
}  // namespace paceline::kernels

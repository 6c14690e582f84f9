#include "kernels/cpu/linear.h"

#include <gtest/gtest.h>

#include "kernels/cpu/random_inputs.h"

namespace paceline::kernels {
namespace {

struct Case {
  std::vector<Bf16> x, w;
  std::vector<float> bias, residual;
  int64_t m, n, k;
};

Case MakeCase(int64_t m, int64_t n, int64_t k, uint64_t salt) {
  RandomInputs random(salt);
  Case c{random.Bf16s(m * k), random.Bf16s(n * k), random.Floats(n), random.Floats(m * n), m, n, k};
  return c;
}

double Reference(const Case& c, int64_t row, int64_t column, double* magnitude) {
  double sum = 0;
  *magnitude = 1;
  for (int64_t i = 0; i < c.k; ++i) {
    const double product =
        double{ToFloat(c.x[row * c.k + i])} * double{ToFloat(c.w[column * c.k + i])};
    sum += product;
    *magnitude += std::fabs(product);
  }
  return sum;
}

std::vector<float> RunFloat(const Case& c, const PackedWeights& w, int64_t row, int64_t rows,
                            ThreadPool& pool) {
  GuardedOutput<float> y(rows * c.n);
  LinearParams p;
  p.weights = &w;
  p.x = c.x.data() + row * c.k;
  p.y_f32 = y.data();
  p.m = rows;
  EXPECT_EQ(Linear(p, pool), CpuResult::kOk);
  y.ExpectGuards();
  return y.values();
}

class LinearTest : public testing::TestWithParam<Isa> {};
INSTANTIATE_TEST_SUITE_P(Isas, LinearTest, testing::ValuesIn(SupportedIsas()),
                         [](const auto& info) { return IsaName(info.param); });

TEST_P(LinearTest, MatchesDouble) {
  ThreadPool pool(2, GetParam());
  uint64_t salt = 1;
  for (int64_t k : {0, 1, 2, 7, 64, 129, 384}) {
    for (int64_t n : {1, 15, 16, 31, 32, 33, 64, 65, 100, 192}) {
      for (int64_t m : {1, 3, 13, 25, 64}) {
        if (Thin() && (m == 25 || n == 31 || k == 7)) continue;
        const Case c = MakeCase(m, n, k, ++salt);
        const PackedWeights w = PackWeights(c.w.data(), n, k);
        const std::vector<float> y = RunFloat(c, w, 0, m, pool);
        for (int64_t i = 0; i < m * n; ++i) {
          double magnitude;
          const double expected = Reference(c, i / n, i % n, &magnitude);
          ASSERT_NEAR(y[i], expected, 1e-6 * magnitude) << m << "x" << n << "x" << k << " at " << i;
        }
      }
    }
  }
}

TEST_P(LinearTest, BatchInvariant) {
  const int64_t n = 416, k = 387, most = 64;
  const Case c = MakeCase(most, n, k, 1000);
  const PackedWeights w = PackWeights(c.w.data(), n, k);
  ThreadPool one(1, GetParam());
  std::vector<float> alone;
  for (int64_t row = 0; row < most; ++row) {
    const std::vector<float> y = RunFloat(c, w, row, 1, one);
    alone.insert(alone.end(), y.begin(), y.end());
  }
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads, GetParam());
    for (int64_t m = 1; m <= most; m += m < 30 ? 1 : 17) {
      const int64_t first = (m * 7) % (most - m + 1);
      const std::vector<float> y = RunFloat(c, w, first, m, pool);
      ASSERT_TRUE(SameBits(y.data(), alone.data() + first * n, m * n)) << m << " rows, " << threads;
    }
  }
}

TEST_P(LinearTest, OutputsBiasAndStrides) {
  const Case c = MakeCase(14, 70, 96, 2000);
  ThreadPool pool(2, GetParam());
  const PackedWeights w = PackWeights(c.w.data(), c.n, c.k);
  const std::vector<float> plain = RunFloat(c, w, 0, c.m, pool);
  const int64_t stride = 75;
  GuardedOutput<float> added(c.m * stride);
  for (int64_t i = 0; i < c.m * c.n; ++i) {
    added.data()[i / c.n * stride + i % c.n] = c.residual[i];
  }
  LinearParams p;
  p.weights = &w;
  p.x = c.x.data();
  p.m = c.m;
  p.bias = c.bias.data();
  p.y_f32 = added.data();
  p.y_stride = stride;
  p.output = LinearOutput::kAddFloat;
  ASSERT_EQ(Linear(p, pool), CpuResult::kOk);
  GuardedOutput<Bf16> rounded(c.m * c.n);
  p.output = LinearOutput::kBf16;
  p.y_bf16 = rounded.data();
  p.y_stride = 0;
  ASSERT_EQ(Linear(p, pool), CpuResult::kOk);
  for (int64_t i = 0; i < c.m * c.n; ++i) {
    const float sum = plain[i] + c.bias[i % c.n];
    EXPECT_EQ(added.data()[i / c.n * stride + i % c.n], c.residual[i] + sum);
    EXPECT_EQ(rounded.data()[i].bits, ToBf16(sum).bits);
  }
  for (int64_t row = 0; row < c.m; ++row) {  // what lies between rows stays as it was
    for (int64_t i = c.n; i < stride; ++i) EXPECT_TRUE(std::isnan(added.data()[row * stride + i]));
  }
  added.ExpectGuards();
  rounded.ExpectGuards();
}

TEST_P(LinearTest, SwiGlu) {
  for (int64_t n : {8, 32, 40, 96, 130}) {
    const Case gate = MakeCase(30, n, 64, 3000 + n);
    const Case up = MakeCase(30, n, 64, 4000 + n);
    const PackedWeights w = PackGateUp(gate.w.data(), up.w.data(), n, 64);
    ThreadPool pool(2, GetParam());
    std::vector<Bf16> alone;
    for (int64_t m : {1, 5, 30}) {
      GuardedOutput<Bf16> y(m * n);
      LinearParams p;
      p.weights = &w;
      p.x = gate.x.data();
      p.y_bf16 = y.data();
      p.m = m;
      p.n = n;
      p.output = LinearOutput::kSwiGlu;
      ASSERT_EQ(Linear(p, pool), CpuResult::kOk);
      y.ExpectGuards();
      if (m == 1) alone = y.values();
      EXPECT_TRUE(SameBits(alone.data(), y.data(), n));
      for (int64_t i = 0; i < m * n; ++i) {
        Case mixed = gate;
        mixed.w = up.w;
        double magnitude;
        const double g = Reference(gate, i / n, i % n, &magnitude);
        const double u = Reference(mixed, i / n, i % n, &magnitude);
        const double expected = g / (1 + std::exp(-g)) * u;
        ASSERT_NEAR(ToFloat(y.data()[i]), expected, 5e-3 * std::fabs(expected) + 1e-3);
      }
    }
  }
}

TEST(PackedWeights, RoundTripAndParts) {
  const Case c = MakeCase(1, 77, 33, 5000);
  PackedWeights w(77, 33);
  w.Pack(c.w.data(), 0, 40);
  w.Pack(c.w.data() + 40 * 33, 40, 37);
  std::vector<Bf16> row(33);
  for (int64_t r = 0; r < 77; ++r) {
    w.UnpackRow(r, row.data());
    EXPECT_TRUE(SameBits(row.data(), c.w.data() + r * 33, 33));
  }
  std::vector<float> floats;
  for (Bf16 value : c.w) floats.push_back(ToFloat(value));
  PackedWeights from_float(77, 33);
  from_float.PackFloat(floats.data(), 0, 77);
  EXPECT_EQ(std::memcmp(w.data(), from_float.data(), w.bytes()), 0);
}

TEST(Linear, RefusesBadShapes) {
  const Case c = MakeCase(2, 8, 8, 6000);
  const PackedWeights w = PackWeights(c.w.data(), 8, 8);
  ThreadPool pool(1);
  std::vector<float> y(64);
  LinearParams good;
  good.weights = &w;
  good.x = c.x.data();
  good.y_f32 = y.data();
  good.m = 2;
  EXPECT_EQ(Linear(good, pool), CpuResult::kOk);
  const auto refused = [&](auto edit) {
    LinearParams p = good;
    edit(p);
    return Linear(p, pool) == CpuResult::kBadShape;
  };
  EXPECT_TRUE(refused([](LinearParams& p) { p.weights = nullptr; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.x = nullptr; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.y_f32 = nullptr; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.m = -1; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.n = 33; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.x_stride = 7; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.y_stride = 7; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.output = LinearOutput::kBf16; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.output = LinearOutput::kSwiGlu; }));
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(ToBf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(ToBf16(1.00390625f).bits, 0x3f80);  // half-way, down to even
  EXPECT_EQ(ToBf16(1.01171875f).bits, 0x3f82);  // half-way, up to even
  EXPECT_EQ(ToBf16(3.4e38f).bits, 0x7f80);      // overflows
  EXPECT_EQ(ToBf16(-0.0f).bits, 0x8000);
  EXPECT_TRUE(std::isnan(ToFloat(ToBf16(std::numeric_limits<float>::quiet_NaN()))));
}

}  // namespace
}  // namespace paceline::kernels

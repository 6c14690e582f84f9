#include "kernels/noise.h"

#include <gtest/gtest.h>

#include <cmath>

namespace paceline::kernels {
namespace {

// Random123's kat_vectors, philox4x32 with 10 rounds.
TEST(Philox, KnownAnswers) {
  const struct {
    PhiloxBlock counter;
    uint64_t key;
    PhiloxBlock expected;
  } kCases[] = {
      {{{0, 0, 0, 0}}, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{~0u, ~0u, ~0u, ~0u}}, ~uint64_t{0}, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       0x299f31d0a4093822,
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const auto& c : kCases) {
    const PhiloxBlock got = Philox4x32(c.counter, c.key);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(got.word[i], c.expected.word[i]) << i;
  }
}

double ReferenceGumbel(uint32_t b) {
  const long double two32 = 4294967296.0L;
  const long double e =
      b < 0x80000000u ? -log1pl(-(b + 0.5L) / two32) : -logl((two32 - b - 0.5L) / two32);
  return static_cast<double>(-logl(e));
}

TEST(Noise, WordAtTheEdges) {
  // Both ends and the border between the two forms, where resolution is lost first.
  for (uint32_t b :
       {0u, 1u, 2u, 0x7ffffffeu, 0x7fffffffu, 0x80000000u, 0x80000001u, 0xfffffffeu, 0xffffffffu}) {
    const double expected = ReferenceGumbel(b);
    EXPECT_NEAR(GumbelFromWord(b), expected, 3e-7 * std::max(1.0, std::fabs(expected))) << b;
  }
  EXPECT_NEAR(GumbelFromWord(0), 22.8738, 1e-3);            // the largest
  EXPECT_NEAR(GumbelFromWord(0xffffffffu), -3.1300, 1e-3);  // the smallest
}

TEST(Noise, WordMatchesLongDouble) {
  double worst = 0;
  for (uint64_t i = 0; i < 200000; ++i) {
    const uint32_t b = static_cast<uint32_t>(i * 0x9E3779B97F4A7C15ull >> 32);
    const double expected = ReferenceGumbel(b);
    const double error =
        std::fabs(GumbelFromWord(b) - expected) / std::max(1.0, std::fabs(expected));
    worst = std::max(worst, error);
  }
  EXPECT_LT(worst, 4e-7);
}

// Where E is small (b near 0) G = -log E must keep falling with b; where large likewise.
TEST(Noise, NearlyMonotone) {
  for (uint32_t start : {0u, 0x7fffff00u, 0xffffff00u}) {
    for (uint32_t b = start; b < start + 255; ++b) {
      EXPECT_GE(GumbelFromWord(b), GumbelFromWord(b + 1) - 2e-6f) << b;
    }
  }
}

TEST(Noise, CounterLayout) {
  const PhiloxBlock words = Philox4x32({{11, 3, 25, 0}}, 0x123456789abcdefull);
  for (uint32_t lane = 0; lane < 4; ++lane) {
    EXPECT_EQ(GumbelNoise(0x123456789abcdefull, 3, 11, 100 + lane),
              GumbelFromWord(words.word[lane]));
  }
}

TEST(Noise, Moments) {
  constexpr int kCount = 1 << 20;
  double sum = 0, squares = 0;
  for (int v = 0; v < kCount; ++v) {
    const double g = GumbelNoise(7, 0, 5, static_cast<uint32_t>(v));
    sum += g;
    squares += g * g;
  }
  const double mean = sum / kCount;
  const double variance = squares / kCount - mean * mean;
  // Euler's constant and pi^2 / 6, within five standard errors.
  EXPECT_NEAR(mean, 0.5772156649, 5 * 1.2825 / std::sqrt(kCount));
  EXPECT_NEAR(variance, 1.6449340668, 5 * 3.5 / std::sqrt(kCount));
}

}  // namespace
}  // namespace paceline::kernels

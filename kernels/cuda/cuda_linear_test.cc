// CUDA's Linear against double precision; a row's bits against those of other batches.
#include <cmath>
#include <optional>
#include <utility>

#include "kernels/cpu/random_inputs.h"
#include "kernels/cuda/device_buffers.h"
#include "kernels/cuda/linear.h"

namespace paceline::kernels {
namespace {

struct Inputs {
  Inputs(int32_t m, int32_t n, int32_t k, RandomInputs& random)
      : x(random.Bf16s(int64_t{m} * k)),
        w(random.Bf16s(int64_t{n} * k)),
        bias(random.Floats(n)),
        before(random.Floats(int64_t{m} * n)) {}
  std::vector<Bf16> x, w;
  std::vector<float> bias, before;
};

double Dot(const Inputs& in, int32_t k, int64_t row, int64_t column) {
  double sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    sum += double{ToFloat(in.x[row * k + i])} * ToFloat(in.w[column * k + i]);
  }
  return sum;
}

// Through the tile, or the one that CudaLinear chooses.
cudaError_t RunTile(const CudaLinearParams& p, std::optional<CudaTile> tile) {
  return tile.has_value() ? CudaTileLinear(p, *tile, nullptr) : CudaLinear(p, nullptr);
}

// Whether this GPU has the tile's instructions.
bool Runs(CudaTile tile) {
  DeviceArray<Bf16> x(64);
  DeviceArray<float> y(64);
  const CudaLinearParams p{x.data(), x.data(), nullptr, y.data(), nullptr, 1, 2, 8};
  const cudaError_t error = CudaTileLinear(p, tile, nullptr);
  if (error != cudaErrorNotSupported) Must(error);
  return error == cudaSuccess;
}

void CheckShape(int32_t m, int32_t n, int32_t k, std::optional<CudaTile> tile) {
  SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << k << " tile "
                                  << (tile.has_value() ? static_cast<int>(*tile) : -1));
  RandomInputs random(m * 131 + n * 17 + k);
  const Inputs in(m, n, k, random);
  DeviceArray<Bf16> x(in.x), w(in.w);
  DeviceArray<float> bias(in.bias);
  const double tolerance = 2e-6 * k + 1e-6;
  for (bool with_bias : {false, true}) {
    for (CudaLinearOutput output :
         {CudaLinearOutput::kFloat, CudaLinearOutput::kAddFloat, CudaLinearOutput::kBf16}) {
      const bool bf16 = output == CudaLinearOutput::kBf16;
      DeviceArray<float> y_f32(bf16 ? 0 : int64_t{m} * n);
      DeviceArray<Bf16> y_bf16(bf16 ? int64_t{m} * n : 0);
      if (output == CudaLinearOutput::kAddFloat) y_f32.Set(in.before);
      CudaLinearParams p{
          w.data(), x.data(), with_bias ? bias.data() : nullptr, y_f32.data(), y_bf16.data(), m, n,
          k,        output};
      Must(RunTile(p, tile));
      const auto floats = y_f32.Get();
      const auto halves = y_bf16.Get();
      y_f32.ExpectGuards();
      y_bf16.ExpectGuards();
      for (int64_t i = 0; i < int64_t{m} * n; ++i) {
        double expected = Dot(in, k, i / n, i % n) + (with_bias ? in.bias[i % n] : 0);
        if (output == CudaLinearOutput::kAddFloat) expected += in.before[i];
        const double got = bf16 ? ToFloat(halves[i]) : floats[i];
        ASSERT_NEAR(got, expected, tolerance + (bf16 ? 4e-3 * std::fabs(expected) : 0))
            << i / n << " " << i % n;
      }
    }
  }
  if (n % 2 != 0) return;
  DeviceArray<Bf16> y(int64_t{m} * n / 2);
  CudaLinearParams p{
      w.data(), x.data(), nullptr, nullptr, y.data(), m, n, k, CudaLinearOutput::kSwiGlu};
  Must(RunTile(p, tile));
  const auto got = y.Get();
  y.ExpectGuards();
  for (int64_t i = 0; i < int64_t{m} * n / 2; ++i) {
    const int64_t row = i / (n / 2), column = i % (n / 2);
    const double gate = Dot(in, k, row, 2 * column);
    const double expected = gate / (1 + std::exp(-gate)) * Dot(in, k, row, 2 * column + 1);
    ASSERT_NEAR(ToFloat(got[i]), expected, 4e-3 * std::fabs(expected) + 10 * tolerance);
  }
}

TEST(CudaLinear, MatchesDouble) {
  PACELINE_NEEDS_GPU();
  const std::pair<CudaTile, int32_t> tiles[] = {
      {CudaTile::kStream8, 8},
      {CudaTile::kStream16, 16},
      {CudaTile::kStream32, 32},
      {CudaTile::kStream64, 64},
      {CudaTile::kBlock128, 128},
      {CudaTile::kWgmma64x128, 64},
      {CudaTile::kWgmma64x128Parts4, 64},
      {CudaTile::kWgmma128x128, 128},
      {CudaTile::kWgmma128x128Parts4, 128},
      {CudaTile::kWgmma128x128Pair, 128},
      {CudaTile::kWgmma128x192Pair, 128},
  };
  for (const auto& [tile, rows] : tiles) {
    if (!Runs(tile)) continue;
    // One slice, most of it beyond K.
    CheckShape(1, tile < CudaTile::kWgmma64x128 ? 31 : 30, 8, tile);
    CheckShape(rows - 1, 130, 72, tile);   // two slices
    CheckShape(rows, 64, 520, tile);       // slices of two stages, the last ones empty
    CheckShape(rows + 1, 34, 1040, tile);  // a second tile of rows
  }
  for (int32_t m : {4, 5, 16, 33, 100}) CheckShape(m, 50, 64, std::nullopt);
}

// The same bits for a row alone and in any batch, in tiles [first, end) as in kStream8.
void CheckBits(CudaTile first, int end) {
  RandomInputs random(99);
  const int32_t n = 72, k = 1352, most = 70;
  const Inputs in(most, n, k, random);
  DeviceArray<Bf16> x(in.x), w(in.w);
  DeviceArray<float> all(int64_t{most} * n);
  CudaLinearParams p{w.data(), x.data(), nullptr, all.data(), nullptr, most, n, k};
  Must(CudaTileLinear(p, CudaTile::kStream8, nullptr));
  const auto expected = all.Get();
  for (int32_t m : {1, 2, 7, 16, 17, 33, 64}) {
    for (int i = static_cast<int>(first); i < end; ++i) {
      const auto tile = static_cast<CudaTile>(i);
      if (!Runs(tile)) continue;
      const int32_t begin = random.Int(0, most - m);
      DeviceArray<float> y(int64_t{m} * n);
      p.x = x.data() + int64_t{begin} * k;
      p.y_f32 = y.data();
      p.m = m;
      Must(CudaTileLinear(p, tile, nullptr));
      EXPECT_TRUE(SameBits(y.Get().data(), expected.data() + int64_t{begin} * n, int64_t{m} * n))
          << m << " tile " << i;
    }
  }
}

TEST(CudaLinear, ARowsBitsAreItsOwn) {
  PACELINE_NEEDS_GPU();
  CheckBits(CudaTile::kStream8, static_cast<int>(CudaTile::kWgmma64x128));
}

TEST(CudaLinear, HoppersTilesGiveTheSameBits) {
  PACELINE_NEEDS_GPU();
  CheckBits(CudaTile::kWgmma64x128, kCudaTiles);
}

// Whichever tile CudaLinear takes.
TEST(CudaLinear, EveryNumberOfRowsGivesTheSameBits) {
  PACELINE_NEEDS_GPU();
  RandomInputs random(98);
  const int32_t n = 200, k = 584, most = 300;
  const Inputs in(most, n, k, random);
  DeviceArray<Bf16> x(in.x), w(in.w);
  DeviceArray<float> y(int64_t{most} * n);
  CudaLinearParams p{w.data(), x.data(), nullptr, y.data(), nullptr, most, n, k};
  Must(CudaTileLinear(p, CudaTile::kStream8, nullptr));
  const auto expected = y.Get();
  for (int32_t m : {1, 9, 17, 65, 129, 300}) {
    p.m = m;
    y.Set(std::vector<float>(expected.size()));
    Must(CudaLinear(p, nullptr));
    EXPECT_TRUE(SameBits(y.Get().data(), expected.data(), int64_t{m} * n)) << m;
  }
}

TEST(CudaLinear, RefusesBadShapes) {
  PACELINE_NEEDS_GPU();
  DeviceArray<Bf16> x(64);
  DeviceArray<float> y(64);
  CudaLinearParams p{x.data(), x.data(), nullptr, y.data(), nullptr, 1, 4, 12};
  EXPECT_EQ(CudaLinear(p, nullptr), cudaErrorInvalidValue);  // k
  p.k = 8;
  p.output = CudaLinearOutput::kBf16;
  EXPECT_EQ(CudaLinear(p, nullptr), cudaErrorInvalidValue);  // no bf16 output
  p.output = CudaLinearOutput::kSwiGlu;
  p.y_bf16 = x.data();
  p.n = 3;
  EXPECT_EQ(CudaLinear(p, nullptr), cudaErrorInvalidValue);  // odd
}

}  // namespace
}  // namespace paceline::kernels

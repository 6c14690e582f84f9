// The CUDA kernels over single rows against the CPU kernels and double precision.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/kv_cache.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/random_inputs.h"
#include "kernels/cpu/rope.h"
#include "kernels/cuda/device_buffers.h"
#include "kernels/cuda/kv_cache.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/rows.h"

namespace paceline::kernels {
namespace {

TEST(CudaRows, EmbedAndMove) {
  PACELINE_NEEDS_GPU();
  for (int32_t dim : {8, 64, 2056}) {
    RandomInputs random(dim);
    const int32_t vocab = 75, rows = 9;
    const auto table = random.Bf16s(int64_t{vocab} * dim);
    std::vector<int32_t> ids;
    for (int i = 0; i < rows; ++i) ids.push_back(random.Int(0, vocab - 1));
    ids[0] = vocab - 1;
    DeviceArray<Bf16> d_table(table);
    DeviceArray<int32_t> d_ids(ids);
    DeviceArray<float> y(int64_t{rows} * dim);
    Must(CudaEmbed({d_table.data(), d_ids.data(), y.data(), rows, dim}, nullptr));
    const auto got = y.Get();
    y.ExpectGuards();
    for (int64_t i = 0; i < rows * dim; ++i) {
      ASSERT_EQ(got[i], ToFloat(table[int64_t{ids[i / dim]} * dim + i % dim]));
    }
    const std::vector<int32_t> from = {4, 0, 8}, to = {1, 3, 0};
    DeviceArray<int32_t> d_from(from), d_to(to);
    DeviceArray<float> z(int64_t{4} * dim);
    Must(CudaMoveRows({y.data(), z.data(), d_from.data(), d_to.data(), 3, dim}, nullptr));
    const auto moved = z.Get();
    z.ExpectGuards();
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(SameBits(&moved[int64_t{to[i]} * dim], &got[int64_t{from[i]} * dim], dim));
    }
    ASSERT_TRUE(std::isnan(moved[int64_t{2} * dim]));  // untouched
  }
  EXPECT_EQ(CudaEmbed({.rows = 1, .dim = 12}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(CudaMoveRows({.rows = 1, .dim = 6}, nullptr), cudaErrorInvalidValue);
}

TEST(CudaRows, RandomRowsAreTheHosts) {
  PACELINE_NEEDS_GPU();
  const RandomMatrix matrix{.key = 0x123456789abcdef0u, .scale = 0.3f};
  for (int32_t dim : {8, 2056}) {
    const int32_t rows = 3, stride = 2 * dim;
    DeviceArray<Bf16> y(int64_t{rows} * stride);
    Must(CudaRandomRows({matrix, y.data(), stride, rows, dim}, nullptr));
    const auto got = y.Get();
    y.ExpectGuards();
    double sum = 0;
    for (int64_t i = 0; i < int64_t{rows} * stride; ++i) {
      const int64_t row = i / stride, column = i % stride;
      if (column >= dim) {
        ASSERT_EQ(got[i].bits, 0xffff);  // untouched
        continue;
      }
      const int64_t at = row * dim + column;
      const PhiloxBlock run = RandomRun(matrix, at / kRandomRun);
      const Bf16 expected = RandomElement(matrix, run, static_cast<int>(at % kRandomRun));
      ASSERT_EQ(got[i].bits, expected.bits);
      ASSERT_LE(std::abs(ToFloat(got[i])), 0.3011f);
      sum += ToFloat(got[i]);
    }
    if (dim > 8) {
      EXPECT_LT(std::abs(sum / (int64_t{rows} * dim)), 0.01);
    }
  }
  EXPECT_EQ(CudaRandomRows({matrix, nullptr, 8, 1, 8}, nullptr), cudaErrorInvalidValue);
}

TEST(CudaRows, RmsNormMatchesDoubleWhateverTheBatch) {
  PACELINE_NEEDS_GPU();
  for (int32_t dim : {4, 64, 1000, 1024, 4100}) {
    RandomInputs random(dim + 7);
    const int32_t rows = 5;
    const auto x = random.Floats(int64_t{rows} * dim, 3), weight = random.Floats(dim);
    DeviceArray<float> d_x(x), d_weight(weight);
    DeviceArray<Bf16> y(int64_t{rows} * dim), alone(dim);
    CudaRmsNormParams p{d_x.data(), nullptr, d_weight.data(), y.data(), rows, dim, 1e-5f};
    Must(CudaRmsNorm(p, nullptr));
    const auto got = y.Get();
    y.ExpectGuards();
    for (int32_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (int32_t i = 0; i < dim; ++i) squares += double{x[r * dim + i]} * x[r * dim + i];
      const double scale = 1 / std::sqrt(squares / dim + 1e-5);
      for (int32_t i = 0; i < dim; ++i) {
        const double expected = x[r * dim + i] * scale * weight[i];
        ASSERT_NEAR(ToFloat(got[r * dim + i]), expected, 4.1e-3 * std::fabs(expected) + 1e-6);
      }
      const std::vector<int32_t> from = {r};
      DeviceArray<int32_t> d_from(from);
      p.from = d_from.data();
      p.y = alone.data();
      p.rows = 1;
      Must(CudaRmsNorm(p, nullptr));
      ASSERT_TRUE(SameBits(alone.Get().data(), got.data() + int64_t{r} * dim, dim));
    }
  }
}

struct RopeKvCase {
  int32_t head_dim, block_size;
  bool norms;
};

TEST(CudaRows, RopeKvMatchesTheCpu) {
  PACELINE_NEEDS_GPU();
  for (const RopeKvCase& c :
       {RopeKvCase{8, 16, false}, RopeKvCase{64, 32, true}, RopeKvCase{72, 64, true},
        RopeKvCase{128, 16, true}, RopeKvCase{256, 16, false}}) {
    RandomInputs random(c.head_dim);
    const int32_t rows = 11, heads = 6, kv_heads = 2, blocks = 4, positions = 300;
    const CudaKvShape shape{blocks, c.block_size, kv_heads, c.head_dim};
    const int64_t width = int64_t{heads + 2 * kv_heads} * c.head_dim;
    auto qkv = random.Floats(rows * width, 2);
    const auto q_norm = random.Floats(c.head_dim), k_norm = random.Floats(c.head_dim);
    const RopeTable table(RopeConfig{.rotary_dim = c.head_dim, .theta = 10000}, positions);
    std::vector<int32_t> at;
    std::vector<int64_t> slots(static_cast<size_t>(blocks * c.block_size));
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int64_t>(i);
    std::shuffle(slots.begin(), slots.end(), random.engine());
    slots.resize(rows);
    slots[3] = -1;
    for (int i = 0; i < rows; ++i) at.push_back(random.Int(0, positions - 1));
    at[0] = positions - 1;

    DeviceArray<float> d_qkv(qkv), d_qn(q_norm), d_kn(k_norm);
    DeviceArray<float> d_table(
        std::vector<float>(table.row(0), table.row(positions - 1) + c.head_dim));
    DeviceArray<int32_t> d_at(at);
    DeviceArray<int64_t> d_slots(slots);
    DeviceArray<Bf16> q(int64_t{rows} * heads * c.head_dim), k(shape.elements()),
        v(shape.elements());
    CudaRopeKvParams p;
    p.shape = shape;
    p.k_cache = k.data();
    p.v_cache = v.data();
    p.qkv = d_qkv.data();
    p.q = q.data();
    p.cos_sin = d_table.data();
    p.positions = d_at.data();
    p.slots = d_slots.data();
    if (c.norms) p.q_norm = d_qn.data(), p.k_norm = d_kn.data();
    p.rows = rows;
    p.num_heads = heads;
    Must(CudaRopeKv(p, nullptr));
    const auto got_q = q.Get(), got_k = k.Get(), got_v = v.Get();
    q.ExpectGuards();
    k.ExpectGuards();
    v.ExpectGuards();

    ThreadPool pool(1);
    for (int64_t r = 0; c.norms && r < rows; ++r) {
      RmsNormParams n{.dim = c.head_dim, .eps = p.eps};
      n.x = n.y_f32 = qkv.data() + r * width;
      n.weight = q_norm.data();
      n.rows = heads;
      ASSERT_EQ(RmsNorm(n, pool), CpuResult::kOk);
      n.x = n.y_f32 = n.y_f32 + int64_t{heads} * c.head_dim;
      n.weight = k_norm.data();
      n.rows = kv_heads;
      ASSERT_EQ(RmsNorm(n, pool), CpuResult::kOk);
    }
    ASSERT_EQ(
        Rope({&table, qkv.data(), at.data(), rows, heads + kv_heads, c.head_dim, width}, pool),
        CpuResult::kOk);
    std::vector<bool> written(static_cast<size_t>(blocks * c.block_size));
    const auto near = [](Bf16 got, float expected) {
      ASSERT_NEAR(ToFloat(got), expected, 8e-3 * std::fabs(expected) + 1e-5);
    };
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < int64_t{heads} * c.head_dim; ++i) {
        near(got_q[r * heads * c.head_dim + i], qkv[r * width + i]);
      }
      if (slots[r] < 0) continue;
      written[slots[r]] = true;
      for (int32_t h = 0; h < kv_heads; ++h) {
        for (int32_t d = 0; d < c.head_dim; ++d) {
          near(got_k[shape.Index(slots[r], h) + d], qkv[r * width + (heads + h) * c.head_dim + d]);
          near(got_v[shape.Index(slots[r], h) + d],
               qkv[r * width + (heads + kv_heads + h) * c.head_dim + d]);
        }
      }
    }
    for (size_t slot = 0; slot < written.size(); ++slot) {
      if (!written[slot]) {
        ASSERT_EQ(got_k[shape.Index(static_cast<int64_t>(slot), 1)].bits, 0xffff);
      }
    }
  }
}

TEST(CudaRows, KvCopiesInOrderOfTheirGroup) {
  PACELINE_NEEDS_GPU();
  RandomInputs random(3);
  const CudaKvShape shape{6, 16, 2, 24};
  const int32_t caches = 4;
  auto expected = random.Bf16s(caches * shape.elements());
  DeviceArray<Bf16> d_caches(expected);
  // A chain; one block over another; an overlap upwards and one downwards.
  const std::vector<CudaKvSlotCopy> copies = {{3, 7, 1},    {7, 9, 1},   {9, 3, 1},
                                              {32, 48, 11}, {66, 64, 5}, {80, 82, 6}};
  const std::vector<int32_t> groups = {0, 3, 4, 5, 6};
  DeviceArray<CudaKvSlotCopy> d_copies(copies);
  DeviceArray<int32_t> d_groups(groups);
  CudaCopyKvParams p{shape, d_caches.data(), caches, d_copies.data(), d_groups.data(), 4};
  Must(CudaCopyKv(p, nullptr));
  const auto got = d_caches.Get();
  d_caches.ExpectGuards();
  for (int32_t c = 0; c < caches; ++c) {
    Bf16* cache = expected.data() + c * shape.elements();
    for (const CudaKvSlotCopy& copy : copies) {
      for (int32_t h = 0; h < shape.kv_heads; ++h) {
        std::memmove(static_cast<void*>(cache + shape.Index(copy.dst, h)),
                     cache + shape.Index(copy.src, h),
                     static_cast<size_t>(copy.count * shape.head_dim) * sizeof(Bf16));
      }
    }
  }
  EXPECT_TRUE(SameBits(got.data(), expected.data(), static_cast<int64_t>(got.size())));
}

TEST(CudaRows, RefuseBadShapes) {
  PACELINE_NEEDS_GPU();
  EXPECT_EQ(CudaRmsNorm({.rows = 1, .dim = 6}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(CudaRmsNorm({.rows = 0, .dim = 8}, nullptr), cudaSuccess);
  CudaRopeKvParams rope;
  rope.shape = {1, 16, 1, 12};
  rope.rows = rope.num_heads = 1;
  EXPECT_EQ(CudaRopeKv(rope, nullptr), cudaErrorInvalidValue);
  rope.shape = {1, 8, 1, 16};
  EXPECT_EQ(CudaRopeKv(rope, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace paceline::kernels

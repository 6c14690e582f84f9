// Tensor-core products of bf16 from sm_80 on, the loads that feed them, and asynchronous copies
// into shared memory.
//
// Fragments of m16n8k16, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for
// mma.m16n8k16 with floating point type"):
//   A [16 x 16]  a[0]: row g,     columns 2t, 2t+1      a[1]: row g + 8, the same columns
//                a[2]: row g,     columns 2t+8, 2t+9    a[3]: row g + 8, the same columns
//   B [16 x 8]   b[0]: rows 2t, 2t+1, column g          b[1]: rows 2t+8, 2t+9, column g
//   C [16 x 8]   c[0], c[1]: row g, columns 2t, 2t+1    c[2], c[3]: row g + 8
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/bf16.h"

namespace paceline::kernels {

#ifdef PACELINE_CUDA_EMULATION

struct MmaLane {
  unsigned a[4], b[2];
  float c[4];
};

inline float HalfOf(unsigned pair, int i) {
  return __uint_as_float(i == 0 ? pair << 16 : pair & 0xffff0000u);
}

// Tensor cores of sm_90 add the 16 products and c in one go: their order changes no bit.
inline float SumOfProducts(float c, const float (&a)[16], const float (&b)[16]) {
  double sum = double{c};
  for (int k = 0; k < 16; ++k) sum += double{a[k]} * double{b[k]};
  return static_cast<float>(sum);
}

inline void MmaTogether(unsigned char* lanes) {
  MmaLane lane[32];
  for (int i = 0; i < 32; ++i) {
    memcpy(&lane[i], lanes + static_cast<size_t>(i) * emulation::kExchangeStride, sizeof(MmaLane));
  }
  float a[16][16], b[8][16];  // b by columns
  for (int k = 0; k < 16; ++k) {
    for (int row = 0; row < 16; ++row) {
      a[row][k] = HalfOf(lane[(row % 8) * 4 + (k % 8) / 2].a[row / 8 + 2 * (k / 8)], k % 2);
    }
    for (int column = 0; column < 8; ++column) {
      b[column][k] = HalfOf(lane[column * 4 + (k % 8) / 2].b[k / 8], k % 2);
    }
  }
  for (int i = 0; i < 32; ++i) {
    for (int j = 0; j < 4; ++j) {
      lane[i].c[j] = SumOfProducts(lane[i].c[j], a[i / 4 + j / 2 * 8], b[i % 4 * 2 + j % 2]);
    }
    memcpy(lanes + static_cast<size_t>(i) * emulation::kExchangeStride, &lane[i], sizeof(MmaLane));
  }
}

__device__ inline void MmaBf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  MmaLane own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  const unsigned char* all = emulation::Exchange(&own, sizeof(own), MmaTogether);
  memcpy(&own, all + static_cast<size_t>(emulation::Lane()) * emulation::kExchangeStride,
         sizeof(own));
  memcpy(c, own.c, sizeof(own.c));
}

template <bool kTranspose>
__device__ inline void LoadMatrices(unsigned (&r)[4], const Bf16* row) {
  const unsigned char* all = emulation::Exchange(&row, sizeof(row));
  const int lane = emulation::Lane();
  const int i = lane / 4, j = lane % 4 * 2;
  for (int m = 0; m < 4; ++m) {
    const auto element = [&](int line, int column) {
      const Bf16* p;
      memcpy(&p, all + static_cast<size_t>(m * 8 + line) * emulation::kExchangeStride, sizeof(p));
      return unsigned{p[column].bits};
    };
    r[m] = kTranspose ? element(j, i) | element(j + 1, i) << 16
                      : element(i, j) | element(i, j + 1) << 16;
  }
}

__device__ inline float Exp2(float x) { return std::exp2(x); }
__device__ inline unsigned PackBf16(float low, float high) {
  return unsigned{ToBf16(low).bits} | unsigned{ToBf16(high).bits} << 16;
}
__device__ inline void CopyAsync16(void* shared, const void* global, bool valid) {
  emulation::CopyAsync(shared, global, valid ? 16 : 0, valid ? 0 : 16);
}
__device__ inline void CommitCopies() { emulation::CommitCopies(); }
template <int kGroupsLeft>
__device__ inline void WaitCopies() {
  emulation::WaitCopies(kGroupsLeft);
}

#else

// c += a b
__device__ __forceinline__ void MmaBf16(float (&c)[4], const unsigned (&a)[4],
                                        const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices from shared memory: lane i gives the address of row i % 8 of matrix i / 8, 16
// bytes aligned. r[m] holds row lane / 4, columns 2 (lane % 4) and the next, of matrix m (or of its
// transpose).
template <bool kTranspose>
__device__ __forceinline__ void LoadMatrices(unsigned (&r)[4], const Bf16* row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

// 2^x by the special function unit alone: results below 2^-126 are 0. 2^0 is 1, 2^-inf is 0.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Rounded to nearest, `low` in the lower half.
__device__ __forceinline__ unsigned PackBf16(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// 16 bytes, or zeros where not `valid` (then nothing is read). Both addresses 16 bytes aligned.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, bool valid) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int kGroupsLeft>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroupsLeft) : "memory");
}

#endif

}  // namespace paceline::kernels

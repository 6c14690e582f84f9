// A warpgroup's products of bf16 on Hopper's tensor cores (sm_90a; PTX ISA, "wgmma"). They read
// shared memory by themselves, run on while the threads do, and give the same bits as MmaBf16
// (mma.cuh): measured over random inputs of wide range, with A from registers or from shared
// memory, and whichever way the 16 columns of a product are ordered.
//
// D [64 x N] (+)= A [64 x 16] B [N x 16]^T. Warp w of the group has rows 16 w .. 16 w + 15 of D and
// of A; its d[j] is the fragment C of mma.cuh for columns 8 j .. 8 j + 7, its a the fragment A.
//
// Order of calls: BeginProducts (registers and, after FenceShared, shared memory written before are
// seen), Multiply..., CommitProducts, WaitProducts, then Settle on every d before it is read.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

namespace paceline::kernels {

// A matrix in shared memory, made of rows of 128 bytes with 16-byte vectors swizzled as
// tensor_map.h says; groups of 8 rows are 1024 bytes aligned and follow each other.
#ifdef PACELINE_CUDA_EMULATION
struct SharedOperand {
  const unsigned char* at;
  bool rows_are_k;
  int block_bytes;

  SharedOperand After(int bytes) const { return {at + bytes, rows_are_k, block_bytes}; }

  float Element(int mn, int k) const {
    auto address = reinterpret_cast<uintptr_t>(at);
    address += static_cast<uintptr_t>(rows_are_k ? mn / 64 * block_bytes + k * 128 + mn % 64 * 2
                                                 : mn * 128 + k * 2);
    address ^= (address >> 7 & 7) << 4;
    Bf16 value;
    memcpy(&value, reinterpret_cast<const void*>(address), sizeof(value));
    return ToFloat(value);
  }
};
__device__ inline SharedOperand RowsOperand(const Bf16* at) {
  return {reinterpret_cast<const unsigned char*>(at), false, 0};
}
__device__ inline SharedOperand ColumnsOperand(const Bf16* at, int block_bytes) {
  return {reinterpret_cast<const unsigned char*>(at), true, block_bytes};
}
#else
struct SharedOperand {
  uint64_t bits;  // PTX ISA, "Matrix Descriptor Format"

  // The operand that lies `bytes` behind this one: one addition, where a new one takes several
  // instructions between products.
  __device__ __forceinline__ SharedOperand After(int bytes) const {
    const uint32_t low = static_cast<uint32_t>(bits) + static_cast<uint32_t>(bytes >> 4);
    return {(bits & 0xffffffff00000000u) | low};
  }
};
__device__ __forceinline__ SharedOperand Operand(const Bf16* at, int leading_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kGroupBytes = 1024;
  const uint64_t address = static_cast<uint64_t>(__cvta_generic_to_shared(at));
  return {(address & 0x3ffff) >> 4 | static_cast<uint64_t>(leading_bytes) >> 4 << 16 |
          kGroupBytes >> 4 << 32 | kSwizzle128};
}
// Rows of the operand are rows in memory, 64 columns wide; `at`: its first row's column of the
// product's 16, a multiple of 16.
__device__ __forceinline__ SharedOperand RowsOperand(const Bf16* at) { return Operand(at, 16); }
// Rows in memory are the product's 16 columns, starting at `at`; 64 rows of the operand lie side by
// side in them, the next 64 block_bytes further. For B with kTransposeB.
__device__ __forceinline__ SharedOperand ColumnsOperand(const Bf16* at, int block_bytes) {
  return Operand(at, block_bytes);
}
#endif

#ifdef PACELINE_CUDA_EMULATION

// The thread's rows of A, 16 columns each.
struct EmulatedRows {
  float row[2][16];
};

template <int kTiles>
void DeferProduct(float (&d)[kTiles][4], const EmulatedRows& a, const SharedOperand& b, bool add) {
  const int pair = emulation::Lane() % 4 * 2;
  for (int j = 0; j < kTiles; ++j) {
    for (int c = 0; c < 4; ++c) {
      float column[16];
      for (int k = 0; k < 16; ++k) column[k] = b.Element(j * 8 + pair + c % 2, k);
      d[j][c] = SumOfProducts(add ? d[j][c] : 0.0f, a.row[c / 2], column);
    }
  }
}

template <bool kTransposeB, int kTiles>
__device__ inline void Multiply(float (&d)[kTiles][4], const unsigned (&a)[4], SharedOperand b,
                                bool add) {
  if (b.rows_are_k != kTransposeB) std::abort();
  const MmaLane own = {{a[0], a[1], a[2], a[3]}, {}, {}};
  const unsigned char* all = emulation::Exchange(&own, sizeof(own));
  EmulatedRows rows;
  for (int k = 0; k < 16; ++k) {
    MmaLane from;
    const int lane = emulation::Lane() / 4 * 4 + k % 8 / 2;
    memcpy(&from, all + static_cast<size_t>(lane) * emulation::kExchangeStride, sizeof(from));
    for (int i = 0; i < 2; ++i) rows.row[i][k] = HalfOf(from.a[i + 2 * (k / 8)], k % 2);
  }
  emulation::Defer([&d, rows, b, add] { DeferProduct(d, rows, b, add); });
}

template <bool kTransposeB, int kTiles>
__device__ inline void Multiply(float (&d)[kTiles][4], SharedOperand a, SharedOperand b, bool add) {
  if (b.rows_are_k != kTransposeB || a.rows_are_k) std::abort();
  const int first = static_cast<int>(threadIdx.x) / kWarp % 4 * 16 + emulation::Lane() / 4;
  emulation::Defer([&d, first, a, b, add] {
    EmulatedRows rows;
    for (int i = 0; i < 2; ++i) {
      for (int k = 0; k < 16; ++k) rows.row[i][k] = a.Element(first + 8 * i, k);
    }
    DeferProduct(d, rows, b, add);
  });
}

__device__ inline void BeginProducts() {}
__device__ inline void FenceShared() {}
__device__ inline void CommitProducts() { emulation::CommitProducts(); }
template <int kGroupsLeft>
__device__ inline void WaitProducts() {
  emulation::WaitProducts(kGroupsLeft);
}
template <typename T, int kTiles>
__device__ inline void Settle(T (&)[kTiles][4]) {}
template <int kRegisters>
__device__ inline void GrowRegisters() {}
template <int kRegisters>
__device__ inline void ShrinkRegisters() {}

#else

#define PACELINE_D4(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])

// d += a b^T, or d = a b^T where not `add`. kTransposeB: b is a ColumnsOperand.
template <bool kTransposeB>
__device__ __forceinline__ void Multiply(float (&d)[8][4], const unsigned (&a)[4], SharedOperand b,
                                         bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, add, 1, 1, %38;\n"
      "}\n"
      : PACELINE_D4(0), PACELINE_D4(1), PACELINE_D4(2), PACELINE_D4(3), PACELINE_D4(4),
        PACELINE_D4(5), PACELINE_D4(6), PACELINE_D4(7)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits), "r"(int{add}),
        "n"(int{kTransposeB}));
}

template <bool kTransposeB>
__device__ __forceinline__ void Multiply(float (&d)[16][4], const unsigned (&a)[4], SharedOperand b,
                                         bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, add, 1, 1, %70;\n"
      "}\n"
      : PACELINE_D4(0), PACELINE_D4(1), PACELINE_D4(2), PACELINE_D4(3), PACELINE_D4(4),
        PACELINE_D4(5), PACELINE_D4(6), PACELINE_D4(7), PACELINE_D4(8), PACELINE_D4(9),
        PACELINE_D4(10), PACELINE_D4(11), PACELINE_D4(12), PACELINE_D4(13), PACELINE_D4(14),
        PACELINE_D4(15)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits), "r"(int{add}),
        "n"(int{kTransposeB}));
}

template <bool kTransposeB>
__device__ __forceinline__ void Multiply(float (&d)[8][4], SharedOperand a, SharedOperand b,
                                         bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, add, 1, 1, 0, %35;\n"
      "}\n"
      : PACELINE_D4(0), PACELINE_D4(1), PACELINE_D4(2), PACELINE_D4(3), PACELINE_D4(4),
        PACELINE_D4(5), PACELINE_D4(6), PACELINE_D4(7)
      : "l"(a.bits), "l"(b.bits), "r"(int{add}), "n"(int{kTransposeB}));
}

template <bool kTransposeB>
__device__ __forceinline__ void Multiply(float (&d)[16][4], SharedOperand a, SharedOperand b,
                                         bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, add, 1, 1, 0, %67;\n"
      "}\n"
      : PACELINE_D4(0), PACELINE_D4(1), PACELINE_D4(2), PACELINE_D4(3), PACELINE_D4(4),
        PACELINE_D4(5), PACELINE_D4(6), PACELINE_D4(7), PACELINE_D4(8), PACELINE_D4(9),
        PACELINE_D4(10), PACELINE_D4(11), PACELINE_D4(12), PACELINE_D4(13), PACELINE_D4(14),
        PACELINE_D4(15)
      : "l"(a.bits), "l"(b.bits), "r"(int{add}), "n"(int{kTransposeB}));
}

template <bool kTransposeB>
__device__ __forceinline__ void Multiply(float (&d)[24][4], SharedOperand a, SharedOperand b,
                                         bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
      "%96, %97, add, 1, 1, 0, %99;\n"
      "}\n"
      : PACELINE_D4(0), PACELINE_D4(1), PACELINE_D4(2), PACELINE_D4(3), PACELINE_D4(4),
        PACELINE_D4(5), PACELINE_D4(6), PACELINE_D4(7), PACELINE_D4(8), PACELINE_D4(9),
        PACELINE_D4(10), PACELINE_D4(11), PACELINE_D4(12), PACELINE_D4(13), PACELINE_D4(14),
        PACELINE_D4(15), PACELINE_D4(16), PACELINE_D4(17), PACELINE_D4(18), PACELINE_D4(19),
        PACELINE_D4(20), PACELINE_D4(21), PACELINE_D4(22), PACELINE_D4(23)
      : "l"(a.bits), "l"(b.bits), "r"(int{add}), "n"(int{kTransposeB}));
}

template <bool kTransposeB>
__device__ __forceinline__ void Multiply(float (&d)[32][4], SharedOperand a, SharedOperand b,
                                         bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127}, "
      "%128, %129, add, 1, 1, 0, %131;\n"
      "}\n"
      : PACELINE_D4(0), PACELINE_D4(1), PACELINE_D4(2), PACELINE_D4(3), PACELINE_D4(4),
        PACELINE_D4(5), PACELINE_D4(6), PACELINE_D4(7), PACELINE_D4(8), PACELINE_D4(9),
        PACELINE_D4(10), PACELINE_D4(11), PACELINE_D4(12), PACELINE_D4(13), PACELINE_D4(14),
        PACELINE_D4(15), PACELINE_D4(16), PACELINE_D4(17), PACELINE_D4(18), PACELINE_D4(19),
        PACELINE_D4(20), PACELINE_D4(21), PACELINE_D4(22), PACELINE_D4(23), PACELINE_D4(24),
        PACELINE_D4(25), PACELINE_D4(26), PACELINE_D4(27), PACELINE_D4(28), PACELINE_D4(29),
        PACELINE_D4(30), PACELINE_D4(31)
      : "l"(a.bits), "l"(b.bits), "r"(int{add}), "n"(int{kTransposeB}));
}

#undef PACELINE_D4

__device__ __forceinline__ void BeginProducts() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
// What this thread wrote to shared memory becomes visible to products and the copy engine; then a
// barrier.
__device__ __forceinline__ void FenceShared() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
template <int kGroupsLeft>
__device__ __forceinline__ void WaitProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kGroupsLeft) : "memory");
}
// Keeps the compiler from moving reads of d above the wait, and what makes d or a below
// BeginProducts.
template <int kTiles>
__device__ __forceinline__ void Settle(float (&d)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) asm volatile("" : "+f"(d[j][c])::"memory");
  }
}
template <int kSteps>
__device__ __forceinline__ void Settle(unsigned (&a)[kSteps][4]) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[k][i])::"memory");
  }
}
// A warpgroup takes registers that another gave back; multiples of 8. All its warps, in one branch
// of the kernel.
template <int kRegisters>
__device__ __forceinline__ void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

#endif

}  // namespace paceline::kernels

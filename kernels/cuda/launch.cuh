// Launching a kernel, dynamic shared memory, and warp and block reductions in a fixed order.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/bf16.h"

namespace paceline::kernels {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

#ifdef PACELINE_CUDA_EMULATION
#define PACELINE_DYNAMIC_SHARED(name) \
  unsigned char* const name = ::paceline::emulation::DynamicShared()
#else
#define PACELINE_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

// A kernel that calls WaitForPrevious before it touches anything that kernels write may be launched
// with kOverlap: from sm_90 on it then starts once every block of the kernel before has called
// LetNextStart or ended, and what it does up to the wait (reading weights) fills that one's tail.
// The wait returns when the kernel before is done and its writes are seen; as that one waited too,
// or started in order, all earlier ones are done as well.
enum class LaunchOrder : uint8_t { kInOrder, kOverlap };
__device__ __forceinline__ void WaitForPrevious() {
#ifdef PACELINE_CUDA_EMULATION
  emulation::NoteWait();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void LetNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// kOverlap where the code that the device runs has the wait: it is compiled away below sm_90, also
// in PTX that a newer device compiles. Ask once per kernel.
template <typename Params>
LaunchOrder OverlapIfAble(void (*kernel)(Params)) {
#ifdef PACELINE_CUDA_EMULATION
  static_cast<void>(kernel);
  return LaunchOrder::kOverlap;  // runs in order all the same, and must have waited
#else
  cudaFuncAttributes attributes = {};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  return error == cudaSuccess && attributes.ptxVersion >= 90 ? LaunchOrder::kOverlap
                                                             : LaunchOrder::kInOrder;
#endif
}

// Whether the code that the device runs was compiled for sm_90a, as warpgroups' products need. Ask
// once per kernel.
template <typename Params>
bool RunsOnHopper(void (*kernel)(Params)) {
#ifdef PACELINE_CUDA_EMULATION
  static_cast<void>(kernel);
  return true;
#else
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
         attributes.binaryVersion == 90 && attributes.ptxVersion == 90;
#endif
}

// One param struct by value; an empty grid is no launch. `cluster` blocks along x run together
// (cluster.cuh; sm_90 and later).
template <typename Params>
cudaError_t Launch(void (*kernel)(Params), dim3 grid, int threads, size_t shared_bytes,
                   const Params& params, cudaStream_t stream,
                   LaunchOrder order = LaunchOrder::kInOrder, int cluster = 1) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
#ifdef PACELINE_CUDA_EMULATION
  static_cast<void>(stream);
  emulation::Enqueue({.kernel =
                          [](const void* f, const void* p) {
                            (*static_cast<void (*const*)(Params)>(f))(
                                *static_cast<const Params*>(p));
                          },
                      .function = emulation::BytesOf(kernel),
                      .params = emulation::BytesOf(params),
                      .grid = grid,
                      .block = dim3(static_cast<unsigned>(threads)),
                      .shared_bytes = shared_bytes,
                      .cluster = cluster,
                      .must_wait = order == LaunchOrder::kOverlap});
  return cudaSuccess;
#else
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (order == LaunchOrder::kOverlap) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& together = attributes[config.numAttrs++];
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim.x = static_cast<unsigned>(cluster);
    together.val.clusterDim.y = 1;
    together.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, params);
#endif
}

// Above 48 KB a kernel must ask once for its dynamic shared memory.
template <typename Params>
cudaError_t AllowShared(void (*kernel)(Params), size_t shared_bytes) {
  if (shared_bytes <= size_t{48} << 10) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared_bytes));
}

template <typename T>
__host__ __device__ constexpr T CeilDiv(T a, T b) {
  return (a + b - 1) / b;
}

// Every lane gets the sum; the order is that of the butterfly, always the same.
template <typename T>
__device__ __forceinline__ T WarpSum(T value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
}

// NaN counts as the least.
__device__ __forceinline__ float WarpMax(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, mask));
  }
  return value;
}

// Eight bf16 in a 16-byte vector, lowest address first.
__device__ __forceinline__ void Unpack8(const uint4& v, float* out) {
  out[0] = __uint_as_float(v.x << 16);
  out[1] = __uint_as_float(v.x & 0xffff0000u);
  out[2] = __uint_as_float(v.y << 16);
  out[3] = __uint_as_float(v.y & 0xffff0000u);
  out[4] = __uint_as_float(v.z << 16);
  out[5] = __uint_as_float(v.z & 0xffff0000u);
  out[6] = __uint_as_float(v.w << 16);
  out[7] = __uint_as_float(v.w & 0xffff0000u);
}

__device__ __forceinline__ unsigned PackPair(float low, float high) {
  return unsigned{ToBf16(low).bits} | unsigned{ToBf16(high).bits} << 16;
}

// x / (1 + e^-x), rounded step by step: the same bits wherever it is inlined.
__device__ __forceinline__ float Silu(float x) { return __fdiv_rn(x, __fadd_rn(1.0f, expf(-x))); }

}  // namespace paceline::kernels

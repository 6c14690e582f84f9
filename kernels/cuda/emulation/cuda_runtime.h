// A stand-in for CUDA's runtime header that compiles the kernels of kernels/cuda/ as plain C++ and
// runs them on the CPU, thread by thread: so their indices, barriers and bounds are tested, also
// under the sanitizers, where there is no GPU and no toolkit. It says nothing of speed, and of
// hardware only what is written here. Tests alone use it; found first on the include path.
//
// A block's threads are fibers of one host thread; they switch at barriers and warp operations.
// Blocks (or clusters of them) run one after another, a launch is done when it returns. What a real
// GPU leaves undefined is made visible: memory starts as 0xff bytes (NaN), asynchronous copies
// write and warpgroups' products read and write only when they are waited for, the order of threads
// changes from launch to launch, and a barrier that some threads never reach ends the process.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define PACELINE_CUDA_EMULATION 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) alignas(n)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// --- Device code ---

namespace paceline::emulation {

// The thread in hand.
struct Thread {
  dim3 thread_idx, block_idx, block_dim, grid_dim;
};
extern Thread* current;

void SyncThreads();
// Waits for all 32 lanes. Returns the 32 values that they gave, `size` <= 64 bytes each, after
// `together`, if any, was called on them once for the warp.
unsigned char* Exchange(const void* value, size_t size, void (*together)(unsigned char*) = nullptr);
inline constexpr size_t kExchangeStride = 64;
int Lane();
unsigned char* DynamicShared();

void CopyAsync(void* to, const void* from, size_t bytes, size_t zeros);
void CommitCopies();
void WaitCopies(int groups_left);

// A barrier of `count` threads of the block, by number, apart from SyncThreads.
void SyncNamed(int barrier, int count);

// Barriers with phases, which lie in shared memory (mbarrier.cuh).
void InitPhases(uint64_t* barrier, int arrivals);
void ArriveAtPhase(uint64_t* barrier, int bytes_to_come);
void WaitForPhase(uint64_t* barrier, unsigned parity);
// A copy that counts `bytes` towards the barrier's phase and is done when that is waited for; until
// then its destination is 0xff.
void CopyTowards(uint64_t* barrier, void* to, size_t bytes, std::function<void()> copy);

// A warpgroup's products, each thread's part: done when they are waited for (wgmma.cuh).
void Defer(std::function<void()> product);
void CommitProducts();
void WaitProducts(int groups_left);

// Blocks of a cluster (cluster.cuh).
int ClusterRank();
void SyncCluster();
void* SharedOfBlock(void* own, int rank);

// Runs kernel(params) for every thread of the grid, `cluster` blocks at a time.
void Run(void (*kernel)(const void* kernel, const void* params), const void* function,
         const void* params, dim3 grid, dim3 block, size_t shared_bytes, int cluster);

template <typename T>
T FromLane(T value, int lane) {
  static_assert(sizeof(T) <= kExchangeStride);
  const unsigned char* all = Exchange(&value, sizeof(T));
  T result;
  std::memcpy(&result, all + static_cast<size_t>(lane) * kExchangeStride, sizeof(T));
  return result;
}

}  // namespace paceline::emulation

#define threadIdx (::paceline::emulation::current->thread_idx)
#define blockIdx (::paceline::emulation::current->block_idx)
#define blockDim (::paceline::emulation::current->block_dim)
#define gridDim (::paceline::emulation::current->grid_dim)

inline void __syncthreads() { ::paceline::emulation::SyncThreads(); }
inline void __syncwarp() { ::paceline::emulation::Exchange(nullptr, 0); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return ::paceline::emulation::FromLane(value, ::paceline::emulation::Lane() ^ mask);
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return ::paceline::emulation::FromLane(value, lane);
}
inline bool __any_sync(unsigned, bool value) {
  const unsigned char* all = ::paceline::emulation::Exchange(&value, sizeof(value));
  bool any = false;
  for (size_t i = 0; i < 32; ++i) any |= all[i * ::paceline::emulation::kExchangeStride] != 0;
  return any;
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const int lane = ::paceline::emulation::Lane(), from = lane - static_cast<int>(delta);
  return ::paceline::emulation::FromLane(value, from < 0 ? lane : from);
}
template <typename T>
T atomicAdd(T* to, T value) {
  const T old = *to;
  *to = old + value;
  return old;
}

inline float __uint_as_float(unsigned x) {
  float f;
  std::memcpy(&f, &x, sizeof(f));
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned x;
  std::memcpy(&x, &f, sizeof(x));
  return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline uint4 __ldcs(const uint4* p) { return *p; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
#define __logf(x) std::log(x)  // the C library has the name
using std::max;
using std::min;

// --- Host code: the part of the runtime that Paceline calls. Streams are idle names. ---

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNotSupported = 801,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;
struct cudaDeviceProp {
  char name[256];
};
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;

cudaError_t cudaMalloc(void** p, size_t bytes);
cudaError_t cudaFree(void* p);
cudaError_t cudaMallocHost(void** p, size_t bytes);
cudaError_t cudaFreeHost(void* p);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
template <typename F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

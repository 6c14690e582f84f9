// Barriers with phases in shared memory, and the copy engine that arrives at them. sm_90 and later;
// PTX ISA, "mbarrier" and "cp.async.bulk.tensor".
//
// A phase ends when its arrivals and all bytes announced for it have come. Whoever waits names the
// parity of the phase: 0 for the first, then 1, 0, ...; waiting for parity 1 of a fresh barrier
// returns at once, which suits a ring whose slots start out free.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_map.h"

namespace paceline::kernels {

#ifdef PACELINE_CUDA_EMULATION

__device__ inline void InitBarrier(uint64_t* barrier, int arrivals) {
  emulation::InitPhases(barrier, arrivals);
}
__device__ inline void FenceBarriers() {}
__device__ inline void Arrive(uint64_t* barrier) { emulation::ArriveAtPhase(barrier, 0); }
__device__ inline void ArriveAndExpect(uint64_t* barrier, int bytes) {
  emulation::ArriveAtPhase(barrier, bytes);
}
__device__ inline void WaitForPhase(uint64_t* barrier, int parity) {
  emulation::WaitForPhase(barrier, static_cast<unsigned>(parity));
}
__device__ inline void CopyBox(void* shared, const TensorMap* map, int column, int row,
                               uint64_t* barrier) {
  EmulatedMap m;
  memcpy(&m, map, sizeof(m));
  const auto bytes = static_cast<size_t>(m.box_rows) * 128;
  emulation::CopyTowards(barrier, shared, bytes, [=] { m.Copy(shared, column, row); });
}
__device__ inline void FetchMap(const TensorMap*) {}
__device__ inline bool ElectLane() { return emulation::Lane() == 0; }
__device__ inline void SyncWarps(int barrier, int threads) {
  emulation::SyncNamed(barrier, threads);
}

#else

__device__ __forceinline__ unsigned SharedAddress(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// One thread, once; then FenceBarriers and a barrier of the block before anyone uses it.
__device__ __forceinline__ void InitBarrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void FenceBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ __forceinline__ void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(SharedAddress(barrier))
               : "memory");
}
// Arrives, and announces bytes that CopyBox will bring.
__device__ __forceinline__ void ArriveAndExpect(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void WaitForPhase(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra end;\n"
      "bra again;\n"
      "end:\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// One thread copies the box whose first element is [row, column] of the map's matrix; zeros stand
// in beyond its edges. `shared`: 1024 bytes aligned, or 128 x 8 n for a box inside a larger tile.
__device__ __forceinline__ void CopyBox(void* shared, const TensorMap* map, int column, int row,
                                        uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier))
      : "memory");
}
__device__ __forceinline__ void FetchMap(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

// True for one lane of a whole warp. The compiler knows that it is one: it issues the copies below
// such a branch straight away, and those of several lanes by a slow loop over them.
__device__ __forceinline__ bool ElectLane() {
  unsigned elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

// A barrier of whole warps, `threads` in all, by number 1 to 15; __syncthreads is number 0.
__device__ __forceinline__ void SyncWarps(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

#endif

}  // namespace paceline::kernels

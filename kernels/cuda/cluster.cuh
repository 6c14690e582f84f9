// Blocks of a cluster: they run together, meet, and reach each other's shared memory. sm_90 and
// later; PTX ISA, "barrier.cluster", "mapa". A kernel of clusters keeps all its shared memory in
// the dynamic part, at the same offsets in every block. No block may end before others are done
// with its memory.
#pragma once

#include "kernels/cuda/mbarrier.cuh"

namespace paceline::kernels {

#ifdef PACELINE_CUDA_EMULATION

__device__ inline int ClusterRank() { return emulation::ClusterRank(); }
__device__ inline void SyncCluster() { emulation::SyncCluster(); }
template <typename T>
__device__ inline T* SharedOfBlock(T* own, int rank) {
  return static_cast<T*>(emulation::SharedOfBlock(own, rank));
}
__device__ inline void ArriveAtBlock(uint64_t* barrier, int rank) {
  Arrive(SharedOfBlock(barrier, rank));
}
__device__ inline void CopyBoxToPair(void* shared, const TensorMap* map, int column, int row,
                                     uint64_t* barrier) {
  for (int rank = 0; rank < 2; ++rank) {
    CopyBox(SharedOfBlock(shared, rank), map, column, row, SharedOfBlock(barrier, rank));
  }
}

#else

// This block's number in its cluster.
__device__ __forceinline__ int ClusterRank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}
// All threads of all blocks; what they wrote to shared memory is seen behind it.
__device__ __forceinline__ void SyncCluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;\n" ::
          : "memory");
}
// Where another block has what this one has at `own`.
template <typename T>
__device__ __forceinline__ T* SharedOfBlock(T* own, int rank) {
  T* other;
  asm volatile("mapa.u64 %0, %1, %2;\n" : "=l"(other) : "l"(own), "r"(rank));
  return other;
}
__device__ __forceinline__ void ArriveAtBlock(uint64_t* barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(rank)
      : "memory");
}
// CopyBox into both blocks of a cluster of two; it counts at each one's own barrier.
__device__ __forceinline__ void CopyBoxToPair(void* shared, const TensorMap* map, int column,
                                              int row, uint64_t* barrier) {
  constexpr uint16_t kBoth = 3;
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier)), "h"(kBoth)
      : "memory");
}

#endif

}  // namespace paceline::kernels

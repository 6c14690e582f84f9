#include "kernels/cuda/tensor_map.h"

#include <cstring>

#ifndef PACELINE_CUDA_EMULATION
#include <cuda.h>
#endif

namespace paceline::kernels {
namespace {

bool Valid(const Bf16* matrix, int64_t rows, int32_t columns, int32_t box_rows) {
  return reinterpret_cast<uintptr_t>(matrix) % 16 == 0 && rows > 0 && rows <= INT32_MAX &&
         columns > 0 && columns % 8 == 0 && box_rows > 0 && box_rows <= 256;
}

}  // namespace

#ifdef PACELINE_CUDA_EMULATION

cudaError_t MakeTensorMap(const Bf16* matrix, int64_t rows, int32_t columns, int32_t box_rows,
                          TensorMap* map) {
  if (!Valid(matrix, rows, columns, box_rows)) return cudaErrorInvalidValue;
  const EmulatedMap emulated = {matrix, rows, columns, box_rows};
  std::memcpy(map, &emulated, sizeof(emulated));
  return cudaSuccess;
}

void EmulatedMap::Copy(void* to, int column, int row) const {
  const auto begin = reinterpret_cast<uintptr_t>(to);
  for (int r = 0; r < box_rows; ++r) {
    for (int c = 0; c < kBoxColumns; ++c) {
      const bool inside = row + r >= 0 && row + r < rows && column + c >= 0 && column + c < columns;
      const Bf16 value = inside ? matrix[(row + int64_t{r}) * columns + column + c] : Bf16{};
      uintptr_t at = begin + static_cast<uintptr_t>(r) * 128 + static_cast<uintptr_t>(c) * 2;
      at ^= (at >> 7 & 7) << 4;
      std::memcpy(reinterpret_cast<void*>(at), &value, sizeof(value));
    }
  }
}

#else

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// From the driver that runs, not linked: programs start where there is none.
Encode FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Encode>(function)
             : nullptr;
}

}  // namespace

cudaError_t MakeTensorMap(const Bf16* matrix, int64_t rows, int32_t columns, int32_t box_rows,
                          TensorMap* map) {
  if (!Valid(matrix, rows, columns, box_rows)) return cudaErrorInvalidValue;
  static const Encode encode = FindEncode();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(columns) * sizeof(Bf16)};
  const cuuint32_t box[2] = {kBoxColumns, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap encoded;
  const CUresult result =
      encode(&encoded, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<Bf16*>(matrix), sizes,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  static_assert(sizeof(encoded) == sizeof(*map));
  std::memcpy(map, &encoded, sizeof(encoded));
  return cudaSuccess;
}

#endif

}  // namespace paceline::kernels

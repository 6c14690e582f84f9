// A model in the GPU's memory, ready for CudaDecoder. Immutable, so that runners may share it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/bf16.h"
#include "worker/kv/device_memory_cuda.h"
#include "worker/model/config.h"
#include "worker/model/tensor_source.h"

namespace paceline {

// Pointers on the device; matrices by rows as in the files.
struct CudaLayerWeights {
  float* input_norm = nullptr;       // [hidden]
  kernels::Bf16* qkv = nullptr;      // [q_dim + 2 kv_dim, hidden]
  float* qkv_bias = nullptr;         // [q_dim + 2 kv_dim] or null
  float* q_norm = nullptr;           // [head_dim] or null
  float* k_norm = nullptr;           // [head_dim] or null
  kernels::Bf16* o = nullptr;        // [hidden, q_dim]
  float* o_bias = nullptr;           // [hidden] or null
  float* post_norm = nullptr;        // [hidden]
  kernels::Bf16* gate_up = nullptr;  // [2 ffn, hidden]: gate 0, up 0, gate 1, up 1, ...
  kernels::Bf16* down = nullptr;     // [hidden, ffn]
};

struct CudaWeights {
  std::vector<CudaLayerWeights> layers;
  float* final_norm = nullptr;         // [hidden]
  kernels::Bf16* embedding = nullptr;  // [vocab, hidden]
  kernels::Bf16* head = nullptr;       // [vocab, hidden]; the embedding where tied
  DeviceMemory memory;                 // all of it
};

struct CudaModel {
  ModelConfig config;
  CudaWeights weights;
  std::string fingerprint;
};

// The first GPU must be open (OpenCudaDevice). UNIMPLEMENTED naming a size that the kernels lack;
// RESOURCE_EXHAUSTED saying what the weights need and what is free.
absl::StatusOr<std::shared_ptr<const CudaModel>> LoadCudaModel(const std::string& dir);

// Random weights (--load-format=dummy), equal to those of RandomCpuModel; made on the GPU.
absl::StatusOr<std::shared_ptr<const CudaModel>> RandomCudaModel(const ModelConfig& config,
                                                                 uint64_t seed);

// What the kernels ask of a model's sizes.
absl::Status CheckCudaSizes(const ModelConfig& config);

}  // namespace paceline

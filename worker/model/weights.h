// The weights of a decoder as the CPU kernels want them: bf16, packed. Immutable once made.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/linear.h"
#include "worker/model/config.h"
#include "worker/model/safetensors.h"

namespace paceline {

struct LayerWeights {
  std::vector<float> input_norm;   // [hidden]
  kernels::PackedWeights qkv;      // [q_dim + 2 kv_dim, hidden]
  std::vector<float> qkv_bias;     // [q_dim + 2 kv_dim] or empty
  std::vector<float> q_norm;       // [head_dim] or empty
  std::vector<float> k_norm;       // [head_dim] or empty
  kernels::PackedWeights o;        // [hidden, q_dim]
  std::vector<float> o_bias;       // [hidden] or empty
  std::vector<float> post_norm;    // [hidden]
  kernels::PackedWeights gate_up;  // kernels::PackGateUp of [ffn, hidden] twice
  kernels::PackedWeights down;     // [hidden, ffn]
};

class Weights {
 public:
  // Reads every tensor straight from the mapped file into its packed place; nothing is held twice.
  // INVALID_ARGUMENT naming file, tensor and reason: missing, wrong shape, wrong dtype, or a layer
  // tensor that the config has no place for.
  static absl::StatusOr<Weights> Load(const ModelConfig& config, const ModelTensors& tensors);

  // Random weights of any shape, activations of order one (--load-format=dummy). Equal for equal
  // (config, seed).
  static Weights Random(const ModelConfig& config, uint64_t seed);

  const LayerWeights& layer(int32_t l) const { return layers_[static_cast<size_t>(l)]; }
  const std::vector<float>& final_norm() const { return final_norm_; }  // [hidden]
  const kernels::PackedWeights& head() const { return head_; }          // [vocab, hidden]
  // [vocab, hidden] by rows; null when the head's packed weights serve (tied).
  const kernels::Bf16* embedding() const { return tied_ ? nullptr : embedding_.data(); }

 private:
  friend class WeightsBuilder;
  std::vector<LayerWeights> layers_;
  std::vector<float> final_norm_;
  kernels::PackedWeights head_;
  std::vector<kernels::Bf16> embedding_;
  bool tied_ = false;
};

// Config, names, shapes, dtypes and content: all of small tensors, a spread of chunks of large
// ones, so that start stays fast. Equal however the tensors are sharded.
std::string ModelFingerprint(const ModelConfig& config, const ModelTensors& tensors);

}  // namespace paceline

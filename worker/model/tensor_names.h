// The tensors of a decoder, by the names that HF checkpoints give them.
#pragma once

#include <string>
#include <vector>

#include "worker/model/config.h"

namespace paceline {

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};

// Everything that the config needs, in loading order. A tied head is not listed.
std::vector<TensorSpec> RequiredTensors(const ModelConfig& config);

// "model.layers.<layer>.<rest>".
std::string LayerTensor(int32_t layer, const char* rest);

inline constexpr char kEmbeddingTensor[] = "model.embed_tokens.weight";
inline constexpr char kHeadTensor[] = "lm_head.weight";
inline constexpr char kFinalNormTensor[] = "model.norm.weight";

}  // namespace paceline

// What a decoder must know of a model: the contents of an HF config.json, checked. One decoder per
// backend is driven by it. What a config asks for and Paceline lacks is refused by name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/types/sampling_params.h"

namespace paceline {

enum class RopeScalingKind : uint8_t { kNone, kLinear, kLlama3 };

struct RopeSettings {
  double theta = 10000.0;
  RopeScalingKind scaling = RopeScalingKind::kNone;
  double factor = 1.0;                   // kLinear, kLlama3
  double low_freq_factor = 1.0;          // kLlama3
  double high_freq_factor = 4.0;         // kLlama3
  int32_t original_max_position = 8192;  // kLlama3
  friend bool operator==(const RopeSettings&, const RopeSettings&) = default;
};

struct ModelConfig {
  std::string architecture;  // LlamaForCausalLM, MistralForCausalLM, Qwen2..., Qwen3ForCausalLM
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_layers = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;     // the q width num_heads * head_dim need not be hidden_size
  int32_t max_context = 0;  // positions
  float rms_norm_eps = 1e-6f;
  bool tie_embeddings = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool qk_norm = false;        // RMSNorm of each head of q and k before rope (Qwen3)
  int32_t sliding_window = 0;  // keys a row sees, itself included; 0 = all
  RopeSettings rope;
  std::vector<TokenId> eos_token_ids;

  int32_t q_dim() const { return num_heads * head_dim; }
  int32_t kv_dim() const { return num_kv_heads * head_dim; }
  int32_t qkv_dim() const { return q_dim() + 2 * kv_dim(); }
  int64_t num_parameters() const;
  // Bytes of bf16 weights that one decode step reads: all but the gathered embedding.
  int64_t step_weight_bytes() const;
  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

// INVALID_ARGUMENT naming source, key, value and limit; UNIMPLEMENTED naming what is lacking.
// `generation` is the text of generation_config.json or empty; its eos_token_id wins.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config, std::string_view generation,
                                             const std::string& source);

// Reads DIR/config.json and, if there, DIR/generation_config.json.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir);

// One line of every field; equal for equal configs. Part of the model fingerprint.
std::string CanonicalText(const ModelConfig& config);

}  // namespace paceline

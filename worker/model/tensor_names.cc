#include "worker/model/tensor_names.h"

#include "absl/strings/str_cat.h"

namespace paceline {

std::string LayerTensor(int32_t layer, const char* rest) {
  return absl::StrCat("model.layers.", layer, ".", rest);
}

std::vector<TensorSpec> RequiredTensors(const ModelConfig& c) {
  std::vector<TensorSpec> specs;
  const int64_t hidden = c.hidden_size;
  const auto add = [&](std::string name, std::vector<int64_t> shape) {
    specs.push_back({std::move(name), std::move(shape)});
  };
  add(kEmbeddingTensor, {c.vocab_size, hidden});
  for (int32_t l = 0; l < c.num_layers; ++l) {
    add(LayerTensor(l, "input_layernorm.weight"), {hidden});
    add(LayerTensor(l, "self_attn.q_proj.weight"), {c.q_dim(), hidden});
    add(LayerTensor(l, "self_attn.k_proj.weight"), {c.kv_dim(), hidden});
    add(LayerTensor(l, "self_attn.v_proj.weight"), {c.kv_dim(), hidden});
    if (c.qkv_bias) {
      add(LayerTensor(l, "self_attn.q_proj.bias"), {c.q_dim()});
      add(LayerTensor(l, "self_attn.k_proj.bias"), {c.kv_dim()});
      add(LayerTensor(l, "self_attn.v_proj.bias"), {c.kv_dim()});
    }
    if (c.qk_norm) {
      add(LayerTensor(l, "self_attn.q_norm.weight"), {c.head_dim});
      add(LayerTensor(l, "self_attn.k_norm.weight"), {c.head_dim});
    }
    add(LayerTensor(l, "self_attn.o_proj.weight"), {hidden, c.q_dim()});
    if (c.o_bias) add(LayerTensor(l, "self_attn.o_proj.bias"), {hidden});
    add(LayerTensor(l, "post_attention_layernorm.weight"), {hidden});
    add(LayerTensor(l, "mlp.gate_proj.weight"), {c.intermediate_size, hidden});
    add(LayerTensor(l, "mlp.up_proj.weight"), {c.intermediate_size, hidden});
    add(LayerTensor(l, "mlp.down_proj.weight"), {hidden, c.intermediate_size});
  }
  add(kFinalNormTensor, {hidden});
  if (!c.tie_embeddings) add(kHeadTensor, {c.vocab_size, hidden});
  return specs;
}

}  // namespace paceline

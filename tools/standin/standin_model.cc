#include "tools/standin/standin_model.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/hash.h"
#include "worker/model/tensor_names.h"

namespace paceline {
namespace {

constexpr int32_t kHidden = 128;
constexpr int32_t kConstantDim = kStandinRank;
constexpr int32_t kFillerDim = kStandinRank + 1;

// Standard deviation by which a layer's attention and MLP move a typical logit.
constexpr double kFirstLayerShift = 1.2;
constexpr double kLaterLayerShift = 0.25;
constexpr double kMlpShare = 0.4;
constexpr double kScoreSpread = 2.0;  // of attention scores

// Near normal, from hashes alone: the same on every machine.
class Noise {
 public:
  explicit Noise(const std::string& name) : key_(HashBytes(name, 0x7374616e64)) {}
  double operator()() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(Mix64(key_ + next_++) >> 11) * 0x1p-53;
    return sum;
  }

 private:
  uint64_t key_;
  uint64_t next_ = 0;
};

struct Geometry {
  double gain = 1;        // g
  double constant = 1;    // before the gain
  double norm = 1;        // of every row before the gain
  double left_rms = 1;    // of an element of g * left
  double right_norm = 1;  // typical |right(v)|
};

Geometry Measure(const BigramModel& b) {
  Geometry g;
  double most = 0, left = 0, right = 0;
  for (int32_t v = 0; v < b.vocab_size; ++v) {
    double l = 0, r = 0;
    for (int32_t k = 0; k < b.rank; ++k) {
      l += b.left[v * b.rank + k] * b.left[v * b.rank + k];
      r += b.right[v * b.rank + k] * b.right[v * b.rank + k];
    }
    most = std::max(most, l);
    const double weight = std::exp(b.log_unigram[v]);
    left += weight * l;
    right += weight * r;
  }
  g.constant = 0.5 * std::sqrt(most);
  g.norm = std::sqrt(most + g.constant * g.constant);
  g.gain = std::sqrt(static_cast<double>(kHidden)) / g.norm;  // elements of the row: rms one
  g.left_rms = g.gain * std::sqrt(left / kStandinRank);
  g.right_norm = std::sqrt(right);
  return g;
}

// [rows, columns], normal, over the first `inputs` columns and `outputs` rows; zero elsewhere.
std::vector<float> RandomMatrix(const std::string& name, int64_t rows, int64_t columns,
                                int64_t outputs, int64_t inputs, double scale) {
  Noise noise(name);
  std::vector<float> m(static_cast<size_t>(rows * columns), 0.0f);
  for (int64_t r = 0; r < outputs; ++r) {
    for (int64_t c = 0; c < inputs; ++c) {
      m[r * columns + c] = static_cast<float>(scale * noise());
    }
  }
  return m;
}

std::vector<float> Embedding(const BigramModel& b, const Geometry& g) {
  std::vector<float> m(static_cast<size_t>(b.vocab_size) * kHidden, 0.0f);
  for (int32_t v = 0; v < b.vocab_size; ++v) {
    float* row = m.data() + int64_t{v} * kHidden;
    double square = g.constant * g.constant;
    for (int32_t k = 0; k < b.rank; ++k) {
      const double value = b.left[v * b.rank + k];
      square += value * value;
      row[k] = static_cast<float>(g.gain * value);
    }
    row[kConstantDim] = static_cast<float>(g.gain * g.constant);
    row[kFillerDim] =
        static_cast<float>(g.gain * std::sqrt(std::max(0.0, g.norm * g.norm - square)));
  }
  return m;
}

std::vector<float> HeadMatrix(const BigramModel& b, const Geometry& g) {
  std::vector<float> m(static_cast<size_t>(b.vocab_size) * kHidden, 0.0f);
  for (int32_t v = 0; v < b.vocab_size; ++v) {
    float* row = m.data() + int64_t{v} * kHidden;
    for (int32_t k = 0; k < b.rank; ++k) {
      row[k] = static_cast<float>(b.right[v * b.rank + k] / g.gain);
    }
    row[kConstantDim] = static_cast<float>(b.log_unigram[v] / (g.gain * g.constant));
  }
  return m;
}

void AddLayer(const ModelConfig& c, const Geometry& g, int32_t layer,
              std::vector<TensorToWrite>* tensors) {
  const auto name = [&](const char* rest) { return LayerTensor(layer, rest); };
  const auto add = [&](const char* rest, int64_t rows, int64_t columns, int64_t outputs,
                       int64_t inputs, double scale) {
    tensors->push_back(Bf16Tensor(name(rest), {rows, columns},
                                  RandomMatrix(name(rest), rows, columns, outputs, inputs, scale)));
  };
  const auto ones = [&](const char* rest) {
    tensors->push_back(Bf16Tensor(name(rest), {kHidden}, std::vector<float>(kHidden, 1.0f)));
  };
  // A projection with this scale has outputs of order one.
  const double unit = 1 / (g.left_rms * std::sqrt(kStandinRank));
  const double shift = (layer == 0 ? kFirstLayerShift : kLaterLayerShift) * g.gain / g.right_norm;
  ones("input_layernorm.weight");
  add("self_attn.q_proj.weight", c.q_dim(), kHidden, c.q_dim(), kStandinRank, unit * kScoreSpread);
  add("self_attn.k_proj.weight", c.kv_dim(), kHidden, c.kv_dim(), kStandinRank, unit);
  add("self_attn.v_proj.weight", c.kv_dim(), kHidden, c.kv_dim(), kStandinRank, unit);
  add("self_attn.o_proj.weight", kHidden, c.q_dim(), kStandinRank, c.q_dim(),
      shift / std::sqrt(c.q_dim()));
  ones("post_attention_layernorm.weight");
  const int64_t ffn = c.intermediate_size;
  add("mlp.gate_proj.weight", ffn, kHidden, ffn, kStandinRank, unit);
  add("mlp.up_proj.weight", ffn, kHidden, ffn, kStandinRank, unit);
  add("mlp.down_proj.weight", kHidden, ffn, kStandinRank, ffn,
      kMlpShare * shift / (0.5 * std::sqrt(ffn)));
}

}  // namespace

ModelConfig StandinConfig(int32_t vocab_size, int32_t num_layers, TokenId eos) {
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = vocab_size;
  c.hidden_size = kHidden;
  c.intermediate_size = 256;
  c.num_layers = num_layers;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 32;
  c.max_context = 2048;
  c.rms_norm_eps = 1e-5f;
  c.eos_token_ids = {eos};
  return c;
}

std::vector<TensorToWrite> StandinTensors(const ModelConfig& config, const BigramModel& bigrams) {
  CHECK_EQ(bigrams.rank, kStandinRank);
  const Geometry g = Measure(bigrams);
  std::vector<TensorToWrite> tensors;
  tensors.push_back(
      Bf16Tensor(kEmbeddingTensor, {config.vocab_size, kHidden}, Embedding(bigrams, g)));
  for (int32_t l = 0; l < config.num_layers; ++l) AddLayer(config, g, l, &tensors);
  tensors.push_back(Bf16Tensor(kFinalNormTensor, {kHidden}, std::vector<float>(kHidden, 1.0f)));
  tensors.push_back(Bf16Tensor(kHeadTensor, {config.vocab_size, kHidden}, HeadMatrix(bigrams, g)));
  return tensors;
}

std::string StandinConfigJson(const ModelConfig& c) {
  return absl::StrCat(
      "{\n  \"architectures\": [\"", c.architecture, "\"],\n  \"model_type\": \"llama\",\n",
      "  \"vocab_size\": ", c.vocab_size, ",\n  \"hidden_size\": ", c.hidden_size,
      ",\n  \"intermediate_size\": ", c.intermediate_size,
      ",\n  \"num_hidden_layers\": ", c.num_layers, ",\n  \"num_attention_heads\": ", c.num_heads,
      ",\n  \"num_key_value_heads\": ", c.num_kv_heads, ",\n  \"head_dim\": ", c.head_dim,
      ",\n  \"max_position_embeddings\": ", c.max_context,
      ",\n  \"hidden_act\": \"silu\",\n  \"rms_norm_eps\": 1e-05,\n  \"rope_theta\": 10000.0,\n",
      "  \"tie_word_embeddings\": false,\n  \"torch_dtype\": \"bfloat16\",\n  \"bos_token_id\": ",
      c.eos_token_ids[0], ",\n  \"eos_token_id\": ", c.eos_token_ids[0], "\n}\n");
}

std::string StandinGenerationJson(const ModelConfig& c) {
  return absl::StrCat("{\n  \"bos_token_id\": ", c.eos_token_ids[0],
                      ",\n  \"eos_token_id\": ", c.eos_token_ids[0], "\n}\n");
}

}  // namespace paceline

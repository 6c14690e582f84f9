#include "worker/model/naive_model.h"

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "common/check.h"
#include "nlohmann/json.hpp"
#include "worker/model/safetensors_writer.h"
#include "worker/model/tensor_names.h"

namespace paceline {

NaiveModel::NaiveModel(ModelConfig config, const ModelTensors& tensors)
    : config_(std::move(config)) {
  for (const auto& [name, view] : tensors.tensors()) {
    std::vector<float> values(static_cast<size_t>(view.num_elements()));
    ReadFloat(view, 0, view.num_elements(), values.data());
    tensors_[name] = Vector(values.begin(), values.end());
  }
}

const NaiveModel::Vector& NaiveModel::Tensor(const std::string& name) const {
  const auto it = tensors_.find(name);
  CHECK(it != tensors_.end()) << name;
  return it->second;
}

const NaiveModel::Vector& NaiveModel::Layer(int32_t layer, const std::string& rest) const {
  return Tensor("model.layers." + std::to_string(layer) + "." + rest);
}

NaiveModel::Vector NaiveModel::Apply(const Vector& matrix, const Vector& x) const {
  Vector y(matrix.size() / x.size(), 0.0);
  for (size_t n = 0; n < y.size(); ++n) {
    for (size_t k = 0; k < x.size(); ++k) y[n] += matrix[n * x.size() + k] * x[k];
  }
  return y;
}

NaiveModel::Vector NaiveModel::Norm(const Vector& x, const Vector& weight) const {
  double square = 0;
  for (double v : x) square += v * v;
  const double scale = 1.0 / std::sqrt(square / static_cast<double>(x.size()) +
                                       static_cast<double>(config_.rms_norm_eps));
  Vector y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
  return y;
}

// Radians per position of a pair of dimensions. Llama 3's scaling slows low frequencies only, with
// a smooth passage between the two wavelengths that its factors give.
double NaiveModel::Frequency(int32_t pair) const {
  const RopeSettings& rope = config_.rope;
  const double f = std::pow(rope.theta, -2.0 * pair / config_.head_dim);
  if (rope.scaling == RopeScalingKind::kLinear) return f / rope.factor;
  if (rope.scaling == RopeScalingKind::kNone) return f;
  const double turns = rope.original_max_position * f / (2 * M_PI);
  if (turns > rope.high_freq_factor) return f;
  if (turns < rope.low_freq_factor) return f / rope.factor;
  const double smooth =
      (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * f / rope.factor + smooth * f;
}

void NaiveModel::Rotate(double* head, int32_t position) const {
  const int32_t half = config_.head_dim / 2;
  for (int32_t i = 0; i < half; ++i) {
    const double angle = position * Frequency(i);
    const double a = head[i];
    const double b = head[i + half];
    head[i] = a * std::cos(angle) - b * std::sin(angle);
    head[i + half] = b * std::cos(angle) + a * std::sin(angle);
  }
}

void NaiveModel::RunLayer(int32_t layer, std::vector<Vector>* x) const {
  const int32_t d = config_.head_dim;
  const auto length = static_cast<int32_t>(x->size());
  std::vector<Vector> q, k, v;
  const auto project = [&](const Vector& input, const char* which, const char* norm) {
    const std::string name = std::string("self_attn.") + which + "_proj.";
    Vector y = Apply(Layer(layer, name + "weight"), input);
    if (config_.qkv_bias) {
      const Vector& bias = Layer(layer, name + "bias");
      for (size_t i = 0; i < y.size(); ++i) y[i] += bias[i];
    }
    if (norm != nullptr && config_.qk_norm) {
      for (size_t head = 0; head < y.size(); head += static_cast<size_t>(d)) {
        const Vector normed =
            Norm(Vector(y.begin() + head, y.begin() + head + d), Layer(layer, norm));
        std::copy(normed.begin(), normed.end(), y.begin() + head);
      }
    }
    return y;
  };
  for (int32_t t = 0; t < length; ++t) {
    const Vector input = Norm((*x)[t], Layer(layer, "input_layernorm.weight"));
    q.push_back(project(input, "q", "self_attn.q_norm.weight"));
    k.push_back(project(input, "k", "self_attn.k_norm.weight"));
    v.push_back(project(input, "v", nullptr));
    for (int32_t h = 0; h < config_.num_heads; ++h) Rotate(q[t].data() + h * d, t);
    for (int32_t h = 0; h < config_.num_kv_heads; ++h) Rotate(k[t].data() + h * d, t);
  }
  for (int32_t t = 0; t < length; ++t) {
    Vector attended(static_cast<size_t>(config_.q_dim()), 0.0);
    const int32_t first =
        config_.sliding_window > 0 ? std::max(0, t - config_.sliding_window + 1) : 0;
    for (int32_t h = 0; h < config_.num_heads; ++h) {
      const int32_t kv = h / (config_.num_heads / config_.num_kv_heads);
      Vector weight;
      double total = 0;
      for (int32_t s = first; s <= t; ++s) {
        double dot = 0;
        for (int32_t i = 0; i < d; ++i) dot += q[t][h * d + i] * k[s][kv * d + i];
        weight.push_back(std::exp(dot / std::sqrt(d)));
        total += weight.back();
      }
      for (int32_t s = first; s <= t; ++s) {
        for (int32_t i = 0; i < d; ++i) {
          attended[h * d + i] += weight[s - first] / total * v[s][kv * d + i];
        }
      }
    }
    Vector out = Apply(Layer(layer, "self_attn.o_proj.weight"), attended);
    for (size_t i = 0; i < out.size(); ++i) {
      if (config_.o_bias) out[i] += Layer(layer, "self_attn.o_proj.bias")[i];
      (*x)[t][i] += out[i];
    }
    const Vector input = Norm((*x)[t], Layer(layer, "post_attention_layernorm.weight"));
    Vector gate = Apply(Layer(layer, "mlp.gate_proj.weight"), input);
    const Vector up = Apply(Layer(layer, "mlp.up_proj.weight"), input);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    const Vector down = Apply(Layer(layer, "mlp.down_proj.weight"), gate);
    for (size_t i = 0; i < down.size(); ++i) (*x)[t][i] += down[i];
  }
}

std::vector<std::vector<double>> NaiveModel::Logits(std::span<const TokenId> tokens,
                                                    int32_t num_layers) const {
  const auto embedding = tensors_.find(kEmbeddingTensor);
  const Vector& table = embedding != tensors_.end() ? embedding->second : Tensor(kHeadTensor);
  const Vector& head = config_.tie_embeddings ? table : Tensor(kHeadTensor);
  const int64_t dim = config_.hidden_size;
  std::vector<Vector> x;
  for (TokenId t : tokens) x.emplace_back(table.begin() + t * dim, table.begin() + (t + 1) * dim);
  const int32_t layers = num_layers > 0 ? num_layers : config_.num_layers;
  for (int32_t l = 0; l < layers; ++l) RunLayer(l, &x);
  std::vector<Vector> logits;
  for (const Vector& row : x) logits.push_back(Apply(head, Norm(row, Tensor(kFinalNormTensor))));
  return logits;
}

ModelConfig TinyConfig() {
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = 211;
  c.hidden_size = 64;
  c.intermediate_size = 96;
  c.num_layers = 3;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.max_context = 1024;
  c.rms_norm_eps = 1e-5f;
  c.eos_token_ids = {0};
  return c;
}

std::string ConfigJson(const ModelConfig& c) {
  nlohmann::ordered_json j;
  j["architectures"] = {c.architecture};
  j["vocab_size"] = c.vocab_size;
  j["hidden_size"] = c.hidden_size;
  j["intermediate_size"] = c.intermediate_size;
  j["num_hidden_layers"] = c.num_layers;
  j["num_attention_heads"] = c.num_heads;
  j["num_key_value_heads"] = c.num_kv_heads;
  j["head_dim"] = c.head_dim;
  j["max_position_embeddings"] = c.max_context;
  j["rms_norm_eps"] = c.rms_norm_eps;
  j["tie_word_embeddings"] = c.tie_embeddings;
  j["attention_bias"] = c.o_bias;
  j["rope_theta"] = c.rope.theta;
  if (c.sliding_window > 0) j["sliding_window"] = c.sliding_window;
  j["eos_token_id"] = c.eos_token_ids;
  if (c.rope.scaling == RopeScalingKind::kLinear) {
    j["rope_scaling"] = {{"type", "linear"}, {"factor", c.rope.factor}};
  } else if (c.rope.scaling == RopeScalingKind::kLlama3) {
    j["rope_scaling"] = {{"rope_type", "llama3"},
                         {"factor", c.rope.factor},
                         {"low_freq_factor", c.rope.low_freq_factor},
                         {"high_freq_factor", c.rope.high_freq_factor},
                         {"original_max_position_embeddings", c.rope.original_max_position}};
  }
  return j.dump(2) + "\n";
}

void WriteRandomModel(const std::string& dir, const ModelConfig& config, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<TensorToWrite> tensors;
  for (const TensorSpec& spec : RequiredTensors(config)) {
    int64_t count = 1;
    for (int64_t d : spec.shape) count *= d;
    const bool matrix = spec.shape.size() == 2;
    const bool bias = spec.name.ends_with(".bias");
    std::normal_distribution<float> normal(matrix || bias ? 0.0f : 1.0f,
                                           matrix ? 1.3f / std::sqrt(float(spec.shape[1])) : 0.2f);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = normal(rng);
    tensors.push_back(Bf16Tensor(spec.name, spec.shape, values));
  }
  CHECK(WriteTextFile(dir + "/config.json", ConfigJson(config)).ok());
  CHECK(WriteTextFile(dir + "/model.safetensors", SafetensorsBytes(tensors)).ok());
}

std::string FreshDir(const std::string& name) {
  const char* base = std::getenv("TEST_TMPDIR");
  const auto dir = std::filesystem::path(base != nullptr ? base : "/tmp") /
                   ("paceline_" + std::to_string(getpid()) + "_" + name);
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  return dir.string();
}

}  // namespace paceline

#include "worker/model/weights.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "common/hash.h"
#include "common/status_macros.h"
#include "worker/model/tensor_names.h"
#include "worker/model/tensor_source.h"

namespace paceline {
namespace {

using kernels::Bf16;
using kernels::PackedWeights;

constexpr int64_t kPanel = PackedWeights::kPanel;

uint64_t HashContent(std::span<const uint8_t> bytes) {
  constexpr size_t kWhole = size_t{256} << 10;
  constexpr size_t kChunk = 256;
  constexpr size_t kChunks = 256;
  const auto text = [&](size_t begin, size_t count) {
    return std::string_view(reinterpret_cast<const char*>(bytes.data()) + begin, count);
  };
  if (bytes.size() <= kWhole) return HashBytes(text(0, bytes.size()));
  uint64_t hash = bytes.size();
  for (size_t i = 0; i < kChunks; ++i) {
    const size_t begin = (bytes.size() - kChunk) / (kChunks - 1) * i;
    hash = HashCombine(hash, HashBytes(text(begin, kChunk)));
  }
  return HashCombine(hash, HashBytes(text(bytes.size() - kChunk, kChunk)));
}

}  // namespace

class WeightsBuilder {
 public:
  WeightsBuilder(const ModelConfig& config, const TensorSource& source)
      : config_(config), source_(source) {}

  Weights Build() {
    Weights w;
    w.tied_ = config_.tie_embeddings;
    const int64_t vocab = config_.vocab_size;
    const int64_t hidden = config_.hidden_size;
    w.layers_.reserve(static_cast<size_t>(config_.num_layers));
    for (int32_t l = 0; l < config_.num_layers; ++l) w.layers_.push_back(BuildLayer(l));
    w.final_norm_ = Vector(kFinalNormTensor, hidden);
    w.head_ = PackedWeights(vocab, hidden);
    if (w.tied_) {
      PackRows(kEmbeddingTensor, 0, vocab, &w.head_);
    } else {
      PackRows(kHeadTensor, 0, vocab, &w.head_);
      w.embedding_.resize(static_cast<size_t>(vocab * hidden));
      source_.Read(kEmbeddingTensor, 0, vocab * hidden, w.embedding_.data());
    }
    return w;
  }

 private:
  LayerWeights BuildLayer(int32_t l) {
    const int64_t hidden = config_.hidden_size;
    const int64_t q = config_.q_dim();
    const int64_t kv = config_.kv_dim();
    const auto name = [&](const char* rest) { return LayerTensor(l, rest); };
    LayerWeights w;
    w.input_norm = Vector(name("input_layernorm.weight"), hidden);
    w.qkv = PackedWeights(q + 2 * kv, hidden);
    PackRows(name("self_attn.q_proj.weight"), 0, q, &w.qkv);
    PackRows(name("self_attn.k_proj.weight"), q, kv, &w.qkv);
    PackRows(name("self_attn.v_proj.weight"), q + kv, kv, &w.qkv);
    if (config_.qkv_bias) {
      w.qkv_bias.resize(static_cast<size_t>(q + 2 * kv));
      const std::span<float> bias(w.qkv_bias);
      source_.ReadVector(name("self_attn.q_proj.bias"), bias.first(q));
      source_.ReadVector(name("self_attn.k_proj.bias"), bias.subspan(q, kv));
      source_.ReadVector(name("self_attn.v_proj.bias"), bias.last(kv));
    }
    if (config_.qk_norm) {
      w.q_norm = Vector(name("self_attn.q_norm.weight"), config_.head_dim);
      w.k_norm = Vector(name("self_attn.k_norm.weight"), config_.head_dim);
    }
    w.o = PackedWeights(hidden, q);
    PackRows(name("self_attn.o_proj.weight"), 0, hidden, &w.o);
    if (config_.o_bias) w.o_bias = Vector(name("self_attn.o_proj.bias"), hidden);
    w.post_norm = Vector(name("post_attention_layernorm.weight"), hidden);
    w.gate_up = BuildGateUp(name("mlp.gate_proj.weight"), name("mlp.up_proj.weight"));
    w.down = PackedWeights(hidden, config_.intermediate_size);
    PackRows(name("mlp.down_proj.weight"), 0, hidden, &w.down);
    return w;
  }

  // The layout of kernels::PackGateUp, panel by panel.
  PackedWeights BuildGateUp(const std::string& gate, const std::string& up) {
    const int64_t n = config_.intermediate_size;
    const int64_t k = config_.hidden_size;
    PackedWeights packed((n + kPanel - 1) / kPanel * 2 * kPanel, k);
    rows_.resize(static_cast<size_t>(kPanel * k));
    for (int64_t row = 0; row < n; row += kPanel) {
      const int64_t count = std::min(kPanel, n - row);
      source_.Read(gate, row * k, count * k, rows_.data());
      packed.Pack(rows_.data(), row * 2, count);
      source_.Read(up, row * k, count * k, rows_.data());
      packed.Pack(rows_.data(), row * 2 + kPanel, count);
    }
    return packed;
  }

  // All of a tensor's `count` rows, to rows [at, at + count) of `packed`.
  void PackRows(const std::string& name, int64_t at, int64_t count, PackedWeights* packed) {
    const int64_t k = packed->k();
    rows_.resize(static_cast<size_t>(kPanel * k));
    for (int64_t row = 0; row < count; row += kPanel) {
      const int64_t part = std::min(kPanel, count - row);
      source_.Read(name, row * k, part * k, rows_.data());
      packed->Pack(rows_.data(), at + row, part);
    }
  }

  std::vector<float> Vector(const std::string& name, int64_t size) {
    std::vector<float> values(static_cast<size_t>(size));
    source_.ReadVector(name, values);
    return values;
  }

  const ModelConfig& config_;
  const TensorSource& source_;
  std::vector<Bf16> rows_;
};

absl::StatusOr<Weights> Weights::Load(const ModelConfig& config, const ModelTensors& tensors) {
  ASSIGN_OR_RETURN(const auto source, OpenTensorSource(config, tensors));
  return WeightsBuilder(config, *source).Build();
}

Weights Weights::Random(const ModelConfig& config, uint64_t seed) {
  return WeightsBuilder(config, *RandomTensorSource(config, seed)).Build();
}

std::string ModelFingerprint(const ModelConfig& config, const ModelTensors& tensors) {
  uint64_t hash = HashBytes(CanonicalText(config));
  for (const auto& [name, view] : tensors.tensors()) {
    hash = HashCombine(hash, HashBytes(name));
    hash = HashCombine(hash, HashBytes(view.dtype_name + ShapeText(view.shape)));
    hash = HashCombine(hash, HashContent(view.bytes));
  }
  return absl::StrFormat("m-%016x", hash);
}

}  // namespace paceline

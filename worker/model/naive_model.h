// For tests: the forward pass written once more, slowly and plainly, in double precision over the
// tensors as they lie in the file. It shares no code with the decoder and knows no KV, no blocks
// and no batch. Also makers of small random models in HF layout.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "worker/model/config.h"
#include "worker/model/safetensors.h"

namespace paceline {

class NaiveModel {
 public:
  // The tensors are converted at once. Dies on a missing one.
  NaiveModel(ModelConfig config, const ModelTensors& tensors);

  // Logits [tokens.size()][vocab_size] of every position, after num_layers layers (0 = all).
  std::vector<std::vector<double>> Logits(std::span<const TokenId> tokens,
                                          int32_t num_layers = 0) const;

 private:
  using Vector = std::vector<double>;
  const Vector& Tensor(const std::string& name) const;
  const Vector& Layer(int32_t layer, const std::string& rest) const;
  Vector Apply(const Vector& matrix, const Vector& x) const;
  Vector Norm(const Vector& x, const Vector& weight) const;
  double Frequency(int32_t pair) const;
  void Rotate(double* head, int32_t position) const;
  void RunLayer(int32_t layer, std::vector<Vector>* x) const;

  ModelConfig config_;
  std::map<std::string, Vector> tensors_;
};

// Writes DIR/config.json and DIR/model.safetensors with random bf16 weights.
void WriteRandomModel(const std::string& dir, const ModelConfig& config, uint64_t seed);

// A folder of its own below the test's temporary folder.
std::string FreshDir(const std::string& name);

// 3 layers, hidden 64, 4 / 2 heads of 16, FFN 96, vocabulary 211.
ModelConfig TinyConfig();

// config.json of a config.
std::string ConfigJson(const ModelConfig& config);

}  // namespace paceline

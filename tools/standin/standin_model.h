// The stand-in pair as tensors. The residual stream of a token u starts as
//   g * [ left(u) | constant | filler(u) | 0 ]
// with a filler that gives all rows one norm, so that the final norm scales every row alike and the
// head [ right(v) / g | log p(v) | 0 | 0 ] reads the bigram statistics off it. The layers are
// random attention and MLPs over the first part, scaled so that they move the logits a little:
// every token depends on the whole context, and the draft (the first layer alone) often agrees.
#pragma once

#include <string>
#include <vector>

#include "tools/standin/bigram.h"
#include "worker/model/config.h"
#include "worker/model/safetensors_writer.h"

namespace paceline {

inline constexpr int32_t kStandinRank = 112;
inline constexpr int32_t kStandinDraftLayers = 1;

// LlamaForCausalLM, hidden 128, 4 / 2 heads of 32, FFN 256, context 2048.
ModelConfig StandinConfig(int32_t vocab_size, int32_t num_layers, TokenId eos);

std::vector<TensorToWrite> StandinTensors(const ModelConfig& config, const BigramModel& bigrams);

std::string StandinConfigJson(const ModelConfig& config);
std::string StandinGenerationJson(const ModelConfig& config);

}  // namespace paceline

// A model in memory, ready for CpuDecoder. Immutable, so that runners may share it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/model/config.h"
#include "worker/model/weights.h"

namespace paceline {

struct CpuModel {
  ModelConfig config;
  Weights weights;
  std::string fingerprint;
};

// An HF directory: config.json, model*.safetensors, generation_config.json.
absl::StatusOr<std::shared_ptr<const CpuModel>> LoadCpuModel(const std::string& dir);

// Random weights (--load-format=dummy).
std::shared_ptr<const CpuModel> RandomCpuModel(const ModelConfig& config, uint64_t seed);

}  // namespace paceline

#include "worker/model/cpu_model.h"

#include "absl/strings/str_format.h"
#include "common/hash.h"
#include "common/status_macros.h"

namespace paceline {

absl::StatusOr<std::shared_ptr<const CpuModel>> LoadCpuModel(const std::string& dir) {
  auto model = std::make_shared<CpuModel>();
  ASSIGN_OR_RETURN(model->config, LoadModelConfig(dir));
  ASSIGN_OR_RETURN(const ModelTensors tensors, ModelTensors::Open(dir));
  ASSIGN_OR_RETURN(model->weights, Weights::Load(model->config, tensors));
  model->fingerprint = ModelFingerprint(model->config, tensors);
  return std::shared_ptr<const CpuModel>(std::move(model));
}

std::shared_ptr<const CpuModel> RandomCpuModel(const ModelConfig& config, uint64_t seed) {
  auto model = std::make_shared<CpuModel>();
  model->config = config;
  model->weights = Weights::Random(config, seed);
  model->fingerprint =
      absl::StrFormat("r-%016x", HashCombine(HashBytes(CanonicalText(config)), seed));
  return model;
}

}  // namespace paceline

// Where a model's tensors come from, whatever backend they go to: checked files, or random numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/bf16.h"
#include "kernels/random_weights.h"
#include "worker/model/config.h"
#include "worker/model/safetensors.h"

namespace paceline {

// Names and shapes are those of RequiredTensors. Immutable; any thread.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // Elements [begin, begin + count) of a matrix.
  virtual void Read(const std::string& name, int64_t begin, int64_t count,
                    kernels::Bf16* out) const = 0;
  // How a matrix is made where it is random, so that a device can make it itself; else empty.
  virtual std::optional<kernels::RandomMatrix> Random(const std::string& /*name*/) const {
    return std::nullopt;
  }
  virtual void ReadVector(const std::string& name, std::span<float> out) const = 0;
};

// INVALID_ARGUMENT naming file, tensor and reason: missing, wrong shape, wrong dtype, or a layer
// tensor that the config has no place for. The tensors outlive the source.
absl::StatusOr<std::unique_ptr<TensorSource>> OpenTensorSource(const ModelConfig& config,
                                                               const ModelTensors& tensors);

// Equal for equal (config, seed). Matrices: uniform with a standard deviation of 1 / sqrt(hidden).
// Vectors: norms near one, biases near zero.
std::unique_ptr<TensorSource> RandomTensorSource(const ModelConfig& config, uint64_t seed);

}  // namespace paceline

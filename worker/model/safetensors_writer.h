// Writing safetensors files: for tools that make models, and for tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace paceline {

struct TensorToWrite {
  std::string name;
  std::string dtype;  // "F32", "F16", "BF16"
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;  // little-endian, row-major
};

TensorToWrite Bf16Tensor(std::string name, std::vector<int64_t> shape,
                         const std::vector<float>& values);
TensorToWrite F32Tensor(std::string name, std::vector<int64_t> shape,
                        const std::vector<float>& values);

// In the order given; the same bytes for the same tensors.
std::string SafetensorsBytes(const std::vector<TensorToWrite>& tensors);
absl::Status WriteTextFile(const std::string& path, const std::string& text);

}  // namespace paceline

// Reading safetensors: eight bytes of header length, a JSON header, then the tensors' bytes. The
// file is mapped, never copied; nothing in it is trusted before it is checked.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace paceline {

enum class TensorDtype : uint8_t { kF32, kF16, kBf16, kOther };

// A tensor's bytes in the mapped file, row-major, little-endian, maybe not aligned.
struct TensorView {
  TensorDtype dtype = TensorDtype::kOther;
  std::string dtype_name;      // as the header has it
  std::vector<int64_t> shape;  // each >= 0; the product fits the bytes
  std::span<const uint8_t> bytes;
  const std::string* file = nullptr;  // for messages; lives as long as the tensors

  int64_t num_elements() const;
};

std::string ShapeText(std::span<const int64_t> shape);

inline constexpr uint64_t kMaxSafetensorsHeader = uint64_t{100} << 20;
inline constexpr size_t kMaxTensors = size_t{1} << 20;

// Checks and indexes one file's contents. `data` must outlive the views. INVALID_ARGUMENT naming
// file, tensor and reason: header length, JSON, dtype, shape, range, size, overlap, gap.
absl::StatusOr<std::map<std::string, TensorView>> ParseSafetensors(std::span<const uint8_t> data,
                                                                   const std::string& file);

// All tensors of an HF directory: model.safetensors, or the shards that
// model.safetensors.index.json names. Immutable; any thread.
class ModelTensors {
 public:
  static absl::StatusOr<ModelTensors> Open(const std::string& dir);

  ModelTensors(ModelTensors&&) noexcept;
  ModelTensors& operator=(ModelTensors&&) noexcept;
  ~ModelTensors();

  // Null if there is none.
  const TensorView* Find(std::string_view name) const;
  const std::map<std::string, TensorView, std::less<>>& tensors() const { return tensors_; }

 private:
  class MappedFile;
  ModelTensors();
  absl::Status AddFile(const std::string& path, const std::map<std::string, std::string>* wanted,
                       const std::string& shard);
  absl::Status OpenShards(const std::string& dir, const std::string& index_path);

  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<std::string, TensorView, std::less<>> tensors_;
};

// Elements [begin, begin + count) as bf16 (round to nearest even) or float.
void ReadBf16(const TensorView& tensor, int64_t begin, int64_t count, uint16_t* out);
void ReadFloat(const TensorView& tensor, int64_t begin, int64_t count, float* out);

}  // namespace paceline

#include "worker/model/tensor_source.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/status_macros.h"
#include "worker/model/tensor_names.h"

namespace paceline {
namespace {

using kernels::Bf16;

class FileSource final : public TensorSource {
 public:
  explicit FileSource(const ModelTensors& tensors) : tensors_(tensors) {}
  void Read(const std::string& name, int64_t begin, int64_t count, Bf16* out) const override {
    ReadBf16(Tensor(name), begin, count, reinterpret_cast<uint16_t*>(out));
  }
  void ReadVector(const std::string& name, std::span<float> out) const override {
    ReadFloat(Tensor(name), 0, static_cast<int64_t>(out.size()), out.data());
  }

 private:
  // A tied pair is stored under either name.
  const TensorView& Tensor(const std::string& name) const {
    const TensorView* view = tensors_.Find(name);
    if (view == nullptr && name == kEmbeddingTensor) view = tensors_.Find(kHeadTensor);
    CHECK(view != nullptr) << name;
    return *view;
  }
  const ModelTensors& tensors_;
};

class RandomSource final : public TensorSource {
 public:
  RandomSource(const ModelConfig& config, uint64_t seed)
      : seed_(seed), scale_(std::sqrt(3.0f / static_cast<float>(config.hidden_size))) {}

  void Read(const std::string& name, int64_t begin, int64_t count, Bf16* out) const override {
    const kernels::RandomMatrix matrix = *Random(name);
    for (int64_t i = begin; i < begin + count;) {
      const kernels::PhiloxBlock run = kernels::RandomRun(matrix, i / kernels::kRandomRun);
      const int64_t end =
          std::min(begin + count, (i / kernels::kRandomRun + 1) * kernels::kRandomRun);
      for (; i < end; ++i) {
        const auto lane = static_cast<int>(i % kernels::kRandomRun);
        out[i - begin] = kernels::RandomElement(matrix, run, lane);
      }
    }
  }
  std::optional<kernels::RandomMatrix> Random(const std::string& name) const override {
    return kernels::RandomMatrix{HashCombine(seed_, HashBytes(name)), scale_};
  }

  void ReadVector(const std::string& name, std::span<float> out) const override {
    const uint64_t key = HashCombine(seed_, HashBytes(name));
    const float base = absl::EndsWith(name, ".bias") ? 0.0f : 1.0f;
    for (size_t i = 0; i < out.size(); ++i) {
      const auto lane = static_cast<int16_t>(Mix64(key + i));
      out[i] = kernels::ToFloat(kernels::ToBf16(base + 0.1f * static_cast<float>(lane) * 0x1p-15f));
    }
  }

 private:
  const uint64_t seed_;
  const float scale_;
};

absl::Status CheckTensor(const TensorSpec& spec, const ModelTensors& tensors,
                         const ModelConfig& config) {
  const TensorView* view = tensors.Find(spec.name);
  if (view == nullptr && spec.name == kEmbeddingTensor && config.tie_embeddings) {
    view = tensors.Find(kHeadTensor);
  }
  if (view == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", spec.name, " is missing; ",
                                                   config.architecture, " needs it with shape ",
                                                   ShapeText(spec.shape)));
  }
  if (view->shape != spec.shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(*view->file, ": tensor ", spec.name, " has shape ", ShapeText(view->shape),
                     ", config.json asks for ", ShapeText(spec.shape)));
  }
  if (view->dtype == TensorDtype::kOther) {
    return absl::InvalidArgumentError(absl::StrCat(*view->file, ": tensor ", spec.name,
                                                   " has dtype ", view->dtype_name,
                                                   "; F32, F16 and BF16 are supported"));
  }
  return absl::OkStatus();
}

// A tensor inside the layers that nothing reads would change what the model computes.
absl::Status CheckNothingIgnored(const std::vector<TensorSpec>& specs,
                                 const ModelTensors& tensors) {
  std::set<std::string_view> known;
  for (const TensorSpec& spec : specs) known.insert(spec.name);
  for (const auto& [name, view] : tensors.tensors()) {
    if (!absl::StartsWith(name, "model.layers.") || known.count(name) != 0) continue;
    if (absl::EndsWith(name, ".rotary_emb.inv_freq")) continue;
    return absl::InvalidArgumentError(absl::StrCat(*view.file, ": tensor ", name,
                                                   " has no place in the model that config.json "
                                                   "describes"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<TensorSource>> OpenTensorSource(const ModelConfig& config,
                                                               const ModelTensors& tensors) {
  const std::vector<TensorSpec> specs = RequiredTensors(config);
  for (const TensorSpec& spec : specs) RETURN_IF_ERROR(CheckTensor(spec, tensors, config));
  RETURN_IF_ERROR(CheckNothingIgnored(specs, tensors));
  return std::unique_ptr<TensorSource>(std::make_unique<FileSource>(tensors));
}

std::unique_ptr<TensorSource> RandomTensorSource(const ModelConfig& config, uint64_t seed) {
  return std::make_unique<RandomSource>(config, seed);
}

}  // namespace paceline

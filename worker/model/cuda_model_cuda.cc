#include "worker/model/cuda_model_cuda.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/hash.h"
#include "common/status_macros.h"
#include "kernels/cuda/rows.h"
#include "worker/model/tensor_names.h"
#include "worker/model/weights.h"

namespace paceline {
namespace {

using kernels::Bf16;

constexpr int64_t kAlign = 256;
constexpr int64_t kPieceBytes = int64_t{16} << 20;  // of each of the two pinned buffers

// Walks the weights in one order, twice: to add up their sizes, then to fill them. A tensor's bytes
// go from the mapped file to one of two pinned buffers and from there to the GPU, so that reading
// one piece overlaps with sending the one before. Random matrices are made where they lie.
class CudaWeightsBuilder {
 public:
  CudaWeightsBuilder(const ModelConfig& config, const TensorSource& source)
      : config_(config), source_(source) {}

  absl::StatusOr<CudaWeights> Build() {
    CudaWeights sizes;
    RETURN_IF_ERROR(Walk(&sizes));  // base_ null: nothing is read
    const int64_t needed = next_;
    size_t free_bytes = 0, total_bytes = 0;
    RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "GPU memory"));
    if (needed > static_cast<int64_t>(free_bytes)) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the weights need ", GibText(needed), " of GPU memory, ",
          GibText(static_cast<int64_t>(free_bytes)), " of ",
          GibText(static_cast<int64_t>(total_bytes)),
          " are free: end other programs on the GPU, or take a smaller model (--model)"));
    }
    CudaWeights weights;
    ASSIGN_OR_RETURN(weights.memory, DeviceMemory::Allocate(needed, "the weights"));
    ASSIGN_OR_RETURN(stream_, MakeStream());
    const int64_t row_bytes = 2 * int64_t{sizeof(Bf16)} * WidestRow();
    piece_bytes_ = std::max(kPieceBytes, row_bytes);
    for (Piece& piece : pieces_) {
      ASSIGN_OR_RETURN(piece.memory, PinnedMemory::Allocate(piece_bytes_, "pinned memory"));
      RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&piece.sent, cudaEventDisableTiming),
                                 "a CUDA event"));
      piece.has_event = true;
    }
    base_ = weights.memory.as<uint8_t>();
    next_ = 0;
    RETURN_IF_ERROR(Walk(&weights));
    RETURN_IF_ERROR(stream_->Synchronize("upload of the weights"));
    return weights;
  }

 private:
  struct Piece {
    PinnedMemory memory;
    cudaEvent_t sent = nullptr;
    bool has_event = false;
    ~Piece() {
      if (has_event) cudaEventDestroy(sent);
    }
  };

  static absl::StatusOr<std::unique_ptr<CudaStream>> MakeStream() {
    ASSIGN_OR_RETURN(CudaStream stream, CudaStream::Create());
    return std::make_unique<CudaStream>(std::move(stream));
  }

  int64_t WidestRow() const {
    return std::max({config_.hidden_size, config_.q_dim(), config_.intermediate_size,
                     config_.qkv_dim(), config_.head_dim});
  }

  absl::Status Walk(CudaWeights* w) {
    const int64_t vocab = config_.vocab_size;
    const int64_t hidden = config_.hidden_size;
    RETURN_IF_ERROR(Matrix({{kEmbeddingTensor, vocab}}, hidden, &w->embedding));
    w->layers.resize(static_cast<size_t>(config_.num_layers));
    for (int32_t l = 0; l < config_.num_layers; ++l) {
      RETURN_IF_ERROR(WalkLayer(l, &w->layers[static_cast<size_t>(l)]));
    }
    RETURN_IF_ERROR(Vector({{kFinalNormTensor, hidden}}, &w->final_norm));
    if (config_.tie_embeddings) {
      w->head = w->embedding;
      return absl::OkStatus();
    }
    return Matrix({{kHeadTensor, vocab}}, hidden, &w->head);
  }

  absl::Status WalkLayer(int32_t l, CudaLayerWeights* w) {
    const int64_t hidden = config_.hidden_size;
    const int64_t q = config_.q_dim();
    const int64_t kv = config_.kv_dim();
    const int64_t ffn = config_.intermediate_size;
    const auto name = [&](const char* rest) { return LayerTensor(l, rest); };
    RETURN_IF_ERROR(Vector({{name("input_layernorm.weight"), hidden}}, &w->input_norm));
    RETURN_IF_ERROR(Matrix({{name("self_attn.q_proj.weight"), q},
                            {name("self_attn.k_proj.weight"), kv},
                            {name("self_attn.v_proj.weight"), kv}},
                           hidden, &w->qkv));
    if (config_.qkv_bias) {
      RETURN_IF_ERROR(Vector({{name("self_attn.q_proj.bias"), q},
                              {name("self_attn.k_proj.bias"), kv},
                              {name("self_attn.v_proj.bias"), kv}},
                             &w->qkv_bias));
    }
    if (config_.qk_norm) {
      RETURN_IF_ERROR(Vector({{name("self_attn.q_norm.weight"), config_.head_dim}}, &w->q_norm));
      RETURN_IF_ERROR(Vector({{name("self_attn.k_norm.weight"), config_.head_dim}}, &w->k_norm));
    }
    RETURN_IF_ERROR(Matrix({{name("self_attn.o_proj.weight"), hidden}}, q, &w->o));
    if (config_.o_bias) {
      RETURN_IF_ERROR(Vector({{name("self_attn.o_proj.bias"), hidden}}, &w->o_bias));
    }
    RETURN_IF_ERROR(Vector({{name("post_attention_layernorm.weight"), hidden}}, &w->post_norm));
    RETURN_IF_ERROR(GateUp(name("mlp.gate_proj.weight"), name("mlp.up_proj.weight"), &w->gate_up));
    return Matrix({{name("mlp.down_proj.weight"), hidden}}, ffn, &w->down);
  }

  struct Part {
    std::string name;
    int64_t rows;  // of a vector: elements
  };

  uint8_t* Take(int64_t bytes) {
    uint8_t* at = base_ == nullptr ? nullptr : base_ + next_;
    next_ += (bytes + kAlign - 1) / kAlign * kAlign;
    return at;
  }

  // Tensors one below the other.
  absl::Status Matrix(const std::vector<Part>& parts, int64_t width, Bf16** to) {
    int64_t rows = 0;
    for (const Part& part : parts) rows += part.rows;
    *to = reinterpret_cast<Bf16*>(Take(rows * width * int64_t{sizeof(Bf16)}));
    if (base_ == nullptr) return absl::OkStatus();
    Bf16* at = *to;
    const int64_t most = piece_bytes_ / int64_t{sizeof(Bf16)};
    for (const Part& part : parts) {
      const int64_t count = part.rows * width;
      if (const auto random = source_.Random(part.name); random.has_value()) {
        RETURN_IF_ERROR(Make(*random, at, part.rows, width, width));
        at += count;
        continue;
      }
      for (int64_t begin = 0, size = 0; begin < count; begin += size, at += size) {
        size = std::min(most, count - begin);
        ASSIGN_OR_RETURN(uint8_t* const buffer, NextPiece());
        source_.Read(part.name, begin, size, reinterpret_cast<Bf16*>(buffer));
        RETURN_IF_ERROR(Send(at, size * int64_t{sizeof(Bf16)}));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Make(const kernels::RandomMatrix& matrix, Bf16* to, int64_t rows, int64_t width,
                    int64_t stride) {
    kernels::CudaRandomRowsParams p;
    p.matrix = matrix;
    p.y = to;
    p.stride = stride;
    p.rows = static_cast<int32_t>(rows);
    p.dim = static_cast<int32_t>(width);
    return CudaStatus(kernels::CudaRandomRows(p, stream_->get()), "random weights");
  }

  // Rows of gate and up in turn.
  absl::Status GateUp(const std::string& gate, const std::string& up, Bf16** to) {
    const int64_t rows = config_.intermediate_size;
    const int64_t width = config_.hidden_size;
    *to = reinterpret_cast<Bf16*>(Take(2 * rows * width * int64_t{sizeof(Bf16)}));
    if (base_ == nullptr) return absl::OkStatus();
    const auto random_gate = source_.Random(gate), random_up = source_.Random(up);
    if (random_gate.has_value() && random_up.has_value()) {
      RETURN_IF_ERROR(Make(*random_gate, *to, rows, width, 2 * width));
      return Make(*random_up, *to + width, rows, width, 2 * width);
    }
    const int64_t most = piece_bytes_ / (2 * width * int64_t{sizeof(Bf16)});
    for (int64_t row = 0; row < rows; row += most) {
      const int64_t count = std::min(most, rows - row);
      ASSIGN_OR_RETURN(uint8_t* const buffer, NextPiece());
      Bf16* const pairs = reinterpret_cast<Bf16*>(buffer);
      for (int64_t r = 0; r < count; ++r) {
        source_.Read(gate, (row + r) * width, width, pairs + 2 * r * width);
        source_.Read(up, (row + r) * width, width, pairs + (2 * r + 1) * width);
      }
      RETURN_IF_ERROR(Send(*to + 2 * row * width, 2 * count * width * int64_t{sizeof(Bf16)}));
    }
    return absl::OkStatus();
  }

  absl::Status Vector(const std::vector<Part>& parts, float** to) {
    int64_t size = 0;
    for (const Part& part : parts) size += part.rows;
    *to = reinterpret_cast<float*>(Take(size * int64_t{sizeof(float)}));
    if (base_ == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(uint8_t* const buffer, NextPiece());
    float* at = reinterpret_cast<float*>(buffer);
    for (const Part& part : parts) {
      source_.ReadVector(part.name, std::span<float>(at, static_cast<size_t>(part.rows)));
      at += part.rows;
    }
    return Send(*to, size * int64_t{sizeof(float)});
  }

  // The pinned buffer that was sent longest ago, free again.
  absl::StatusOr<uint8_t*> NextPiece() {
    turn_ = 1 - turn_;
    Piece& piece = pieces_[turn_];
    if (piece_sent_[turn_]) {
      RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(piece.sent), "upload of the weights"));
    }
    return piece.memory.as<uint8_t>();
  }

  absl::Status Send(void* to, int64_t bytes) {
    Piece& piece = pieces_[turn_];
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(to, piece.memory.as<uint8_t>(), static_cast<size_t>(bytes),
                                   cudaMemcpyHostToDevice, stream_->get()),
                   "upload of the weights"));
    piece_sent_[turn_] = true;
    return CudaStatus(cudaEventRecord(piece.sent, stream_->get()), "upload of the weights");
  }

  const ModelConfig& config_;
  const TensorSource& source_;
  uint8_t* base_ = nullptr;
  int64_t next_ = 0;
  int64_t piece_bytes_ = 0;
  Piece pieces_[2];
  bool piece_sent_[2] = {};
  int turn_ = 0;
  std::unique_ptr<CudaStream> stream_;
};

}  // namespace

absl::Status CheckCudaSizes(const ModelConfig& c) {
  if (c.head_dim % 8 != 0 || c.head_dim > 256) {
    return absl::UnimplementedError(absl::StrCat("CUDA: head_dim is ", c.head_dim,
                                                 "; the kernels take multiples of 8 up to 256"));
  }
  if (c.hidden_size % 8 != 0 || c.intermediate_size % 8 != 0) {
    return absl::UnimplementedError(absl::StrCat("CUDA: hidden_size is ", c.hidden_size,
                                                 ", intermediate_size is ", c.intermediate_size,
                                                 "; the kernels take multiples of 8"));
  }
  if (c.vocab_size > 1 << 18) {
    return absl::UnimplementedError(
        absl::StrCat("CUDA: vocab_size is ", c.vocab_size, "; the sampler takes up to ", 1 << 18));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const CudaModel>> LoadCudaModel(const std::string& dir) {
  auto model = std::make_shared<CudaModel>();
  ASSIGN_OR_RETURN(model->config, LoadModelConfig(dir));
  RETURN_IF_ERROR(CheckCudaSizes(model->config));
  ASSIGN_OR_RETURN(const ModelTensors tensors, ModelTensors::Open(dir));
  ASSIGN_OR_RETURN(const auto source, OpenTensorSource(model->config, tensors));
  ASSIGN_OR_RETURN(model->weights, CudaWeightsBuilder(model->config, *source).Build());
  model->fingerprint = ModelFingerprint(model->config, tensors);
  return std::shared_ptr<const CudaModel>(std::move(model));
}

absl::StatusOr<std::shared_ptr<const CudaModel>> RandomCudaModel(const ModelConfig& config,
                                                                 uint64_t seed) {
  auto model = std::make_shared<CudaModel>();
  model->config = config;
  RETURN_IF_ERROR(CheckCudaSizes(config));
  const auto source = RandomTensorSource(config, seed);
  ASSIGN_OR_RETURN(model->weights, CudaWeightsBuilder(model->config, *source).Build());
  model->fingerprint =
      absl::StrFormat("r-%016x", HashCombine(HashBytes(CanonicalText(config)), seed));
  return std::shared_ptr<const CudaModel>(std::move(model));
}

}  // namespace paceline

// The decoder on the GPU: the stages of worker/model/cpu_decoder.h, by the same names in the same
// order; QkNorm, Rope and KvWrite are one kernel, SwiGLU and the residual's addition lie in the
// epilogues of GateUp, AttentionOutput and Down. Types and meaning of every array are those of the
// CPU decoder: a float32 residual stream, bf16 into every matrix product, bf16 K and V.
//
// Everything is enqueued on one stream; nothing waits. A step's arrays are staged and sent by one
// copy, and memory grows only for a batch larger than any before.
//
// A batch of few rows, decode or verify, has a shape: its rows and attention's lists padded to
// counts of CountBucket, its arrays at places that follow from them. Kernels enqueued for one batch
// then serve every batch of that shape, so they can be captured in a graph. Rows that pad write no
// KV and change no bits of others.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/linear.h"
#include "worker/kv/kv_pool_cuda.h"
#include "worker/kv/staging_cuda.h"
#include "worker/model/cuda_model_cuda.h"
#include "worker/model/decoder_batch.h"

namespace paceline {

struct CudaDecoderOptions {
  int32_t max_position = 0;  // bounds every row's position
  int32_t num_hidden_slots = 0;
  int32_t max_rows = 512;                     // of a batch, without a further allocation
  int64_t partial_bytes = int64_t{64} << 20;  // of attention's partial results
};

// The counts that shapes have: 1, 2, 4, 6, 8, then four to an octave.
int32_t CountBucket(int32_t count);

// One thread at a time. Model, pool and stream outlive it.
class CudaDecoder {
 public:
  // Padded counts. Equal shapes enqueue equal kernels with equal params while bytes() stays.
  struct Shape {
    int32_t rows = 0;
    int32_t small_items = 0, medium_items = 0, splits = 0;
    auto operator<=>(const Shape&) const = default;
  };
  static constexpr int32_t kMaxShapeRows = 256;

  static absl::StatusOr<std::unique_ptr<CudaDecoder>> Create(const CudaModel& model, KvPoolCuda& kv,
                                                             cudaStream_t stream,
                                                             const CudaDecoderOptions& options);

  // Bytes that Create will take.
  static int64_t WorkspaceBytes(const ModelConfig& config, const CudaDecoderOptions& options);

  // Sends the batch's arrays, padded if `pad` says so and the batch can have a shape. The stream
  // has passed the work of the batch before; this batch stays until Enqueue has returned.
  absl::Status Prepare(const DecoderBatch& batch, bool pad);
  // Of the prepared batch; empty where it was not padded.
  const std::optional<Shape>& shape() const { return shape_; }
  // All stages but the head, each span over its layers.
  absl::Status Enqueue();
  // Prepare without padding, then Enqueue.
  absl::Status Run(const DecoderBatch& batch);

  // Final norm and head of the batch rows `rows` ([n], on the device), at whatever layer they
  // ended. logits: [n, vocab_size] on the device; n at most max_rows.
  absl::Status Head(const int32_t* rows, int32_t n, float* logits);

  // Of the memory that Enqueue's kernels know; grows when any of it is replaced.
  int64_t bytes() const;

  int32_t num_hidden_slots() const { return static_cast<int32_t>(saved_.size()); }
  // Rows that a saved-hidden slot holds.
  int32_t saved_rows(int32_t slot) const { return saved_[static_cast<size_t>(slot)].rows; }

 private:
  // Where attention's arrays lie in the staging, and their lengths.
  struct AttentionArrays {
    StagingCuda::Place spans = 0, visible = 0, masks = 0, small = 0, medium = 0, large = 0,
                       splits = 0;
    int32_t num_small = 0, num_medium = 0, num_large = 0, num_splits = 0;
  };
  // Layers [begin, end), between two borders of layer ranges: the same spans run in all of them.
  struct Segment {
    int32_t begin = 0, end = 0;
    int32_t n = 0;     // rows that run
    bool all = false;  // they are the whole batch
    StagingCuda::Place rows = 0, positions = 0, slots = 0;
    AttentionArrays attention;
    // Behind the last layer's KV only these go on: index among the n, and row of the batch.
    bool drops = false;
    int32_t num_tail = 0;
    StagingCuda::Place tail_from = 0, tail_rows = 0;
    AttentionArrays tail_attention;
  };
  struct SavedHidden {
    DeviceMemory memory;  // [rows, hidden]
    int32_t rows = 0;
  };
  // What a run of layers works on.
  struct Active {
    float* x = nullptr;  // [n, hidden] residual stream
    int32_t n = 0;
    const kernels::Bf16* q = nullptr;  // [n, q_dim]
    const AttentionArrays* attention = nullptr;
  };

  CudaDecoder(const CudaModel& model, KvPoolCuda& kv, cudaStream_t stream,
              const CudaDecoderOptions& options);
  absl::Status Allocate(int32_t rows);
  absl::Status UploadRopeTable();

  bool CanPad(const DecoderBatch& batch) const;
  void Stage(const DecoderBatch& batch);
  std::vector<int32_t> ListTables(const DecoderBatch& batch);
  Segment StageSegment(const DecoderBatch& batch, int32_t begin, int32_t end);
  AttentionArrays StageAttention(const std::vector<kernels::AttentionSpanInput>& inputs);

  void PadAttention();
  absl::Status Embed();
  absl::Status RunSegment(const Segment& segment);
  absl::Status RunLayer(const Segment& segment, int32_t layer, bool last);
  absl::Status InputNorm(const CudaLayerWeights& w);
  absl::Status Qkv(const CudaLayerWeights& w);
  absl::Status QkNormRopeKvWrite(const Segment& segment, const CudaLayerWeights& w, int32_t layer);
  absl::Status DropFinishedRows(const Segment& segment);
  absl::Status Attention(int32_t layer);
  absl::Status AttentionOutput(const CudaLayerWeights& w);
  absl::Status PostNorm(const CudaLayerWeights& w);
  absl::Status GateUp(const CudaLayerWeights& w);
  absl::Status Down(const CudaLayerWeights& w);
  absl::Status SaveHidden(int32_t end);
  absl::Status Norm(const float* x, const int32_t* from, const float* weight, int32_t n,
                    const char* stage);
  absl::Status Linear(const kernels::CudaLinearParams& params, const char* stage);
  absl::Status MoveRows(const float* x, float* y, const int32_t* from, const int32_t* to,
                        int32_t rows, int32_t dim);

  const CudaModel& model_;
  const ModelConfig& config_;
  KvPoolCuda& kv_;
  const cudaStream_t stream_;
  const CudaDecoderOptions options_;
  int32_t max_units_ = 0;  // of attention's partial results

  DeviceMemory rope_;      // [max_position, head_dim]
  DeviceMemory hidden_;    // [rows, hidden] float
  DeviceMemory packed_;    // [rows, hidden] float, where not every row is active
  DeviceMemory tail_;      // [rows, hidden] float, behind DropFinishedRows
  DeviceMemory normed_;    // [rows, hidden] bf16
  DeviceMemory qkv_;       // [rows, qkv_dim] float
  DeviceMemory q_;         // [rows, q_dim] bf16
  DeviceMemory tail_q_;    // [rows, q_dim] bf16
  DeviceMemory attended_;  // [rows, q_dim] bf16
  DeviceMemory gated_;     // [rows, ffn] bf16
  DeviceMemory partials_, partial_stats_;
  std::vector<SavedHidden> saved_;

  // Of the batch in hand.
  const DecoderBatch* batch_ = nullptr;
  std::optional<Shape> shape_;
  int32_t rows_ = 0;  // the batch's, or the shape's
  StagingCuda staging_;
  StagingCuda::Place tokens_ = 0, tables_ = 0;
  std::vector<int32_t> table_begin_;  // per span of the batch
  std::vector<Segment> segments_;
  Active active_;
  kernels::AttentionPlan plan_;  // scratch of StageAttention
};

}  // namespace paceline

// The decoder on the CPU. It walks these stages, by these names, in this order; every backend does:
//
//   Embed                                   token ids or saved hidden rows -> residual stream
//   per layer: InputNorm  Qkv  QkNorm  Rope  KvWrite  Attention  AttentionOutput
//              PostNorm  GateUp  Down
//   Head: FinalNorm  Logits                 only rows that something is sampled from
//
// The residual stream is float32; what enters a matrix product is bf16; K and V are kept as bf16.
// A row's bits depend on its token, its position and the rows it sees, never on what else is in the
// batch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/thread_pool.h"
#include "worker/kv/kv_pool_cpu.h"
#include "worker/model/cpu_model.h"
#include "worker/model/decoder_batch.h"

namespace paceline {

// One thread at a time. Model, pool and KV outlive it.
class CpuDecoder {
 public:
  // max_position bounds every row's position.
  CpuDecoder(const CpuModel& model, KvPoolCpu& kv, kernels::ThreadPool& pool, int32_t max_position,
             int32_t num_hidden_slots);

  // All stages but the head, each span over its layers.
  void Run(const DecoderBatch& batch);

  // The stages one by one. RunLayers runs layers [begin, end) of the spans that cover all of them;
  // no span may cover only a part.
  void Embed(const DecoderBatch& batch);
  void RunLayers(const DecoderBatch& batch, int32_t begin, int32_t end);
  // Final norm and head of the batch rows `rows`, at whatever layer they ended.
  // logits: [rows.size(), vocab_size].
  void Head(std::span<const int32_t> rows, float* logits);

  int32_t max_position() const { return rope_.max_position(); }
  int32_t num_hidden_slots() const { return static_cast<int32_t>(saved_.size()); }
  // Rows that a saved-hidden slot holds.
  int32_t saved_rows(int32_t slot) const;

 private:
  // The rows that a run of layers works on: those of the active spans, packed.
  struct Active {
    std::vector<kernels::AttentionSpan> spans;
    std::vector<int32_t> tails;  // of each span; num_rows where its layers go on
    std::vector<int32_t> rows;   // [n] batch row of each, ascending
    std::vector<int32_t> positions;
    std::vector<int64_t> slots;
    float* x = nullptr;  // [n, hidden] residual stream
    int64_t n() const { return static_cast<int64_t>(rows.size()); }
  };

  void Select(const DecoderBatch& batch, int32_t begin, int32_t end);
  void RunLayer(int32_t layer, bool last);
  void InputNorm(const LayerWeights& w);
  void Qkv(const LayerWeights& w);
  void QkNorm(const LayerWeights& w);
  void Rope();
  void KvWrite(int32_t layer);
  void DropFinishedRows();
  void Attention(int32_t layer);
  void AttentionOutput(const LayerWeights& w);
  void PostNorm(const LayerWeights& w);
  void GateUp(const LayerWeights& w);
  void Down(const LayerWeights& w);
  void Norm(const float* x, const std::vector<float>& weight, int64_t rows);

  const CpuModel& model_;
  const ModelConfig& config_;
  KvPoolCpu& kv_;
  kernels::ThreadPool& pool_;
  kernels::RopeTable rope_;
  std::vector<std::vector<float>> saved_;  // [slot][rows * hidden]

  Active active_;
  std::vector<float> hidden_;            // [batch rows, hidden]
  std::vector<float> packed_;            // [n, hidden] where not every row is active
  std::vector<kernels::Bf16> normed_;    // [n, hidden]
  std::vector<float> qkv_;               // [n, qkv_dim]
  std::vector<kernels::Bf16> attended_;  // [n, q_dim]
  std::vector<kernels::Bf16> gated_;     // [n, ffn]
};

}  // namespace paceline

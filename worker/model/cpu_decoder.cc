#include "worker/model/cpu_decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/check.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/norm.h"
#include "worker/model/rope_config.h"

namespace paceline {
namespace {

using kernels::CpuResult;
using kernels::LinearOutput;

// Kernels check shapes only: anything but kOk is a mistake in this file.
void Must(CpuResult result) { CHECK(result == CpuResult::kOk) << static_cast<int>(result); }

template <typename T>
void GrowTo(std::vector<T>* buffer, int64_t size) {
  if (static_cast<int64_t>(buffer->size()) < size) buffer->resize(static_cast<size_t>(size));
}

const float* OrNull(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

}  // namespace

CpuDecoder::CpuDecoder(const CpuModel& model, KvPoolCpu& kv, kernels::ThreadPool& pool,
                       int32_t max_position, int32_t num_hidden_slots)
    : model_(model),
      config_(model.config),
      kv_(kv),
      pool_(pool),
      rope_(RopeConfigOf(model.config), max_position),
      saved_(static_cast<size_t>(num_hidden_slots)) {}

int32_t CpuDecoder::saved_rows(int32_t slot) const {
  return static_cast<int32_t>(saved_[static_cast<size_t>(slot)].size()) / config_.hidden_size;
}

// --- Embed ---

void CpuDecoder::Embed(const DecoderBatch& batch) {
  const int64_t rows = static_cast<int64_t>(batch.tokens.size());
  const int64_t dim = config_.hidden_size;
  GrowTo(&hidden_, rows * dim);
  kernels::EmbedParams p;
  p.table = model_.weights.embedding();
  if (p.table == nullptr) p.packed = &model_.weights.head();
  p.ids = batch.tokens.data();
  p.y = hidden_.data();
  p.rows = rows;
  p.dim = dim;
  Must(kernels::Embed(p, pool_));
  for (const DecoderSpan& span : batch.spans) {
    if (span.hidden_in < 0) continue;
    CHECK_EQ(saved_rows(span.hidden_in), span.num_rows);
    std::ranges::copy(saved_[static_cast<size_t>(span.hidden_in)],
                      hidden_.begin() + span.row_begin * dim);
  }
}

// --- Layers ---

void CpuDecoder::Run(const DecoderBatch& batch) {
  Embed(batch);
  // Between two borders of layer ranges the set of active spans is constant.
  std::vector<int32_t> borders;
  for (const DecoderSpan& span : batch.spans) {
    borders.push_back(span.layer_begin);
    borders.push_back(span.layer_end);
  }
  std::ranges::sort(borders);
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  for (size_t i = 0; i + 1 < borders.size(); ++i) RunLayers(batch, borders[i], borders[i + 1]);
}

// Fills active_ with the spans that run layers [begin, end).
void CpuDecoder::Select(const DecoderBatch& batch, int32_t begin, int32_t end) {
  active_.spans.clear();
  active_.tails.clear();
  active_.rows.clear();
  active_.positions.clear();
  active_.slots.clear();
  const int32_t block = kv_.shape().block_size;
  for (const DecoderSpan& span : batch.spans) {
    if (span.layer_begin > begin || span.layer_end < end || span.num_rows == 0) continue;
    kernels::AttentionSpan& a = active_.spans.emplace_back();
    a.block_table = span.block_table;
    a.context_len = span.context_len;
    a.row_begin = static_cast<int32_t>(active_.rows.size());
    a.num_rows = span.num_rows;
    a.parents = span.parents;
    const bool ends = span.layer_end == end && span.hidden_out < 0 && span.parents == nullptr;
    active_.tails.push_back(ends ? span.tail_rows : span.num_rows);
    for (int32_t r = 0; r < span.num_rows; ++r) {
      const int32_t row = span.row_begin + r;
      const int32_t index = span.context_len + r;
      active_.rows.push_back(row);
      active_.positions.push_back(batch.positions[static_cast<size_t>(row)]);
      active_.slots.push_back(int64_t{span.block_table[index / block]} * block + index % block);
    }
  }
}

void CpuDecoder::RunLayers(const DecoderBatch& batch, int32_t begin, int32_t end) {
  Select(batch, begin, end);
  const int64_t n = active_.n();
  if (n == 0) return;
  const int64_t dim = config_.hidden_size;
  const size_t row_bytes = static_cast<size_t>(dim) * sizeof(float);
  const bool all = n == static_cast<int64_t>(batch.tokens.size());
  if (all) {
    active_.x = hidden_.data();
  } else {
    GrowTo(&packed_, n * dim);
    active_.x = packed_.data();
    for (int64_t i = 0; i < n; ++i) {
      std::memcpy(active_.x + i * dim, hidden_.data() + active_.rows[i] * dim, row_bytes);
    }
  }
  GrowTo(&normed_, n * dim);
  GrowTo(&qkv_, n * config_.qkv_dim());
  GrowTo(&attended_, n * config_.q_dim());
  GrowTo(&gated_, n * config_.intermediate_size);
  for (int32_t l = begin; l < end; ++l) RunLayer(l, l + 1 == end);

  // Rows only ever moved to the front, so from the back nothing is overwritten before it is read.
  for (int64_t i = active_.n() - 1; i >= 0; --i) {
    float* to = hidden_.data() + active_.rows[i] * dim;
    if (to != active_.x + i * dim) std::memmove(to, active_.x + i * dim, row_bytes);
  }
  for (const DecoderSpan& span : batch.spans) {
    if (span.hidden_out < 0 || span.layer_end != end) continue;
    const auto rows = hidden_.begin() + span.row_begin * dim;
    saved_[static_cast<size_t>(span.hidden_out)].assign(rows, rows + span.num_rows * dim);
  }
}

void CpuDecoder::RunLayer(int32_t layer, bool last) {
  const LayerWeights& w = model_.weights.layer(layer);
  InputNorm(w);
  Qkv(w);
  QkNorm(w);
  Rope();
  KvWrite(layer);
  if (last) DropFinishedRows();
  if (active_.n() == 0) return;
  Attention(layer);
  AttentionOutput(w);
  PostNorm(w);
  GateUp(w);
  Down(w);
}

void CpuDecoder::Norm(const float* x, const std::vector<float>& weight, int64_t rows) {
  kernels::RmsNormParams p;
  p.x = x;
  p.weight = weight.data();
  p.y_bf16 = normed_.data();
  p.rows = rows;
  p.dim = config_.hidden_size;
  p.eps = config_.rms_norm_eps;
  Must(kernels::RmsNorm(p, pool_));
}

void CpuDecoder::InputNorm(const LayerWeights& w) { Norm(active_.x, w.input_norm, active_.n()); }

void CpuDecoder::Qkv(const LayerWeights& w) {
  kernels::LinearParams p;
  p.weights = &w.qkv;
  p.x = normed_.data();
  p.bias = OrNull(w.qkv_bias);
  p.y_f32 = qkv_.data();
  p.m = active_.n();
  p.output = LinearOutput::kFloat;
  Must(kernels::Linear(p, pool_));
}

void CpuDecoder::QkNorm(const LayerWeights& w) {
  if (!config_.qk_norm) return;
  for (int64_t i = 0; i < active_.n(); ++i) {
    kernels::RmsNormParams p;
    p.dim = config_.head_dim;
    p.eps = config_.rms_norm_eps;
    p.x = p.y_f32 = qkv_.data() + i * config_.qkv_dim();
    p.weight = w.q_norm.data();
    p.rows = config_.num_heads;
    Must(kernels::RmsNorm(p, pool_));
    p.x = p.y_f32 = p.y_f32 + config_.q_dim();
    p.weight = w.k_norm.data();
    p.rows = config_.num_kv_heads;
    Must(kernels::RmsNorm(p, pool_));
  }
}

// The heads of q and k lie side by side and turn alike.
void CpuDecoder::Rope() {
  kernels::RopeParams p;
  p.table = &rope_;
  p.x = qkv_.data();
  p.positions = active_.positions.data();
  p.rows = active_.n();
  p.num_heads = config_.num_heads + config_.num_kv_heads;
  p.head_dim = config_.head_dim;
  p.x_stride = config_.qkv_dim();
  Must(kernels::Rope(p, pool_));
}

void CpuDecoder::KvWrite(int32_t layer) {
  kernels::StoreKvParams p;
  p.shape = kv_.shape();
  p.k_cache = kv_.k(layer);
  p.v_cache = kv_.v(layer);
  p.k = qkv_.data() + config_.q_dim();
  p.v = p.k + config_.kv_dim();
  p.slots = active_.slots.data();
  p.rows = active_.n();
  p.k_stride = p.v_stride = config_.qkv_dim();
  Must(kernels::StoreKv(p, pool_));
}

// Behind the KV of its last layer, a row whose output nobody wants is done: a prompt's rows but the
// last. The others move to the front; a shorter span with a longer context sees the same keys.
void CpuDecoder::DropFinishedRows() {
  int64_t wanted = 0;
  for (int32_t tail : active_.tails) wanted += tail;
  if (wanted == active_.n()) return;
  const int64_t dim = config_.hidden_size;
  const int64_t width = config_.qkv_dim();
  int32_t to = 0;
  size_t kept = 0;
  for (size_t s = 0; s < active_.spans.size(); ++s) {
    kernels::AttentionSpan span = active_.spans[s];
    const int32_t dropped = span.num_rows - active_.tails[s];
    if (active_.tails[s] == 0) continue;
    for (int32_t r = dropped; r < span.num_rows; ++r) {
      const int32_t from = span.row_begin + r;
      const int32_t at = to + r - dropped;
      active_.rows[at] = active_.rows[from];
      if (at == from) continue;
      std::copy_n(active_.x + from * dim, dim, active_.x + at * dim);
      std::copy_n(qkv_.begin() + from * width, config_.q_dim(), qkv_.begin() + at * width);
    }
    span.context_len += dropped;
    span.num_rows -= dropped;
    span.row_begin = to;
    to += span.num_rows;
    active_.spans[kept++] = span;
  }
  active_.spans.resize(kept);
  active_.rows.resize(static_cast<size_t>(to));
}

void CpuDecoder::Attention(int32_t layer) {
  kernels::AttentionParams p;
  p.kv = kv_.shape();
  p.k_cache = kv_.k(layer);
  p.v_cache = kv_.v(layer);
  p.q = qkv_.data();
  p.out = attended_.data();
  p.spans = active_.spans.data();
  p.num_spans = static_cast<int32_t>(active_.spans.size());
  p.num_heads = config_.num_heads;
  p.q_stride = config_.qkv_dim();
  p.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  p.window = config_.sliding_window;
  Must(kernels::Attention(p, pool_));
}

void CpuDecoder::AttentionOutput(const LayerWeights& w) {
  kernels::LinearParams p;
  p.weights = &w.o;
  p.x = attended_.data();
  p.bias = OrNull(w.o_bias);
  p.y_f32 = active_.x;
  p.m = active_.n();
  p.output = LinearOutput::kAddFloat;
  Must(kernels::Linear(p, pool_));
}

void CpuDecoder::PostNorm(const LayerWeights& w) { Norm(active_.x, w.post_norm, active_.n()); }

void CpuDecoder::GateUp(const LayerWeights& w) {
  kernels::LinearParams p;
  p.weights = &w.gate_up;
  p.x = normed_.data();
  p.y_bf16 = gated_.data();
  p.m = active_.n();
  p.n = config_.intermediate_size;
  p.output = LinearOutput::kSwiGlu;
  Must(kernels::Linear(p, pool_));
}

void CpuDecoder::Down(const LayerWeights& w) {
  kernels::LinearParams p;
  p.weights = &w.down;
  p.x = gated_.data();
  p.y_f32 = active_.x;
  p.m = active_.n();
  p.output = LinearOutput::kAddFloat;
  Must(kernels::Linear(p, pool_));
}

// --- Head ---

void CpuDecoder::Head(std::span<const int32_t> rows, float* logits) {
  const int64_t dim = config_.hidden_size;
  const int64_t n = static_cast<int64_t>(rows.size());
  GrowTo(&packed_, n * dim);
  GrowTo(&normed_, n * dim);
  for (int64_t i = 0; i < n; ++i) {
    std::copy_n(hidden_.begin() + rows[static_cast<size_t>(i)] * dim, dim,
                packed_.begin() + i * dim);
  }
  Norm(packed_.data(), model_.weights.final_norm(), n);
  kernels::LinearParams p;
  p.weights = &model_.weights.head();
  p.x = normed_.data();
  p.y_f32 = logits;
  p.m = n;
  p.output = LinearOutput::kFloat;
  Must(kernels::Linear(p, pool_));
}

}  // namespace paceline

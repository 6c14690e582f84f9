#include "worker/model/cuda_decoder_cuda.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cpu/rope.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/rows.h"
#include "worker/model/rope_config.h"

namespace paceline {
namespace {

using kernels::Bf16;
using kernels::CudaLinearOutput;
using kernels::CudaLinearParams;

// Bytes per row of each of the buffers, in the order of Allocate.
struct RowBytes {
  explicit RowBytes(const ModelConfig& c)
      : hidden(int64_t{4} * c.hidden_size),
        normed(int64_t{2} * c.hidden_size),
        qkv(int64_t{4} * c.qkv_dim()),
        q(int64_t{2} * c.q_dim()),
        gated(int64_t{2} * c.intermediate_size) {}
  int64_t total() const { return 3 * hidden + normed + qkv + 3 * q + gated; }
  int64_t hidden, normed, qkv, q, gated;
};

int64_t UnitElements(const ModelConfig& c) {
  return int64_t{c.num_kv_heads} * kernels::kAttentionUnit * c.head_dim;
}
int32_t UnitsIn(const ModelConfig& c, int64_t bytes) {
  return static_cast<int32_t>(std::min<int64_t>(bytes / (4 * UnitElements(c)), 1 << 20));
}
int64_t StatsBytes(const ModelConfig& c, int32_t units) {
  return int64_t{units} * c.num_kv_heads * kernels::kAttentionUnit * 2 * 4;
}

constexpr int64_t kStagingBytes = int64_t{1} << 20;
constexpr int32_t kMaxMaskedRows = 32;  // of a span of a shape: a word of mask per row

}  // namespace

int64_t CudaDecoder::WorkspaceBytes(const ModelConfig& config, const CudaDecoderOptions& o) {
  const int32_t units = UnitsIn(config, o.partial_bytes);
  return RowBytes(config).total() * o.max_rows + units * UnitElements(config) * 4 +
         StatsBytes(config, units) + int64_t{4} * o.max_position * config.head_dim + kStagingBytes;
}

absl::StatusOr<std::unique_ptr<CudaDecoder>> CudaDecoder::Create(
    const CudaModel& model, KvPoolCuda& kv, cudaStream_t stream,
    const CudaDecoderOptions& options) {
  std::unique_ptr<CudaDecoder> decoder(new CudaDecoder(model, kv, stream, options));
  RETURN_IF_ERROR(decoder->Allocate(options.max_rows));
  const int64_t units = decoder->max_units_;
  RETURN_IF_ERROR(decoder->partials_.GrowTo(units * UnitElements(model.config) * 4,
                                            "attention's partial results"));
  RETURN_IF_ERROR(decoder->partial_stats_.GrowTo(StatsBytes(model.config, decoder->max_units_),
                                                 "attention's partial results"));
  RETURN_IF_ERROR(decoder->staging_.Reserve(kStagingBytes));
  RETURN_IF_ERROR(decoder->UploadRopeTable());
  return decoder;
}

CudaDecoder::CudaDecoder(const CudaModel& model, KvPoolCuda& kv, cudaStream_t stream,
                         const CudaDecoderOptions& options)
    : model_(model),
      config_(model.config),
      kv_(kv),
      stream_(stream),
      options_(options),
      max_units_(UnitsIn(model.config, options.partial_bytes)),
      saved_(static_cast<size_t>(options.num_hidden_slots)) {}

absl::Status CudaDecoder::Allocate(int32_t rows) {
  const RowBytes bytes(config_);
  constexpr char kWhat[] = "the workspace (--max-batch-tokens)";
  for (DeviceMemory* memory : {&hidden_, &packed_, &tail_}) {
    RETURN_IF_ERROR(memory->GrowTo(bytes.hidden * rows, kWhat));
  }
  for (DeviceMemory* memory : {&q_, &tail_q_, &attended_}) {
    RETURN_IF_ERROR(memory->GrowTo(bytes.q * rows, kWhat));
  }
  RETURN_IF_ERROR(normed_.GrowTo(bytes.normed * rows, kWhat));
  RETURN_IF_ERROR(qkv_.GrowTo(bytes.qkv * rows, kWhat));
  return gated_.GrowTo(bytes.gated * rows, kWhat);
}

absl::Status CudaDecoder::UploadRopeTable() {
  const kernels::RopeTable table(RopeConfigOf(config_), options_.max_position);
  const int64_t bytes = int64_t{4} * options_.max_position * config_.head_dim;
  RETURN_IF_ERROR(rope_.GrowTo(bytes, "the rope table (--max-context)"));
  RETURN_IF_ERROR(CudaStatus(cudaMemcpy(rope_.as<float>(), table.row(0), static_cast<size_t>(bytes),
                                        cudaMemcpyHostToDevice),
                             "upload of the rope table"));
  // From pageable memory, and not on the decoder's stream: it must have landed before that runs.
  return CudaStatus(cudaDeviceSynchronize(), "upload of the rope table");
}

// --- A step's arrays ---

int32_t CountBucket(int32_t count) {
  int32_t step = 1;
  while (count > 8 * step) step *= 2;  // of the octave (4 step, 8 step]
  if (count > 2 && step == 1) step = 2;
  return (count + step - 1) / step * step;
}

// Every row runs through all layers and its output is wanted; few rows in all and in each span.
bool CudaDecoder::CanPad(const DecoderBatch& batch) const {
  const int32_t rows = CountBucket(static_cast<int32_t>(batch.tokens.size()));
  if (rows == 0 || rows > std::min(kMaxShapeRows, options_.max_rows)) return false;
  const int32_t group = config_.num_heads / config_.num_kv_heads;
  return std::ranges::all_of(batch.spans, [&](const DecoderSpan& span) {
    return span.layer_begin == 0 && span.layer_end == config_.num_layers && span.hidden_in < 0 &&
           span.hidden_out < 0 && span.num_rows <= kMaxMaskedRows &&
           span.num_rows * group <= kernels::kMediumItemQueries &&
           (span.parents != nullptr || span.tail_rows == span.num_rows);
  });
}

void CudaDecoder::Stage(const DecoderBatch& batch) {
  staging_.Clear();
  segments_.clear();
  std::vector<int32_t> tokens = batch.tokens;
  tokens.resize(static_cast<size_t>(rows_), 0);
  tokens_ = staging_.Add(tokens);
  const std::vector<int32_t> tables = ListTables(batch);
  // Between two borders of layer ranges the set of active spans is constant.
  std::vector<int32_t> borders;
  for (const DecoderSpan& span : batch.spans) {
    borders.push_back(span.layer_begin);
    borders.push_back(span.layer_end);
  }
  std::ranges::sort(borders);
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  for (size_t i = 0; i + 1 < borders.size(); ++i) {
    segments_.push_back(StageSegment(batch, borders[i], borders[i + 1]));
  }
  tables_ = staging_.Add(tables);  // last: its length is no part of a shape
}

// The part of each span's table that its rows reach.
std::vector<int32_t> CudaDecoder::ListTables(const DecoderBatch& batch) {
  const int32_t block = kv_.shape().block_size;
  std::vector<int32_t> tables;
  table_begin_.clear();
  for (const DecoderSpan& span : batch.spans) {
    table_begin_.push_back(static_cast<int32_t>(tables.size()));
    const int32_t blocks = (span.context_len + span.num_rows + block - 1) / block;
    tables.insert(tables.end(), span.block_table, span.block_table + blocks);
  }
  return tables;
}

CudaDecoder::Segment CudaDecoder::StageSegment(const DecoderBatch& batch, int32_t begin,
                                               int32_t end) {
  const int32_t block = kv_.shape().block_size;
  std::vector<kernels::AttentionSpanInput> inputs, tail_inputs;
  std::vector<int32_t> rows, positions, tail_from, tail_rows;
  std::vector<int64_t> slots;
  for (size_t s = 0; s < batch.spans.size(); ++s) {
    const DecoderSpan& span = batch.spans[s];
    if (span.layer_begin > begin || span.layer_end < end || span.num_rows == 0) continue;
    const auto first = static_cast<int32_t>(rows.size());
    inputs.push_back({.table_begin = table_begin_[s],
                      .context_len = span.context_len,
                      .row_begin = first,
                      .num_rows = span.num_rows,
                      .parents = span.parents});
    for (int32_t r = 0; r < span.num_rows; ++r) {
      const int32_t row = span.row_begin + r;
      const int32_t index = span.context_len + r;
      rows.push_back(row);
      positions.push_back(batch.positions[static_cast<size_t>(row)]);
      slots.push_back(int64_t{span.block_table[index / block]} * block + index % block);
    }
    // Behind the KV of its last layer, a row whose output nobody wants is done. The others see the
    // same keys as a shorter span with a longer context.
    const bool ends = span.layer_end == end && span.hidden_out < 0 && span.parents == nullptr;
    const int32_t dropped = ends ? span.num_rows - span.tail_rows : 0;
    if (dropped == span.num_rows) continue;
    tail_inputs.push_back({.table_begin = table_begin_[s],
                           .context_len = span.context_len + dropped,
                           .row_begin = static_cast<int32_t>(tail_rows.size()),
                           .num_rows = span.num_rows - dropped,
                           .parents = span.parents});
    for (int32_t r = dropped; r < span.num_rows; ++r) {
      tail_from.push_back(first + r);
      tail_rows.push_back(span.row_begin + r);
    }
  }
  Segment segment;
  segment.begin = begin;
  segment.end = end;
  segment.all = rows.size() == batch.tokens.size();
  segment.num_tail = static_cast<int32_t>(tail_rows.size());
  segment.drops = tail_rows.size() < rows.size();
  if (segment.all) {  // rows that pad
    rows.resize(static_cast<size_t>(rows_), 0);
    positions.resize(static_cast<size_t>(rows_), 0);
    slots.resize(static_cast<size_t>(rows_), -1);
  }
  segment.n = static_cast<int32_t>(rows.size());
  segment.rows = staging_.Add(rows);
  segment.positions = staging_.Add(positions);
  segment.slots = staging_.Add(slots);
  segment.attention = StageAttention(inputs);
  if (segment.drops) {
    segment.tail_from = staging_.Add(tail_from);
    segment.tail_rows = staging_.Add(tail_rows);
    segment.tail_attention = StageAttention(tail_inputs);
  }
  return segment;
}

CudaDecoder::AttentionArrays CudaDecoder::StageAttention(
    const std::vector<kernels::AttentionSpanInput>& inputs) {
  plan_.Clear();
  kernels::PlanAttention(inputs,
                         {.num_heads = config_.num_heads,
                          .kv_heads = config_.num_kv_heads,
                          .head_dim = config_.head_dim,
                          .window = config_.sliding_window,
                          .max_units = max_units_},
                         &plan_);
  if (shape_.has_value()) PadAttention();
  AttentionArrays a;
  a.spans = staging_.Add(plan_.spans);
  a.visible = staging_.Add(plan_.visible);
  a.masks = staging_.Add(plan_.masks);
  a.small = staging_.Add(plan_.small_items);
  a.medium = staging_.Add(plan_.medium_items);
  a.large = staging_.Add(plan_.large_items);
  a.splits = staging_.Add(plan_.splits);
  a.num_small = static_cast<int32_t>(plan_.small_items.size());
  a.num_medium = static_cast<int32_t>(plan_.medium_items.size());
  a.num_large = static_cast<int32_t>(plan_.large_items.size());
  a.num_splits = static_cast<int32_t>(plan_.splits.size());
  return a;
}

// Work of a span without rows is no work.
void CudaDecoder::PadAttention() {
  if (!plan_.large_items.empty()) {  // their number follows from the lengths: no shape
    shape_.reset();
    return;
  }
  const auto pad = [](auto& list, auto value) {
    const int32_t count = CountBucket(static_cast<int32_t>(list.size()));
    list.resize(static_cast<size_t>(count), value);
    return count;
  };
  const int32_t empty = shape_->rows;  // no batch has more spans than rows
  shape_->small_items = pad(plan_.small_items, kernels::CudaAttentionItem{.span = empty});
  shape_->medium_items = pad(plan_.medium_items, kernels::CudaAttentionItem{.span = empty});
  shape_->splits = pad(plan_.splits, kernels::CudaAttentionSplit{.span = empty});
  plan_.spans.resize(static_cast<size_t>(empty) + 1);
  plan_.visible.resize(static_cast<size_t>(empty), 1);
  CHECK(static_cast<int32_t>(plan_.masks.size()) <= empty);
  plan_.masks.resize(static_cast<size_t>(empty), 0);
}

// --- Embed and layers ---

absl::Status CudaDecoder::Prepare(const DecoderBatch& batch, bool pad) {
  batch_ = &batch;
  rows_ = static_cast<int32_t>(batch.tokens.size());
  shape_.reset();
  if (pad && CanPad(batch)) {
    rows_ = CountBucket(rows_);
    shape_.emplace().rows = rows_;
  }
  RETURN_IF_ERROR(Allocate(rows_));
  Stage(batch);
  return staging_.Upload(stream_);
}

absl::Status CudaDecoder::Enqueue() {
  RETURN_IF_ERROR(Embed());
  for (const Segment& segment : segments_) RETURN_IF_ERROR(RunSegment(segment));
  return absl::OkStatus();
}

absl::Status CudaDecoder::Run(const DecoderBatch& batch) {
  RETURN_IF_ERROR(Prepare(batch, false));
  return Enqueue();
}

int64_t CudaDecoder::bytes() const {
  int64_t total = staging_.bytes();
  for (const DeviceMemory* memory :
       {&hidden_, &packed_, &tail_, &normed_, &qkv_, &q_, &tail_q_, &attended_, &gated_}) {
    total += memory->bytes();
  }
  return total;
}

absl::Status CudaDecoder::Embed() {
  kernels::CudaEmbedParams p;
  p.table = model_.weights.embedding;
  p.ids = staging_.At<int32_t>(tokens_);
  p.y = hidden_.as<float>();
  p.rows = rows_;
  p.dim = config_.hidden_size;
  RETURN_IF_ERROR(CudaStatus(kernels::CudaEmbed(p, stream_), "Embed"));
  for (const DecoderSpan& span : batch_->spans) {
    if (span.hidden_in < 0) continue;
    const SavedHidden& saved = saved_[static_cast<size_t>(span.hidden_in)];
    CHECK_EQ(saved.rows, span.num_rows);
    RETURN_IF_ERROR(MoveRows(saved.memory.as<float>(),
                             p.y + int64_t{span.row_begin} * config_.hidden_size, nullptr, nullptr,
                             span.num_rows, config_.hidden_size));
  }
  return absl::OkStatus();
}

absl::Status CudaDecoder::RunSegment(const Segment& segment) {
  if (segment.n == 0) return absl::OkStatus();
  const int32_t dim = config_.hidden_size;
  float* const hidden = hidden_.as<float>();
  const int32_t* rows = staging_.At<int32_t>(segment.rows);
  active_.n = segment.n;
  active_.x = segment.all ? hidden : packed_.as<float>();
  active_.q = q_.as<Bf16>();
  active_.attention = &segment.attention;
  if (!segment.all) RETURN_IF_ERROR(MoveRows(hidden, active_.x, rows, nullptr, segment.n, dim));
  for (int32_t l = segment.begin; l < segment.end; ++l) {
    RETURN_IF_ERROR(RunLayer(segment, l, l + 1 == segment.end));
  }
  if (segment.drops) rows = staging_.At<int32_t>(segment.tail_rows);
  if (active_.x != hidden) {
    RETURN_IF_ERROR(MoveRows(active_.x, hidden, nullptr, rows, active_.n, dim));
  }
  return SaveHidden(segment.end);
}

absl::Status CudaDecoder::SaveHidden(int32_t end) {
  for (const DecoderSpan& span : batch_->spans) {
    if (span.hidden_out < 0 || span.layer_end != end) continue;
    SavedHidden& saved = saved_[static_cast<size_t>(span.hidden_out)];
    const int32_t dim = config_.hidden_size;
    RETURN_IF_ERROR(saved.memory.GrowTo(int64_t{4} * span.num_rows * dim, "a saved-hidden slot"));
    saved.rows = span.num_rows;
    RETURN_IF_ERROR(MoveRows(hidden_.as<float>() + int64_t{span.row_begin} * dim,
                             saved.memory.as<float>(), nullptr, nullptr, span.num_rows, dim));
  }
  return absl::OkStatus();
}

absl::Status CudaDecoder::RunLayer(const Segment& segment, int32_t layer, bool last) {
  const CudaLayerWeights& w = model_.weights.layers[static_cast<size_t>(layer)];
  RETURN_IF_ERROR(InputNorm(w));
  RETURN_IF_ERROR(Qkv(w));
  RETURN_IF_ERROR(QkNormRopeKvWrite(segment, w, layer));
  if (last && segment.drops) RETURN_IF_ERROR(DropFinishedRows(segment));
  if (active_.n == 0) return absl::OkStatus();
  RETURN_IF_ERROR(Attention(layer));
  RETURN_IF_ERROR(AttentionOutput(w));
  RETURN_IF_ERROR(PostNorm(w));
  RETURN_IF_ERROR(GateUp(w));
  return Down(w);
}

absl::Status CudaDecoder::InputNorm(const CudaLayerWeights& w) {
  return Norm(active_.x, nullptr, w.input_norm, active_.n, "InputNorm");
}

absl::Status CudaDecoder::Qkv(const CudaLayerWeights& w) {
  return Linear({.w = w.qkv,
                 .x = normed_.as<Bf16>(),
                 .bias = w.qkv_bias,
                 .y_f32 = qkv_.as<float>(),
                 .m = active_.n,
                 .n = config_.qkv_dim(),
                 .k = config_.hidden_size,
                 .output = CudaLinearOutput::kFloat},
                "Qkv");
}

absl::Status CudaDecoder::QkNormRopeKvWrite(const Segment& segment, const CudaLayerWeights& w,
                                            int32_t layer) {
  kernels::CudaRopeKvParams p;
  p.shape = kv_.shape();
  p.k_cache = kv_.k(layer);
  p.v_cache = kv_.v(layer);
  p.qkv = qkv_.as<float>();
  p.q = q_.as<Bf16>();
  p.cos_sin = rope_.as<float>();
  p.positions = staging_.At<int32_t>(segment.positions);
  p.slots = staging_.At<int64_t>(segment.slots);
  p.q_norm = w.q_norm;
  p.k_norm = w.k_norm;
  p.eps = config_.rms_norm_eps;
  p.rows = active_.n;
  p.num_heads = config_.num_heads;
  return CudaStatus(kernels::CudaRopeKv(p, stream_), "QkNorm, Rope and KvWrite");
}

// The rows that go on move to buffers of their own.
absl::Status CudaDecoder::DropFinishedRows(const Segment& segment) {
  const int32_t* from = staging_.At<int32_t>(segment.tail_from);
  const float* x = active_.x;
  active_.n = segment.num_tail;
  active_.x = tail_.as<float>();
  active_.q = tail_q_.as<Bf16>();
  active_.attention = &segment.tail_attention;
  RETURN_IF_ERROR(MoveRows(x, active_.x, from, nullptr, active_.n, config_.hidden_size));
  // Pairs of bf16 travel as floats.
  return MoveRows(q_.as<float>(), tail_q_.as<float>(), from, nullptr, active_.n,
                  config_.q_dim() / 2);
}

absl::Status CudaDecoder::Attention(int32_t layer) {
  const AttentionArrays& a = *active_.attention;
  kernels::CudaAttentionParams p;
  p.shape = kv_.shape();
  p.k_cache = kv_.k(layer);
  p.v_cache = kv_.v(layer);
  p.q = active_.q;
  p.out = attended_.as<Bf16>();
  p.block_tables = staging_.At<int32_t>(tables_);
  p.spans = staging_.At<kernels::CudaAttentionSpan>(a.spans);
  p.visible = staging_.At<int32_t>(a.visible);
  p.masks = staging_.At<uint32_t>(a.masks);
  p.small_items = staging_.At<kernels::CudaAttentionItem>(a.small);
  p.medium_items = staging_.At<kernels::CudaAttentionItem>(a.medium);
  p.large_items = staging_.At<kernels::CudaAttentionItem>(a.large);
  p.splits = staging_.At<kernels::CudaAttentionSplit>(a.splits);
  p.num_small_items = a.num_small;
  p.num_medium_items = a.num_medium;
  p.num_large_items = a.num_large;
  p.num_splits = a.num_splits;
  p.partials = partials_.as<float>();
  p.partial_stats = partial_stats_.as<float>();
  p.num_heads = config_.num_heads;
  p.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  p.window = config_.sliding_window;
  return CudaStatus(kernels::CudaAttention(p, stream_), "Attention");
}

absl::Status CudaDecoder::AttentionOutput(const CudaLayerWeights& w) {
  return Linear({.w = w.o,
                 .x = attended_.as<Bf16>(),
                 .bias = w.o_bias,
                 .y_f32 = active_.x,
                 .m = active_.n,
                 .n = config_.hidden_size,
                 .k = config_.q_dim(),
                 .output = CudaLinearOutput::kAddFloat},
                "AttentionOutput");
}

absl::Status CudaDecoder::PostNorm(const CudaLayerWeights& w) {
  return Norm(active_.x, nullptr, w.post_norm, active_.n, "PostNorm");
}

absl::Status CudaDecoder::GateUp(const CudaLayerWeights& w) {
  return Linear({.w = w.gate_up,
                 .x = normed_.as<Bf16>(),
                 .y_bf16 = gated_.as<Bf16>(),
                 .m = active_.n,
                 .n = 2 * config_.intermediate_size,
                 .k = config_.hidden_size,
                 .output = CudaLinearOutput::kSwiGlu},
                "GateUp");
}

absl::Status CudaDecoder::Down(const CudaLayerWeights& w) {
  return Linear({.w = w.down,
                 .x = gated_.as<Bf16>(),
                 .y_f32 = active_.x,
                 .m = active_.n,
                 .n = config_.hidden_size,
                 .k = config_.intermediate_size,
                 .output = CudaLinearOutput::kAddFloat},
                "Down");
}

// --- Head ---

absl::Status CudaDecoder::Head(const int32_t* rows, int32_t n, float* logits) {
  RETURN_IF_ERROR(Norm(hidden_.as<float>(), rows, model_.weights.final_norm, n, "FinalNorm"));
  return Linear({.w = model_.weights.head,
                 .x = normed_.as<Bf16>(),
                 .y_f32 = logits,
                 .m = n,
                 .n = config_.vocab_size,
                 .k = config_.hidden_size,
                 .output = CudaLinearOutput::kFloat},
                "Logits");
}

// --- Launches ---

absl::Status CudaDecoder::Norm(const float* x, const int32_t* from, const float* weight, int32_t n,
                               const char* stage) {
  kernels::CudaRmsNormParams p;
  p.x = x;
  p.from = from;
  p.weight = weight;
  p.y = normed_.as<Bf16>();
  p.rows = n;
  p.dim = config_.hidden_size;
  p.eps = config_.rms_norm_eps;
  return CudaStatus(kernels::CudaRmsNorm(p, stream_), stage);
}

absl::Status CudaDecoder::Linear(const CudaLinearParams& p, const char* stage) {
  return CudaStatus(kernels::CudaLinear(p, stream_), stage);
}

absl::Status CudaDecoder::MoveRows(const float* x, float* y, const int32_t* from, const int32_t* to,
                                   int32_t rows, int32_t dim) {
  return CudaStatus(kernels::CudaMoveRows({x, y, from, to, rows, dim}, stream_), "MoveRows");
}

}  // namespace paceline

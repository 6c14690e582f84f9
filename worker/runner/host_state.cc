#include "worker/runner/host_state.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/runner/accept.h"

namespace paceline {

void HostState::KvMoves::Clear() {
  copies.clear();
  group_begin.assign(1, 0);
}

void HostState::KvMoves::EndGroup() {
  const auto end = static_cast<int32_t>(copies.size());
  if (group_begin.back() != end) group_begin.push_back(end);
}

HostState::HostState(std::string backend, RunnerInfo info, int32_t num_hidden_slots)
    : backend_(std::move(backend)),
      info_(std::move(info)),
      limits_{.num_blocks = info_.num_blocks,
              .block_size = info_.block_size,
              .max_slots = info_.max_slots,
              .num_layers = info_.num_layers,
              .vocab_size = info_.vocab_size},
      num_hidden_slots_(num_hidden_slots),
      slots_(static_cast<size_t>(info_.max_slots)) {}

absl::Status HostState::FaultOf(const StepPlan& plan, const std::string& what) const {
  return absl::InternalError(absl::StrCat(backend_, ": ", what, "\n", DebugString(plan)));
}

absl::Status HostState::Fault(const std::string& what) const { return FaultOf(*plan_, what); }

// --- The rules of a plan ---

absl::Status HostState::CheckSpan(const Span& span) const {
  const int32_t layer_end = span.layer_end == 0 ? info_.num_layers : span.layer_end;
  if (span.layer_begin >= layer_end) return absl::InternalError("an empty layer range");
  if (span.layer_begin > 0 && span.hidden_in == kNone) {
    return absl::InternalError("a span starts above layer 0 without saved hidden rows");
  }
  for (int32_t slot : {span.hidden_in, span.hidden_out}) {
    if (slot < kNone || slot >= num_hidden_slots_) {
      return absl::InternalError(absl::StrCat("saved-hidden slot ", slot));
    }
  }
  return absl::OkStatus();
}

absl::Status HostState::CheckPlan(const StepPlan& plan) const {
  RETURN_IF_ERROR(ValidatePlan(plan, limits_));
  RETURN_IF_ERROR(CheckBinds(plan, info_));
  for (const KvCopy& copy : plan.copies) {
    if (std::min(copy.src, copy.dst) < 0 || std::max(copy.src, copy.dst) >= info_.num_blocks ||
        copy.num_slots < 0 || copy.num_slots > info_.block_size) {
      return absl::InternalError(absl::StrCat("copy of ", copy.num_slots, " slots from block ",
                                              copy.src, " to ", copy.dst));
    }
  }
  for (const Span& span : plan.spans) RETURN_IF_ERROR(CheckSpan(span));
  return absl::OkStatus();
}

absl::Status HostState::Check(const StepPlan& plan) const {
  const absl::Status checked = CheckPlan(plan);
  return checked.ok() ? checked : FaultOf(plan, std::string(checked.message()));
}

absl::Status HostState::Begin(const StepPlan& plan) {
  plan_ = &plan;
  for (const SlotBind& bind : plan.binds) {
    slots_[static_cast<size_t>(bind.slot)] = SlotState::FromBind(bind, info_);
  }
  auto step = ResolvePlan(plan, info_, slots_);
  if (!step.ok()) return Fault(std::string(step.status().message()));
  step_ = *std::move(step);
  ListDraws();
  return absl::OkStatus();
}

void HostState::BlockCopies(KvMoves* moves) const {
  for (const KvCopy& copy : plan_->copies) {
    moves->copies.push_back({.src = int64_t{copy.src} * info_.block_size,
                             .dst = int64_t{copy.dst} * info_.block_size,
                             .count = copy.num_slots});
  }
  moves->EndGroup();
}

absl::Status HostState::FillBatch(const std::function<int32_t(int32_t)>& saved_rows,
                                  DecoderBatch* batch) {
  const size_t rows = step_.rows.size();
  batch->spans.clear();
  batch->tokens.resize(rows);
  batch->positions.resize(rows);
  parents_.resize(rows);
  for (size_t r = 0; r < rows; ++r) {
    batch->tokens[r] = step_.rows[r].token;
    batch->positions[r] = step_.rows[r].position;
    parents_[r] = step_.rows[r].parent;
    if (step_.rows[r].position >= max_position()) {
      return Fault(absl::StrCat("position ", step_.rows[r].position, ", the model takes ",
                                info_.max_context));
    }
  }
  for (const ResolvedSpan& run : step_.spans) {
    if (run.num_rows == 0) continue;
    const Span& span = plan_->spans[static_cast<size_t>(run.span)];
    if (span.hidden_in != kNone && saved_rows(span.hidden_in) != run.num_rows) {
      return Fault(absl::StrCat("saved-hidden slot ", span.hidden_in, " holds ",
                                saved_rows(span.hidden_in), " rows"));
    }
    DecoderSpan& s = batch->spans.emplace_back();
    s.block_table = plan_->block_tables.data() + span.table_begin;
    s.context_len = run.context_len;
    s.row_begin = run.row_begin;
    s.num_rows = run.num_rows;
    if (span.mask == SpanMask::kTree && !span.from_slot) {
      s.parents = parents_.data() + run.row_begin;
    }
    s.layer_begin = span.layer_begin;
    s.layer_end = span.layer_end == 0 ? info_.num_layers : span.layer_end;
    s.hidden_in = span.hidden_in;
    s.hidden_out = span.hidden_out;
    if (run.sample_begin < run.sample_end) {
      const SampleRow& first = plan_->sample_rows[static_cast<size_t>(run.sample_begin)];
      s.tail_rows = std::max(0, run.num_rows - (first.row - span.row_begin));
    }
  }
  return absl::OkStatus();
}

// --- Sampling ---

void HostState::ListDraws() {
  draws_.clear();
  span_of_row_.resize(step_.rows.size());
  for (size_t i = 0; i < step_.spans.size(); ++i) {
    const ResolvedSpan& run = step_.spans[i];
    const Span& span = plan_->spans[static_cast<size_t>(run.span)];
    std::fill_n(span_of_row_.begin() + run.row_begin, run.num_rows, static_cast<int32_t>(i));
    for (int32_t s = run.sample_begin; s < run.sample_end; ++s) {
      const SampleRow& wanted = plan_->sample_rows[static_cast<size_t>(s)];
      const int32_t local = wanted.row - span.row_begin;
      if (local >= run.num_rows || slots_[static_cast<size_t>(wanted.slot)].ended) continue;
      draws_.push_back({.row = run.row_begin + local, .sample_row = s});
    }
  }
}

SlotId HostState::SlotOf(const Draw& draw) const {
  return plan_->sample_rows[static_cast<size_t>(draw.sample_row)].slot;
}

kernels::SampleParams HostState::ParamsOf(const Draw& draw, std::vector<int32_t>* path) const {
  const SampleRow& wanted = plan_->sample_rows[static_cast<size_t>(draw.sample_row)];
  const SlotState& slot = slots_[static_cast<size_t>(wanted.slot)];
  const SamplingParams& sampling = *slot.sampling;
  const ResolvedSpan& run =
      step_.spans[static_cast<size_t>(span_of_row_[static_cast<size_t>(draw.row)])];
  const Row& row = step_.rows[static_cast<size_t>(draw.row)];
  const auto known = static_cast<int32_t>(slot.tokens.size());

  path->clear();
  for (const Row* r = &row; r->position >= known;
       r = &step_.rows[static_cast<size_t>(run.row_begin + r->parent)]) {
    path->push_back(r->token);
    if (r->parent == kNone) break;
  }
  std::ranges::reverse(*path);

  kernels::SampleParams p;
  p.vocab_size = info_.vocab_size;
  p.seed = sampling.seed;
  p.sample = static_cast<uint32_t>(slot.sample);
  p.position = static_cast<uint32_t>(row.position + 1);
  p.temperature = sampling.temperature;
  p.top_k = sampling.top_k;
  p.top_p = sampling.top_p;
  p.min_p = sampling.min_p;
  p.repetition_penalty = sampling.repetition_penalty;
  p.presence_penalty = sampling.presence_penalty;
  p.frequency_penalty = sampling.frequency_penalty;
  p.history = slot.tokens.data();
  p.history_len = std::min(known, row.position + 1);
  p.prompt_len = slot.prompt_len;
  p.path = path->data();
  p.path_len = static_cast<int32_t>(path->size());
  p.logit_bias = sampling.logit_bias.data();
  p.num_logit_bias = static_cast<int32_t>(sampling.logit_bias.size());
  if (p.history_len + p.path_len - slot.prompt_len < sampling.min_tokens) {
    p.banned = slot.stop_ids.data();
    p.num_banned = static_cast<int32_t>(slot.stop_ids.size());
  }
  p.top_logprobs = sampling.top_logprobs;
  p.num_candidates = wanted.num_candidates;
  return p;
}

// --- What the host learns ---

StepResult HostState::Finish(std::span<kernels::SampleOutput> outputs, KvMoves* moves) {
  StepResult result;
  result.step = plan_->step;
  size_t draw = 0;
  for (const ResolvedSpan& run : step_.spans) EmitSpan(run, outputs, &draw, &result, moves);
  return result;
}

// `draw` is the first draw of the span; it is moved behind the last.
void HostState::EmitSpan(const ResolvedSpan& run, std::span<kernels::SampleOutput> outputs,
                         size_t* draw, StepResult* result, KvMoves* moves) {
  const Span& span = plan_->spans[static_cast<size_t>(run.span)];
  const auto add = [&](SlotId slot) -> SlotResult& {
    SlotResult& added = result->slots.emplace_back();
    added.slot = slot;
    added.span = run.span;
    added.context_len = run.context_len;
    added.rows_run = run.num_rows;
    added.ended = slots_[static_cast<size_t>(slot)].ended;
    return added;
  };
  if (run.sample_begin == run.sample_end) {
    add(span.slot);
    return;
  }
  if (span.accept) {
    SlotResult& added = add(span.slot);
    const auto rows = static_cast<size_t>(run.num_rows);
    if (rows > 0) EmitAccepted(run, outputs.subspan(*draw, rows), &added, moves);
    *draw += rows;
    return;
  }
  for (int32_t s = run.sample_begin; s < run.sample_end; ++s) {
    SlotResult& added = add(plan_->sample_rows[static_cast<size_t>(s)].slot);
    if (*draw >= draws_.size() || draws_[*draw].sample_row != s) continue;  // did not run
    SlotState& slot = slots_[static_cast<size_t>(added.slot)];
    kernels::SampleOutput& output = outputs[*draw];
    Emit(&slot, &output, &added);
    if (!output.candidates.empty()) added.candidates.push_back(std::move(output.candidates));
    slot.last_accepted = 0;
    ++*draw;
  }
}

void HostState::EmitAccepted(const ResolvedSpan& run, std::span<kernels::SampleOutput> outputs,
                             SlotResult* result, KvMoves* moves) {
  SlotState& slot = slots_[static_cast<size_t>(result->slot)];
  const std::span<const Row> rows(step_.rows.data() + run.row_begin,
                                  static_cast<size_t>(run.num_rows));
  std::vector<TokenId> sampled;
  for (kernels::SampleOutput& output : outputs) {
    sampled.push_back(std::max(output.token, 0));
    if (!output.candidates.empty()) result->candidates.push_back(std::move(output.candidates));
  }
  const int32_t emitted = slot.num_emitted();
  const AcceptPath path = Accept(rows, sampled, [&](TokenId token, int32_t index) {
    return slot.Ends(token, emitted + index);
  });
  const Span& span = plan_->spans[static_cast<size_t>(run.span)];
  const auto kv_slot = [&](int32_t index) {
    const BlockId block =
        plan_->block_tables[static_cast<size_t>(span.table_begin + index / info_.block_size)];
    return int64_t{block} * info_.block_size + index % info_.block_size;
  };
  for (size_t k = 0; k < path.rows.size(); ++k) {
    Emit(&slot, &outputs[static_cast<size_t>(path.rows[k])], result);
    if (path.rows[k] == static_cast<int32_t>(k)) continue;
    moves->copies.push_back({.src = kv_slot(run.context_len + path.rows[k]),
                             .dst = kv_slot(run.context_len + static_cast<int32_t>(k))});
  }
  moves->EndGroup();
  result->drafted = run.num_rows - 1;
  result->accepted = static_cast<int32_t>(path.rows.size()) - 1;
  slot.last_accepted = result->accepted;
}

// Where everything was masked the lowest id stands in: one request's nonsense fails nobody.
void HostState::Emit(SlotState* slot, kernels::SampleOutput* output, SlotResult* result) {
  const TokenId token = std::max(output->token, 0);
  const int32_t index = slot->num_emitted();
  slot->tokens.push_back(token);
  slot->ended = slot->Ends(token, index);
  result->tokens.push_back(token);
  result->ended = slot->ended;
  if (slot->sampling->top_logprobs < 0) return;
  result->logprobs.push_back(output->logprob);
  result->top_logprobs.push_back(std::move(output->top_logprobs));
}

}  // namespace paceline

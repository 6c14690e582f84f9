#include "worker/runner/cpu_runner.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/runner/accept.h"

namespace paceline {
namespace {

// Grows with every change of a CPU kernel that changes bits.
constexpr int kCpuKernelBuild = 1;
constexpr size_t kMaxInFlight = 2;
// Draft rows may lie beyond the last position that can be emitted.
constexpr int32_t kPositionSlack = 1024;
// Rows whose logits are held at once.
constexpr size_t kHeadGroup = 64;

absl::Status Fault(const StepPlan& plan, const std::string& what) {
  return absl::InternalError(absl::StrCat("CPU runner: ", what, "\n", DebugString(plan)));
}

absl::Status OutOfRange(const char* option, int64_t value, const std::string& limit) {
  return absl::InvalidArgumentError(
      absl::StrCat("CPU runner: ", option, " is ", value, "; it must be ", limit));
}

int32_t NumThreads(const CpuRunnerOptions& options) {
  if (options.threads > 0) return options.threads;
  return std::max(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
}

absl::Status CheckOptions(const ModelConfig& config, const CpuRunnerOptions& o) {
  if (o.threads < 0 || o.threads > 1024) return OutOfRange("threads", o.threads, "in [0, 1024]");
  if (o.block_size != 16 && o.block_size != 32 && o.block_size != 64) {
    return OutOfRange("block_size", o.block_size, "16, 32 or 64");
  }
  if (o.max_slots < 1 || o.max_slots > 65536) {
    return OutOfRange("max_slots", o.max_slots, "in [1, 65536]");
  }
  if (o.num_blocks < 0) return OutOfRange("num_blocks", o.num_blocks, "at least 0");
  if (o.max_hidden_slots < 0) {
    return OutOfRange("max_hidden_slots", o.max_hidden_slots, "at least 0");
  }
  if (o.max_context < 0 || o.max_context > config.max_context) {
    return OutOfRange("max_context", o.max_context,
                      absl::StrCat("in [0, ", config.max_context, "], the model's"));
  }
  if (o.synthetic_acceptance < 0 || (o.synthetic_acceptance > 0 && config.vocab_size < 128)) {
    return OutOfRange("synthetic_acceptance", static_cast<int64_t>(o.synthetic_acceptance),
                      "at least 0, with a vocabulary of at least 128");
  }
  if (o.isa.has_value() && !kernels::IsaSupported(*o.isa)) {
    return absl::InvalidArgumentError(
        absl::StrCat("CPU runner: this machine lacks ", kernels::IsaName(*o.isa)));
  }
  return absl::OkStatus();
}

absl::StatusOr<kernels::KvShape> PoolShape(const ModelConfig& config, const CpuRunnerOptions& o) {
  kernels::KvShape shape;
  shape.block_size = o.block_size;
  shape.kv_heads = config.num_kv_heads;
  shape.head_dim = config.head_dim;
  const int64_t block = KvPoolCpu::BlockBytes(shape, config.num_layers);
  const int64_t blocks = o.num_blocks > 0 ? o.num_blocks : o.kv_bytes / block;
  if (blocks < 1) {
    return OutOfRange("kv_bytes", o.kv_bytes, absl::StrCat("at least one block, ", block));
  }
  shape.num_blocks = static_cast<int32_t>(std::min<int64_t>(blocks, int64_t{1} << 24));
  return shape;
}

RunnerInfo InfoOf(const CpuModel& model, const CpuRunnerOptions& o, int32_t num_blocks) {
  RunnerInfo info;
  info.num_layers = model.config.num_layers;
  info.vocab_size = model.config.vocab_size;
  info.max_context = o.max_context > 0 ? o.max_context : model.config.max_context;
  info.num_blocks = num_blocks;
  info.block_size = o.block_size;
  info.max_slots = o.max_slots;
  info.eos_token_ids = model.config.eos_token_ids;
  info.model_fingerprint = model.fingerprint;
  info.numerics_fingerprint = CpuNumericsFingerprint(o.isa.value_or(kernels::DetectIsa()));
  if (o.synthetic_acceptance > 0) info.numerics_fingerprint += "-synthetic";
  return info;
}

}  // namespace

std::string CpuNumericsFingerprint(kernels::Isa isa) {
  return absl::StrCat("cpu-", kernels::IsaName(isa), "-bf16-kvbf16-tp1-s", kSamplerVersion, "-k",
                      kCpuKernelBuild);
}

absl::StatusOr<std::unique_ptr<CpuRunner>> CpuRunner::Create(std::shared_ptr<const CpuModel> model,
                                                             CpuRunnerOptions options) {
  RETURN_IF_ERROR(CheckOptions(model->config, options));
  ASSIGN_OR_RETURN(const kernels::KvShape shape, PoolShape(model->config, options));
  ASSIGN_OR_RETURN(KvPoolCpu kv, KvPoolCpu::Create(shape, model->config.num_layers));
  RunnerInfo info = InfoOf(*model, options, shape.num_blocks);
  return std::unique_ptr<CpuRunner>(
      new CpuRunner(std::move(model), std::move(options), std::move(kv), std::move(info)));
}

CpuRunner::CpuRunner(std::shared_ptr<const CpuModel> model, CpuRunnerOptions options, KvPoolCpu kv,
                     RunnerInfo info)
    : model_(std::move(model)),
      options_(std::move(options)),
      info_(std::move(info)),
      limits_{.num_blocks = info_.num_blocks,
              .block_size = info_.block_size,
              .max_slots = info_.max_slots,
              .num_layers = info_.num_layers,
              .vocab_size = info_.vocab_size},
      pool_(NumThreads(options_), options_.isa.value_or(kernels::DetectIsa())),
      kv_(std::move(kv)),
      decoder_(*model_, kv_, pool_, info_.max_context + kPositionSlack, options_.max_hidden_slots),
      slots_(static_cast<size_t>(info_.max_slots)) {
  if (options_.synthetic_acceptance > 0) {
    synthetic_.emplace(info_.vocab_size, info_.eos_token_ids, options_.synthetic_acceptance);
  }
}

// --- The rules of a plan ---

absl::Status CpuRunner::CheckSpan(const Span& span) const {
  const int32_t layer_end = span.layer_end == 0 ? info_.num_layers : span.layer_end;
  if (span.layer_begin >= layer_end) return absl::InternalError("an empty layer range");
  if (span.layer_begin > 0 && span.hidden_in == kNone) {
    return absl::InternalError("a span starts above layer 0 without saved hidden rows");
  }
  for (int32_t slot : {span.hidden_in, span.hidden_out}) {
    if (slot < kNone || slot >= decoder_.num_hidden_slots()) {
      return absl::InternalError(absl::StrCat("saved-hidden slot ", slot));
    }
  }
  return absl::OkStatus();
}

absl::Status CpuRunner::CheckPlan(const StepPlan& plan) const {
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

// --- A step ---

absl::Status CpuRunner::Launch(const StepPlan& plan) {
  if (plans_.size() >= kMaxInFlight) return Fault(plan, "a third plan in flight");
  if (const absl::Status checked = CheckPlan(plan); !checked.ok()) {
    return Fault(plan, std::string(checked.message()));
  }
  plans_.push_back(plan);
  return absl::OkStatus();
}

absl::StatusOr<StepResult> CpuRunner::Wait() {
  if (plans_.empty()) return absl::InternalError("CPU runner: Wait without Launch");
  const StepPlan plan = std::move(plans_.front());
  plans_.pop_front();
  return Run(plan);
}

absl::StatusOr<StepResult> CpuRunner::Run(const StepPlan& plan) {
  for (const SlotBind& bind : plan.binds) {
    slots_[static_cast<size_t>(bind.slot)] = SlotState::FromBind(bind, info_);
  }
  CopyBlocks(plan.copies);
  auto step = ResolvePlan(plan, info_, slots_);
  if (!step.ok()) return Fault(plan, std::string(step.status().message()));
  RETURN_IF_ERROR(RunDecoder(plan, *step));
  DrawTokens(plan, *step);

  StepResult result;
  result.step = plan.step;
  size_t draw = 0;
  kv_moves_.clear();
  for (const ResolvedSpan& run : step->spans) EmitSpan(plan, *step, run, &draw, &result);
  kv_.Copy(kv_moves_, pool_);
  return result;
}

void CpuRunner::CopyBlocks(const std::vector<KvCopy>& copies) {
  kv_moves_.clear();
  for (const KvCopy& copy : copies) {
    kv_moves_.push_back({.src = int64_t{copy.src} * info_.block_size,
                         .dst = int64_t{copy.dst} * info_.block_size,
                         .count = copy.num_slots});
  }
  kv_.Copy(kv_moves_, pool_);
}

absl::Status CpuRunner::RunDecoder(const StepPlan& plan, const ResolvedStep& step) {
  const size_t rows = step.rows.size();
  batch_.spans.clear();
  batch_.tokens.resize(rows);
  batch_.positions.resize(rows);
  parents_.resize(rows);
  for (size_t r = 0; r < rows; ++r) {
    batch_.tokens[r] = step.rows[r].token;
    batch_.positions[r] = step.rows[r].position;
    parents_[r] = step.rows[r].parent;
    if (step.rows[r].position >= decoder_.max_position()) {
      return Fault(plan, absl::StrCat("position ", step.rows[r].position, ", the model takes ",
                                      info_.max_context));
    }
  }
  for (const ResolvedSpan& run : step.spans) {
    if (run.num_rows == 0) continue;
    const Span& span = plan.spans[static_cast<size_t>(run.span)];
    if (span.hidden_in != kNone && decoder_.saved_rows(span.hidden_in) != run.num_rows) {
      return Fault(plan, absl::StrCat("saved-hidden slot ", span.hidden_in, " holds ",
                                      decoder_.saved_rows(span.hidden_in), " rows"));
    }
    DecoderSpan& s = batch_.spans.emplace_back();
    s.block_table = plan.block_tables.data() + span.table_begin;
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
      const SampleRow& first = plan.sample_rows[static_cast<size_t>(run.sample_begin)];
      s.tail_rows = std::max(0, run.num_rows - (first.row - span.row_begin));
    }
  }
  if (rows > 0) decoder_.Run(batch_);
  return absl::OkStatus();
}

// --- Sampling ---

void CpuRunner::ListDraws(const StepPlan& plan, const ResolvedStep& step) {
  draws_.clear();
  span_of_row_.resize(step.rows.size());
  for (size_t i = 0; i < step.spans.size(); ++i) {
    const ResolvedSpan& run = step.spans[i];
    const Span& span = plan.spans[static_cast<size_t>(run.span)];
    std::fill_n(span_of_row_.begin() + run.row_begin, run.num_rows, static_cast<int32_t>(i));
    for (int32_t s = run.sample_begin; s < run.sample_end; ++s) {
      const SampleRow& wanted = plan.sample_rows[static_cast<size_t>(s)];
      const int32_t local = wanted.row - span.row_begin;
      if (local >= run.num_rows || slots_[static_cast<size_t>(wanted.slot)].ended) continue;
      draws_.push_back({.row = run.row_begin + local, .sample_row = s});
    }
  }
}

void CpuRunner::DrawTokens(const StepPlan& plan, const ResolvedStep& step) {
  ListDraws(plan, step);
  outputs_.assign(draws_.size(), {});
  for (size_t begin = 0; begin < draws_.size();) {
    const size_t end = std::min(begin + kHeadGroup, draws_.size());
    DrawSome(plan, step, begin, end);
    begin = end;
  }
}

void CpuRunner::DrawSome(const StepPlan& plan, const ResolvedStep& step, size_t begin, size_t end) {
  const auto vocab = static_cast<size_t>(info_.vocab_size);
  head_rows_.clear();
  for (size_t d = begin; d < end; ++d) {
    const int32_t row = draws_[d].row;  // parallel samples share one
    if (head_rows_.empty() || head_rows_.back() != row) head_rows_.push_back(row);
  }
  if (logits_.size() < head_rows_.size() * vocab) logits_.resize(head_rows_.size() * vocab);
  decoder_.Head(head_rows_, logits_.data());

  params_.clear();
  if (paths_.size() < end - begin) paths_.resize(end - begin);
  size_t at = 0;
  for (size_t d = begin; d < end; ++d) {
    while (head_rows_[at] != draws_[d].row) ++at;
    params_.push_back(ParamsOf(plan, step, draws_[d], &paths_[d - begin]));
    params_.back().logits = logits_.data() + at * vocab;
    if (options_.logits_probe) {
      options_.logits_probe(plan.sample_rows[static_cast<size_t>(draws_[d].sample_row)].slot,
                            static_cast<int32_t>(params_.back().position),
                            {params_.back().logits, vocab});
    }
  }
  CHECK(kernels::Sample(params_.data(), static_cast<int64_t>(params_.size()),
                        outputs_.data() + begin, pool_) == kernels::CpuResult::kOk);
  if (synthetic_.has_value()) ReplaceBySynthetic(begin);
}

void CpuRunner::ReplaceBySynthetic(size_t begin) {
  for (size_t i = 0; i < params_.size(); ++i) {
    const kernels::SampleParams& p = params_[i];
    std::vector<TokenId> ranking = synthetic_->Ranking(
        {.seed = p.seed, .sample = p.sample, .position = p.position}, p.num_candidates + 1);
    kernels::SampleOutput& output = outputs_[begin + i];
    output.token = ranking[0];
    ranking.resize(static_cast<size_t>(p.num_candidates));
    output.candidates = std::move(ranking);
  }
}

// All but the logits. `path` gets the draft tokens between the slot's own and the row.
kernels::SampleParams CpuRunner::ParamsOf(const StepPlan& plan, const ResolvedStep& step,
                                          const Draw& draw, std::vector<int32_t>* path) const {
  const SampleRow& wanted = plan.sample_rows[static_cast<size_t>(draw.sample_row)];
  const SlotState& slot = slots_[static_cast<size_t>(wanted.slot)];
  const SamplingParams& sampling = *slot.sampling;
  const ResolvedSpan& run = step.spans[static_cast<size_t>(span_of_row_[draw.row])];
  const Row& row = step.rows[static_cast<size_t>(draw.row)];
  const auto known = static_cast<int32_t>(slot.tokens.size());

  path->clear();
  for (const Row* r = &row; r->position >= known;
       r = &step.rows[static_cast<size_t>(run.row_begin + r->parent)]) {
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

// `draw` is the first draw of the span; it is moved behind the last.
void CpuRunner::EmitSpan(const StepPlan& plan, const ResolvedStep& step, const ResolvedSpan& run,
                         size_t* draw, StepResult* result) {
  const Span& span = plan.spans[static_cast<size_t>(run.span)];
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
    if (run.num_rows > 0) EmitAccepted(plan, step, run, *draw, &added);
    *draw += static_cast<size_t>(run.num_rows);
    return;
  }
  for (int32_t s = run.sample_begin; s < run.sample_end; ++s) {
    SlotResult& added = add(plan.sample_rows[static_cast<size_t>(s)].slot);
    if (*draw >= draws_.size() || draws_[*draw].sample_row != s) continue;  // did not run
    SlotState& slot = slots_[static_cast<size_t>(added.slot)];
    Emit(&slot, &outputs_[*draw], &added);
    if (!outputs_[*draw].candidates.empty()) {
      added.candidates.push_back(std::move(outputs_[*draw].candidates));
    }
    slot.last_accepted = 0;
    ++*draw;
  }
}

void CpuRunner::EmitAccepted(const StepPlan& plan, const ResolvedStep& step,
                             const ResolvedSpan& run, size_t first_draw, SlotResult* result) {
  SlotState& slot = slots_[static_cast<size_t>(result->slot)];
  const std::span<const Row> rows(step.rows.data() + run.row_begin,
                                  static_cast<size_t>(run.num_rows));
  std::vector<TokenId> sampled;
  for (size_t r = 0; r < rows.size(); ++r) {
    kernels::SampleOutput& output = outputs_[first_draw + r];
    sampled.push_back(std::max(output.token, 0));
    if (!output.candidates.empty()) result->candidates.push_back(std::move(output.candidates));
  }
  const int32_t emitted = slot.num_emitted();
  const AcceptPath path = Accept(rows, sampled, [&](TokenId token, int32_t index) {
    return slot.Ends(token, emitted + index);
  });
  const Span& span = plan.spans[static_cast<size_t>(run.span)];
  const auto kv_slot = [&](int32_t index) {
    const BlockId block = plan.block_tables[span.table_begin + index / info_.block_size];
    return int64_t{block} * info_.block_size + index % info_.block_size;
  };
  for (size_t k = 0; k < path.rows.size(); ++k) {
    Emit(&slot, &outputs_[first_draw + static_cast<size_t>(path.rows[k])], result);
    if (path.rows[k] == static_cast<int32_t>(k)) continue;
    kv_moves_.push_back({.src = kv_slot(run.context_len + path.rows[k]),
                         .dst = kv_slot(run.context_len + static_cast<int32_t>(k))});
  }
  result->drafted = run.num_rows - 1;
  result->accepted = static_cast<int32_t>(path.rows.size()) - 1;
  slot.last_accepted = result->accepted;
}

// Where everything was masked the lowest id stands in: one request's nonsense fails nobody.
void CpuRunner::Emit(SlotState* slot, kernels::SampleOutput* output, SlotResult* result) {
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

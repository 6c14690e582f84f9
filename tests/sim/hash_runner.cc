#include "tests/sim/hash_runner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/status_macros.h"
#include "worker/runner/accept.h"

namespace paceline {
namespace {

absl::Status Wrong(const StepPlan& plan, const std::string& what) {
  return absl::InternalError(absl::StrCat("hash runner: ", what, "\n", DebugString(plan)));
}

bool InVocab(const std::vector<TokenId>& tokens, int32_t vocab_size) {
  return std::ranges::all_of(tokens, [&](TokenId t) { return t >= 0 && t < vocab_size; });
}

int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }

}  // namespace

HashRunner::HashRunner(HashRunnerOptions options)
    : options_(std::move(options)), model_(options_.model) {
  info_.num_layers = 1;
  info_.vocab_size = options_.model.vocab_size;
  info_.max_context = options_.max_context;
  info_.num_blocks = options_.num_blocks;
  info_.block_size = options_.block_size;
  info_.max_slots = options_.max_slots;
  info_.eos_token_ids = options_.model.eos_token_ids;
  info_.model_fingerprint =
      absl::StrCat("hash-", options_.model.seed, "-", options_.model.agreement);
  info_.numerics_fingerprint = "hash";
  kv_.resize(static_cast<size_t>(options_.num_blocks) * options_.block_size);
  slots_.resize(options_.max_slots);
  sequences_.resize(options_.max_slots, kNobody);
  uses_.resize(options_.num_blocks);
}

absl::Status HashRunner::Launch(const StepPlan& plan) {
  if (flights_.size() >= 2) return Wrong(plan, "a third plan in flight");
  if (any_step_ && plan.step != last_step_ + 1) {
    return Wrong(plan, absl::StrCat("step behind ", last_step_));
  }
  RETURN_IF_ERROR(CheckPlan(plan));
  any_step_ = true;
  last_step_ = plan.step;
  for (const SlotBind& bind : plan.binds) sequences_[bind.slot] = next_sequence_++;

  Flight& flight = flights_.emplace_back();
  flight.plan = plan;
  RETURN_IF_ERROR(ClaimBlocks(&flight));
  if (flights_.size() == 2) RETURN_IF_ERROR(CheckInFlight(flights_.front(), flight));
  if (options_.execute_at == HashRunnerOptions::ExecuteAt::kLaunch) return Execute(&flight);
  return absl::OkStatus();
}

absl::StatusOr<StepResult> HashRunner::Wait() {
  if (flights_.empty()) return absl::InternalError("hash runner: Wait without Launch");
  Flight& flight = flights_.front();
  if (!flight.done) RETURN_IF_ERROR(Execute(&flight));
  if (options_.clock != nullptr && !flight.plan.spans.empty()) {
    options_.clock->Advance(options_.step_time + flight.rows * options_.row_time);
  }
  StepResult result = std::move(flight.result);
  flights_.pop_front();
  return result;
}

// --- The rules of a plan ---

absl::Status HashRunner::CheckPlan(const StepPlan& plan) const {
  const PlanLimits limits{.num_blocks = info_.num_blocks,
                          .block_size = info_.block_size,
                          .max_slots = info_.max_slots,
                          .num_layers = info_.num_layers,
                          .vocab_size = info_.vocab_size};
  if (absl::Status valid = ValidatePlan(plan, limits); !valid.ok()) {
    return Wrong(plan, std::string(valid.message()));
  }
  for (const SlotBind& bind : plan.binds) {
    if (bind.slot < 0 || bind.slot >= info_.max_slots) return Wrong(plan, "bind of no slot");
    if (bind.sampling == nullptr) return Wrong(plan, "bind without parameters");
    const int32_t size = static_cast<int32_t>(bind.tokens.size());
    if (bind.prompt_len < 1 || bind.prompt_len > size) return Wrong(plan, "bind's prompt_len");
    if (!InVocab(bind.tokens, info_.vocab_size)) return Wrong(plan, "bind's tokens");
  }
  for (const KvCopy& copy : plan.copies) {
    for (BlockId b : {copy.src, copy.dst}) {
      if (b < 0 || b >= info_.num_blocks) return Wrong(plan, "copy of no block");
    }
    if (copy.num_slots < 1 || copy.num_slots > info_.block_size || copy.src == copy.dst) {
      return Wrong(plan, "copy");
    }
  }
  for (const Span& span : plan.spans) RETURN_IF_ERROR(CheckSpan(plan, span));
  return absl::OkStatus();
}

absl::Status HashRunner::CheckSpan(const StepPlan& plan, const Span& span) const {
  if (span.layer_begin != 0 || (span.layer_end != 0 && span.layer_end != info_.num_layers) ||
      span.hidden_in != kNone || span.hidden_out != kNone) {
    return Wrong(plan, "layer ranges are not simulated");
  }
  if (span.context_len + span.num_rows > info_.max_context) return Wrong(plan, "max_context");
  for (const PlannedBranch& branch : span.branches) {
    if (static_cast<int32_t>(branch.tokens.size()) > span.num_rows - 1 ||
        !InVocab(branch.tokens, info_.vocab_size)) {
      return Wrong(plan, "branch");
    }
  }
  std::vector<int32_t> sampled;
  for (const SampleRow& s : plan.sample_rows) {
    if (s.row < span.row_begin || s.row >= span.row_begin + span.num_rows) continue;
    if (s.head != Head::kFinal) return Wrong(plan, "heads other than the final one");
    if (span.accept && s.slot != span.slot) return Wrong(plan, "accepting span of other slots");
    sampled.push_back(s.row - span.row_begin);
  }
  if (!span.accept) return absl::OkStatus();
  if (static_cast<int32_t>(sampled.size()) != span.num_rows) {
    return Wrong(plan, "an accepting span samples all its rows");
  }
  for (int32_t r = 0; r < span.num_rows; ++r) {
    if (sampled[r] != r) return Wrong(plan, "sample rows of an accepting span are in order");
  }
  return absl::OkStatus();
}

absl::Status HashRunner::Claim(BlockId block, int64_t sequence, bool writes) {
  BlockUse& use = uses_[block];
  if (use.reader == kNobody && use.writer == kNobody) used_.push_back(block);
  if (writes && use.writer != kNobody && use.writer != sequence && use.writer != kCopies) {
    return absl::InternalError(absl::StrCat("two sequences write block ", block));
  }
  if (writes && use.reader != kNobody && use.reader != sequence) {
    return absl::InternalError(absl::StrCat("a sequence writes block ", block, ", others read it"));
  }
  if (!writes && use.writer >= 0 && use.writer != sequence) {
    return absl::InternalError(absl::StrCat("a sequence reads block ", block, ", another writes"));
  }
  if (writes) {
    use.writer = sequence;
  } else if (use.reader != sequence) {
    use.reader = use.reader == kNobody ? sequence : kMany;
  }
  return absl::OkStatus();
}

absl::Status HashRunner::ClaimSpan(const StepPlan& plan, const Span& span) {
  const int64_t sequence = sequences_[span.slot];
  if (sequence == kNobody) return absl::InternalError(absl::StrCat("unbound slot ", span.slot));
  // With from_slot the base may lie lower; that block was this sequence's to write before.
  const int32_t first_written = span.context_len / info_.block_size;
  const int32_t used = CeilDiv(span.context_len + span.num_rows, info_.block_size);
  const BlockId* table = plan.block_tables.data() + span.table_begin;
  std::vector<BlockId> seen(table, table + used);
  std::ranges::sort(seen);
  if (std::ranges::adjacent_find(seen) != seen.end()) {
    return absl::InternalError(absl::StrCat("a block twice in the table of slot ", span.slot));
  }
  for (int32_t i = 0; i < used; ++i) RETURN_IF_ERROR(Claim(table[i], sequence, i >= first_written));
  return absl::OkStatus();
}

absl::Status HashRunner::ClaimBlocks(Flight* flight) {
  absl::Status claimed;
  for (const SampleRow& wanted : flight->plan.sample_rows) {
    if (sequences_[wanted.slot] == kNobody) {
      return Wrong(flight->plan, absl::StrCat("sample row of unbound slot ", wanted.slot));
    }
  }
  for (const KvCopy& copy : flight->plan.copies) {
    if (!claimed.ok()) break;
    if (uses_[copy.dst].writer == kCopies) {
      claimed = absl::InternalError(absl::StrCat("two copies into block ", copy.dst));
    }
    uses_[copy.dst].writer = kCopies;
    used_.push_back(copy.dst);
  }
  for (const Span& span : flight->plan.spans) {
    if (claimed.ok()) claimed = ClaimSpan(flight->plan, span);
  }
  for (BlockId b : used_) {
    flight->uses.emplace_back(b, uses_[b]);
    uses_[b] = BlockUse{};
  }
  used_.clear();
  if (claimed.ok()) return claimed;
  return Wrong(flight->plan, std::string(claimed.message()));
}

// A block that an earlier plan in flight names is not another sequence's to write yet.
absl::Status HashRunner::CheckInFlight(const Flight& earlier, const Flight& later) const {
  std::vector<BlockUse> before(info_.num_blocks);
  for (const auto& [b, use] : earlier.uses) before[b] = use;
  for (const auto& [b, use] : later.uses) {
    if (use.writer == kNobody) continue;
    for (int64_t user : {before[b].reader, before[b].writer}) {
      if (user == kNobody || user == kCopies || user == use.writer) continue;
      return Wrong(
          later.plan,
          absl::StrCat("block ", b, " is written, but step ", earlier.plan.step,
                       " in flight names it for another sequence\n", DebugString(earlier.plan)));
    }
  }
  return absl::OkStatus();
}

// --- A plan's work ---

void HashRunner::Fault(const std::string& what) {
  ++num_faults_;
  if (first_fault_.empty()) first_fault_ = what;
  if (step_fault_.empty()) step_fault_ = what;
}

absl::Status HashRunner::Execute(Flight* flight) {
  const StepPlan& plan = flight->plan;
  step_fault_.clear();
  flight->result.step = plan.step;
  for (const SlotBind& bind : plan.binds) Bind(bind);
  for (const KvCopy& copy : plan.copies) Copy(copy);
  const int64_t rows_before = rows_run_;
  for (size_t i = 0; i < plan.spans.size(); ++i) {
    RunSpan(plan, static_cast<int32_t>(i), &flight->result);
  }
  flight->rows = rows_run_ - rows_before;
  max_rows_ = std::max(max_rows_, flight->rows);
  flight->done = true;
  if (options_.strict && !step_fault_.empty()) return Wrong(plan, step_fault_);
  return absl::OkStatus();
}

void HashRunner::Bind(const SlotBind& bind) {
  SlotState& slot = slots_[bind.slot];
  slot = SlotState{};
  slot.bound = true;
  slot.sampling = bind.sampling;
  slot.sample = bind.sample;
  slot.prompt_len = bind.prompt_len;
  slot.tokens = bind.tokens;
}

void HashRunner::Copy(const KvCopy& copy) {
  for (int32_t i = 0; i < options_.block_size; ++i) {
    kv_[size_t(copy.dst) * options_.block_size + i] =
        i < copy.num_slots ? kv_[size_t(copy.src) * options_.block_size + i] : KvSlot{};
  }
}

HashRunner::KvSlot& HashRunner::At(const Run& run, int32_t index) {
  CHECK_LT(index / options_.block_size, run.span->table_len);
  const BlockId block = run.table[index / options_.block_size];
  return kv_[static_cast<size_t>(block) * options_.block_size + index % options_.block_size];
}

const PlannedBranch* HashRunner::MatchBranch(const Span& span) const {
  const SlotState& slot = slots_[span.slot];
  for (const PlannedBranch& branch : span.branches) {
    if (branch.accepted == slot.last_accepted && branch.next == slot.tokens.back()) return &branch;
  }
  return nullptr;
}

// What of the span runs, now that the steps before it are done.
void HashRunner::Resolve(const StepPlan& plan, Run* run) {
  const Span& span = *run->span;
  SlotState& slot = slots_[span.slot];
  run->slot = &slot;
  run->table = plan.block_tables.data() + span.table_begin;
  run->context_len = span.context_len;
  if (slot.ended) return;
  const auto rows = plan.rows.begin() + span.row_begin;
  if (!span.from_slot) {
    run->rows.assign(rows, rows + span.num_rows);
    return;
  }
  run->context_len = static_cast<int32_t>(slot.tokens.size()) - 1;
  if (run->context_len > span.context_len) {
    Fault(absl::StrCat("slot ", span.slot, " has ", run->context_len, " entries, planned at most ",
                       span.context_len));
    run->context_len = span.context_len;
  }
  run->rows.push_back({.token = slot.tokens.back(), .position = run->context_len});
  if (const PlannedBranch* branch = MatchBranch(span)) {
    for (TokenId token : branch->tokens) {
      const int32_t r = static_cast<int32_t>(run->rows.size());
      run->rows.push_back({.token = token, .position = run->context_len + r, .parent = r - 1});
    }
  }
}

// Rows below the slot's length repeat its tokens; a decode starts at its newest one.
void HashRunner::CheckKnownTokens(const Run& run) {
  const std::vector<TokenId>& tokens = run.slot->tokens;
  for (const Row& row : run.rows) {
    if (row.position < static_cast<int32_t>(tokens.size()) && row.token != tokens[row.position]) {
      Fault(absl::StrCat("slot ", run.span->slot, " has token ", tokens[row.position],
                         " at position ", row.position, ", the plan ", row.token));
    }
  }
  if (run.span->kind != SpanKind::kPrefill &&
      run.rows[0].position != static_cast<int32_t>(tokens.size()) - 1) {
    Fault(absl::StrCat("slot ", run.span->slot, " holds ", tokens.size(),
                       " tokens, its decode starts at position ", run.rows[0].position));
  }
}

// The fold over what the context's slots really hold.
uint64_t HashRunner::ReadContext(const Run& run) {
  if (run.context_len == 0) return model_.Empty();
  const int32_t first = options_.scan_all ? 0 : std::max(0, run.context_len - 2);
  uint64_t prefix = first == 0 ? model_.Empty() : At(run, first - 1).prefix;
  for (int32_t i = first; i < run.context_len; ++i) {
    const KvSlot& slot = At(run, i);
    prefix = slot.token == kNone ? ~prefix : model_.Extend(prefix, slot.token);
    if (slot.position == i && slot.prefix == prefix) continue;
    Fault(absl::StrCat("slot ", run.span->slot, " sees at KV index ", i, " of ", run.context_len,
                       " token ", slot.token, " of position ", slot.position,
                       slot.position == i ? ", written behind another prefix" : ""));
    prefix = HashCombine(prefix ^ slot.prefix, 0xbad);
  }
  return prefix;
}

void HashRunner::RunRows(Run* run) {
  const uint64_t context = ReadContext(*run);
  for (int32_t r = 0; r < static_cast<int32_t>(run->rows.size()); ++r) {
    const Row& row = run->rows[r];
    const bool tree = run->span->mask == SpanMask::kTree;
    const int32_t parent = tree ? row.parent : r - 1;
    uint64_t prefix = parent == kNone ? context : run->prefixes[parent];
    const int32_t position = parent == kNone ? run->context_len : run->rows[parent].position + 1;
    if (row.position != position) {
      Fault(absl::StrCat("row ", r, " of slot ", run->span->slot, " has position ", row.position,
                         ", it sees ", position, " tokens"));
      prefix = HashCombine(prefix, 0xbad);
    }
    run->prefixes.push_back(model_.Extend(prefix, row.token));
    At(*run, run->context_len + r) = {
        .token = row.token, .position = row.position, .prefix = run->prefixes.back()};
  }
  rows_run_ += static_cast<int64_t>(run->rows.size());
}

// Tokens of the slot and, behind them, of the drafts on the row's path.
std::vector<TokenId> HashRunner::History(const Run& run, const SlotState& slot, int32_t row) const {
  std::vector<TokenId> path;
  for (int32_t r = row; r > 0; r = run.rows[r].parent) {
    if (run.rows[r].position < static_cast<int32_t>(slot.tokens.size())) break;
    path.push_back(run.rows[r].token);
    if (run.rows[r].parent == kNone) break;
  }
  std::vector<TokenId> history = slot.tokens;
  history.insert(history.end(), path.rbegin(), path.rend());
  return history;
}

void HashRunner::Emit(SlotState* slot, const HashSample& sample, SlotResult* result) {
  const int32_t index = static_cast<int32_t>(slot->tokens.size()) - slot->prompt_len;
  slot->tokens.push_back(sample.token);
  slot->ended = model_.Ends(sample.token, index, *slot->sampling);
  result->tokens.push_back(sample.token);
  result->ended = slot->ended;
  if (slot->sampling->top_logprobs < 0) return;
  result->logprobs.push_back(sample.logprob);
  result->top_logprobs.push_back(sample.top);
}

void HashRunner::EmitAccepted(const Run& run, int32_t num_candidates, SlotResult* result) {
  SlotState& slot = *run.slot;
  std::vector<HashSample> samples;
  std::vector<TokenId> sampled;
  for (int32_t r = 0; r < static_cast<int32_t>(run.rows.size()); ++r) {
    samples.push_back(model_.Sample(run.prefixes[r], *slot.sampling, slot.sample,
                                    History(run, slot, r), slot.prompt_len, num_candidates));
    sampled.push_back(samples.back().token);
    if (num_candidates > 0) result->candidates.push_back(samples.back().candidates);
  }
  const int32_t emitted = static_cast<int32_t>(slot.tokens.size()) - slot.prompt_len;
  const AcceptPath path = Accept(run.rows, sampled, [&](TokenId token, int32_t index) {
    return model_.Ends(token, emitted + index, *slot.sampling);
  });
  for (size_t k = 0; k < path.rows.size(); ++k) {
    Emit(&slot, samples[path.rows[k]], result);
    At(run, run.context_len + static_cast<int32_t>(k)) = At(run, run.context_len + path.rows[k]);
  }
  result->accepted = static_cast<int32_t>(path.rows.size()) - 1;
  result->drafted = static_cast<int32_t>(run.rows.size()) - 1;
  slot.last_accepted = result->accepted;
}

void HashRunner::EmitRow(const Run& run, const SampleRow& wanted, SlotResult* result) {
  SlotState& slot = slots_[wanted.slot];
  const int32_t r = wanted.row - run.span->row_begin;
  result->ended = slot.ended;
  if (slot.ended || r >= static_cast<int32_t>(run.rows.size())) return;
  const Row& row = run.rows[r];
  if (row.position != static_cast<int32_t>(slot.tokens.size()) - 1 ||
      row.token != slot.tokens.back()) {
    Fault(absl::StrCat("slot ", wanted.slot, " holds ", slot.tokens.size(),
                       " tokens and samples behind position ", row.position));
  }
  const HashSample sample = model_.Sample(run.prefixes[r], *slot.sampling, slot.sample, slot.tokens,
                                          slot.prompt_len, wanted.num_candidates);
  if (wanted.num_candidates > 0) result->candidates.push_back(sample.candidates);
  Emit(&slot, sample, result);
  slot.last_accepted = 0;
}

void HashRunner::RunSpan(const StepPlan& plan, int32_t index, StepResult* result) {
  Run run;
  run.span = &plan.spans[index];
  Resolve(plan, &run);
  if (!run.rows.empty()) {
    CheckKnownTokens(run);
    RunRows(&run);
  }
  const auto add_result = [&](SlotId slot) -> SlotResult& {
    SlotResult& added = result->slots.emplace_back();
    added.slot = slot;
    added.span = index;
    added.context_len = run.context_len;
    added.rows_run = static_cast<int32_t>(run.rows.size());
    added.ended = slots_[slot].ended;
    return added;
  };
  const int32_t row_end = run.span->row_begin + run.span->num_rows;
  auto wanted =
      std::ranges::lower_bound(plan.sample_rows, run.span->row_begin, {}, &SampleRow::row);
  if (wanted == plan.sample_rows.end() || wanted->row >= row_end) {
    add_result(run.span->slot);
  } else if (run.span->accept) {
    SlotResult& added = add_result(run.span->slot);
    if (!run.rows.empty()) EmitAccepted(run, wanted->num_candidates, &added);
  } else {
    for (; wanted != plan.sample_rows.end() && wanted->row < row_end; ++wanted) {
      EmitRow(run, *wanted, &add_result(wanted->slot));
    }
  }
}

}  // namespace paceline

#include "worker/runner/slot_state.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

absl::Status Fault(const std::string& what) {
  return absl::InternalError(absl::StrCat("step plan: ", what));
}

bool InVocab(TokenId token, const RunnerInfo& info) {
  return token >= 0 && token < info.vocab_size;
}

const PlannedBranch* MatchBranch(const Span& span, const SlotState& slot) {
  for (const PlannedBranch& branch : span.branches) {
    if (branch.accepted == slot.last_accepted && branch.next == slot.tokens.back()) return &branch;
  }
  return nullptr;
}

// Row 0 is the slot's newest token, the others the branch planned for the outcome that came.
absl::Status RowsFromSlot(const Span& span, const SlotState& slot, const RunnerInfo& info,
                          ResolvedSpan* run, std::vector<Row>* rows) {
  run->context_len = static_cast<int32_t>(slot.tokens.size()) - 1;
  if (run->context_len < 0 || run->context_len > span.context_len) {
    return Fault(absl::StrCat("slot ", span.slot, " has ", run->context_len,
                              " KV entries, planned at most ", span.context_len));
  }
  rows->push_back({.token = slot.tokens.back(), .position = run->context_len});
  run->num_rows = 1;
  const PlannedBranch* branch = MatchBranch(span, slot);
  if (branch == nullptr) return absl::OkStatus();
  if (static_cast<int64_t>(branch->tokens.size()) > span.num_rows - 1) {
    return Fault(absl::StrCat("a branch of slot ", span.slot, " is longer than its rows"));
  }
  for (TokenId token : branch->tokens) {
    if (!InVocab(token, info)) return Fault(absl::StrCat("token ", token, " in a branch"));
    rows->push_back({.token = token,
                     .position = run->context_len + run->num_rows,
                     .parent = run->num_rows - 1});
    ++run->num_rows;
  }
  return absl::OkStatus();
}

absl::Status CheckSampleRows(const StepPlan& plan, const Span& span, const ResolvedSpan& run,
                             const std::vector<SlotState>& slots) {
  for (int32_t i = run.sample_begin; i < run.sample_end; ++i) {
    const SampleRow& s = plan.sample_rows[static_cast<size_t>(i)];
    if (!slots[static_cast<size_t>(s.slot)].bound) {
      return Fault(absl::StrCat("sample row of unbound slot ", s.slot));
    }
    if (s.head != Head::kFinal && s.head != Head::kExit) {
      return Fault(absl::StrCat("head ", static_cast<int>(s.head), " is not implemented"));
    }
    if (span.accept && (s.slot != span.slot || s.row != span.row_begin + (i - run.sample_begin))) {
      return Fault(absl::StrCat("sample rows of accepting slot ", span.slot, " are not its rows"));
    }
  }
  if (span.accept && run.sample_end - run.sample_begin != span.num_rows) {
    return Fault(absl::StrCat("accepting slot ", span.slot, " does not sample all its rows"));
  }
  return absl::OkStatus();
}

}  // namespace

SlotState SlotState::FromBind(const SlotBind& bind, const RunnerInfo& info) {
  SlotState slot;
  slot.bound = true;
  slot.sampling = bind.sampling;
  slot.sample = bind.sample;
  slot.prompt_len = bind.prompt_len;
  slot.tokens = bind.tokens;
  slot.stop_ids = bind.sampling->stop_token_ids;
  if (!bind.sampling->ignore_eos) {
    slot.stop_ids.insert(slot.stop_ids.end(), info.eos_token_ids.begin(), info.eos_token_ids.end());
  }
  return slot;
}

bool SlotState::Ends(TokenId token, int32_t index) const {
  return index + 1 >= sampling->max_tokens || std::ranges::find(stop_ids, token) != stop_ids.end();
}

absl::Status CheckBinds(const StepPlan& plan, const RunnerInfo& info) {
  for (const SlotBind& bind : plan.binds) {
    if (bind.slot < 0 || bind.slot >= info.max_slots) {
      return Fault(absl::StrCat("bind of slot ", bind.slot, " of ", info.max_slots));
    }
    if (bind.sampling == nullptr || bind.tokens.empty() || bind.prompt_len < 0 ||
        bind.prompt_len > static_cast<int64_t>(bind.tokens.size())) {
      return Fault(absl::StrCat("bind of slot ", bind.slot, " lacks parameters or tokens"));
    }
    for (TokenId token : bind.tokens) {
      if (!InVocab(token, info)) return Fault(absl::StrCat("bind with token ", token));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ResolvedStep> ResolvePlan(const StepPlan& plan, const RunnerInfo& info,
                                         const std::vector<SlotState>& slots) {
  ResolvedStep step;
  step.spans.reserve(plan.spans.size());
  step.rows.reserve(plan.rows.size());
  int32_t next_sample = 0;
  const auto num_samples = static_cast<int32_t>(plan.sample_rows.size());
  for (size_t i = 0; i < plan.spans.size(); ++i) {
    const Span& span = plan.spans[i];
    const SlotState& slot = slots[static_cast<size_t>(span.slot)];
    if (!slot.bound) return Fault(absl::StrCat("span of unbound slot ", span.slot));
    ResolvedSpan run;
    run.span = static_cast<int32_t>(i);
    run.context_len = span.context_len;
    run.row_begin = static_cast<int32_t>(step.rows.size());
    run.sample_begin = next_sample;
    while (next_sample < num_samples && plan.sample_rows[static_cast<size_t>(next_sample)].row <
                                            span.row_begin + span.num_rows) {
      ++next_sample;
    }
    run.sample_end = next_sample;
    RETURN_IF_ERROR(CheckSampleRows(plan, span, run, slots));
    if (slot.ended) {
      // Nothing of it runs.
    } else if (span.from_slot) {
      RETURN_IF_ERROR(RowsFromSlot(span, slot, info, &run, &step.rows));
    } else {
      run.num_rows = span.num_rows;
      const auto rows = plan.rows.begin() + span.row_begin;
      step.rows.insert(step.rows.end(), rows, rows + span.num_rows);
    }
    step.spans.push_back(run);
  }
  return step;
}

}  // namespace paceline

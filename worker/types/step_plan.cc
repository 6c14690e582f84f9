#include "worker/types/step_plan.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

absl::Status Fault(const char* what, int64_t index, int64_t value) {
  return absl::InternalError(absl::StrCat("step plan: ", what, " at ", index, " is ", value));
}

absl::Status CheckRows(const StepPlan& plan, const Span& span, const PlanLimits& limits) {
  for (int32_t r = 0; r < span.num_rows; ++r) {
    const Row& row = plan.rows[span.row_begin + r];
    if (span.from_slot) continue;  // placeholders
    if (row.token < 0 || row.token >= limits.vocab_size) return Fault("token", r, row.token);
    if (row.position < 0) return Fault("position", r, row.position);
    if (row.parent < kNone || row.parent >= r) return Fault("parent", r, row.parent);
    if (span.mask == SpanMask::kCausal && row.position != span.context_len + r) {
      return Fault("position of a causal row", r, row.position);
    }
    if (r > 0 && row.parent >= 0 &&
        row.position != plan.rows[span.row_begin + row.parent].position + 1) {
      return Fault("position behind its parent", r, row.position);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSpan(const StepPlan& plan, int64_t index, const PlanLimits& limits) {
  const Span& span = plan.spans[index];
  if (span.slot < 0 || span.slot >= limits.max_slots) return Fault("slot", index, span.slot);
  if (span.num_rows < 1) return Fault("num_rows", index, span.num_rows);
  if (span.row_begin < 0 ||
      span.row_begin + span.num_rows > static_cast<int64_t>(plan.rows.size())) {
    return Fault("row_begin", index, span.row_begin);
  }
  if (span.table_begin < 0 ||
      span.table_begin + span.table_len > static_cast<int64_t>(plan.block_tables.size())) {
    return Fault("table_begin", index, span.table_begin);
  }
  if (int64_t{span.table_len} * limits.block_size < span.context_len + span.num_rows) {
    return Fault("table_len", index, span.table_len);
  }
  if (span.layer_begin < 0 || span.layer_end > limits.num_layers) {
    return Fault("layer_end", index, span.layer_end);
  }
  if (!span.from_slot && !span.branches.empty())
    return Fault("branches without from_slot", index, 1);
  return CheckRows(plan, span, limits);
}

}  // namespace

absl::Status ValidatePlan(const StepPlan& plan, const PlanLimits& limits) {
  for (size_t i = 0; i < plan.block_tables.size(); ++i) {
    const BlockId b = plan.block_tables[i];
    if (b < 0 || b >= limits.num_blocks) return Fault("block id", i, b);
  }
  int32_t next_row = 0;
  for (size_t i = 0; i < plan.spans.size(); ++i) {
    if (plan.spans[i].row_begin != next_row) return Fault("row_begin", i, plan.spans[i].row_begin);
    RETURN_IF_ERROR(CheckSpan(plan, i, limits));
    next_row += plan.spans[i].num_rows;
  }
  if (next_row != static_cast<int64_t>(plan.rows.size()))
    return Fault("rows", next_row, plan.rows.size());
  int32_t last = 0;
  for (size_t i = 0; i < plan.sample_rows.size(); ++i) {
    const SampleRow& s = plan.sample_rows[i];
    if (s.row < last || s.row >= static_cast<int64_t>(plan.rows.size()))
      return Fault("sample row", i, s.row);
    if (s.slot < 0 || s.slot >= limits.max_slots) return Fault("sample slot", i, s.slot);
    last = s.row;
  }
  return absl::OkStatus();
}

std::string DebugString(const StepPlan& plan) {
  std::string out = absl::StrCat("step ", plan.step, "\n");
  for (const SlotBind& b : plan.binds) {
    absl::StrAppend(&out, "  bind slot ", b.slot, " sample ", b.sample, " prompt ", b.prompt_len,
                    " tokens ", b.tokens.size(), "\n");
  }
  for (const KvCopy& c : plan.copies) {
    absl::StrAppend(&out, "  copy ", c.src, " -> ", c.dst, " x ", c.num_slots, "\n");
  }
  for (const Span& s : plan.spans) {
    absl::StrAppend(&out, "  span slot ", s.slot, " kind ", static_cast<int>(s.kind), " context ",
                    s.context_len, s.from_slot ? " from_slot" : "", s.accept ? " accept" : "",
                    " blocks");
    for (int32_t i = 0; i < s.table_len; ++i) {
      absl::StrAppend(&out, " ", plan.block_tables[s.table_begin + i]);
    }
    absl::StrAppend(&out, "\n    rows");
    for (int32_t r = 0; r < s.num_rows; ++r) {
      const Row& row = plan.rows[s.row_begin + r];
      absl::StrAppend(&out, " ", row.token, "@", row.position, "^", row.parent);
    }
    absl::StrAppend(&out, "\n");
  }
  for (const SampleRow& s : plan.sample_rows) {
    absl::StrAppend(&out, "  sample row ", s.row, " slot ", s.slot, "\n");
  }
  return out;
}

}  // namespace paceline

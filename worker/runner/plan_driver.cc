#include "worker/runner/plan_driver.h"

#include <algorithm>

#include "common/check.h"

namespace paceline {

PlanDriver::Sequence& PlanDriver::Start(std::vector<TokenId> prompt, const SamplingParams& sampling,
                                        int32_t sample) {
  auto& s = *sequences_.emplace_back(std::make_unique<Sequence>());
  s.slot = static_cast<SlotId>(sequences_.size()) - 1;
  s.sampling = std::make_shared<SamplingParams>(sampling);
  s.sample = sample;
  s.prompt_len = static_cast<int32_t>(prompt.size());
  s.tokens = std::move(prompt);
  plan_.binds.push_back({.slot = s.slot,
                         .sampling = s.sampling,
                         .sample = sample,
                         .prompt_len = s.prompt_len,
                         .tokens = s.tokens});
  return s;
}

Span& PlanDriver::AddSpan(Sequence& s, SpanKind kind, int32_t context, int32_t rows) {
  const int32_t block = runner_.info().block_size;
  while (static_cast<int32_t>(s.blocks.size()) * block < context + rows) {
    // A scattered order, so that tables matter.
    const BlockId id = next_block_++;
    CHECK_LT(id, runner_.info().num_blocks);
    s.blocks.push_back(id % 2 == 0 ? id / 2 : runner_.info().num_blocks - 1 - id / 2);
  }
  Span& span = plan_.spans.emplace_back();
  span.slot = s.slot;
  span.kind = kind;
  span.row_begin = static_cast<int32_t>(plan_.rows.size());
  span.num_rows = rows;
  span.context_len = context;
  span.table_begin = static_cast<int32_t>(plan_.block_tables.size());
  span.table_len = static_cast<int32_t>(s.blocks.size());
  plan_.block_tables.insert(plan_.block_tables.end(), s.blocks.begin(), s.blocks.end());
  for (int32_t r = 0; r < rows; ++r) {
    plan_.rows.push_back({.position = context + r, .parent = r - 1});
  }
  return span;
}

void PlanDriver::Prefill(Sequence& s, int32_t rows) {
  const int32_t left = static_cast<int32_t>(s.tokens.size()) - s.kv;
  if (rows == 0 || rows > left) rows = left;
  const Span& span = AddSpan(s, SpanKind::kPrefill, s.kv, rows);
  for (int32_t r = 0; r < rows; ++r) plan_.rows[span.row_begin + r].token = s.tokens[s.kv + r];
  if (rows == left) {
    plan_.sample_rows.push_back({.row = span.row_begin + rows - 1, .slot = s.slot});
  }
}

void PlanDriver::Verify(Sequence& s, std::span<const TokenId> drafts,
                        std::span<const int32_t> parents) {
  const int32_t context = static_cast<int32_t>(s.tokens.size()) - 1;
  const int32_t rows = 1 + static_cast<int32_t>(drafts.size());
  Span& span = AddSpan(s, drafts.empty() ? SpanKind::kDecode : SpanKind::kVerify, context, rows);
  span.accept = true;
  Row* row = plan_.rows.data() + span.row_begin;
  row[0].token = s.tokens.back();
  for (int32_t r = 1; r < rows; ++r) row[r].token = drafts[r - 1];
  if (!parents.empty()) {
    span.mask = SpanMask::kTree;
    for (int32_t r = 1; r < rows; ++r) {
      row[r].parent = parents[r - 1] + 1;
      row[r].position = row[row[r].parent].position + 1;
    }
  }
  for (int32_t r = 0; r < rows; ++r) {
    plan_.sample_rows.push_back({.row = span.row_begin + r, .slot = s.slot});
  }
}

void PlanDriver::DecodeAhead(Sequence& s, int32_t max_new, std::vector<PlannedBranch> branches) {
  size_t longest = 0;
  for (const PlannedBranch& b : branches) longest = std::max(longest, b.tokens.size());
  const int32_t context = static_cast<int32_t>(s.tokens.size()) - 1 + max_new;
  const int32_t rows = 1 + static_cast<int32_t>(longest);
  Span& span = AddSpan(s, SpanKind::kDecode, context, rows);
  span.from_slot = span.accept = true;
  span.branches = std::move(branches);
  for (int32_t r = 0; r < rows; ++r) {
    plan_.sample_rows.push_back({.row = span.row_begin + r, .slot = s.slot});
  }
}

void PlanDriver::Follow(Sequence& follower) {
  plan_.sample_rows.push_back({.row = plan_.sample_rows.back().row, .slot = follower.slot});
}

void PlanDriver::Fork(const Sequence& leader, Sequence& s) {
  const int32_t block = runner_.info().block_size;
  s.kv = s.prompt_len;
  s.blocks.assign(leader.blocks.begin(), leader.blocks.begin() + s.kv / block);
  if (s.kv % block == 0) return;
  const BlockId id = runner_.info().num_blocks / 2 - 1 - s.slot;
  plan_.copies.push_back(
      {.src = leader.blocks[s.kv / block], .dst = id, .num_slots = s.kv % block});
  s.blocks.push_back(id);
}

absl::Status PlanDriver::Launch() {
  plan_.step = ++step_;
  const absl::Status status = runner_.Launch(plan_);
  plan_ = StepPlan{};
  return status;
}

StepResult PlanDriver::Wait() {
  auto result = runner_.Wait();
  CHECK(result.ok()) << result.status().ToString();
  for (const SlotResult& r : result->slots) {
    Sequence& s = *sequences_[r.slot];
    s.tokens.insert(s.tokens.end(), r.tokens.begin(), r.tokens.end());
    s.logprobs.insert(s.logprobs.end(), r.logprobs.begin(), r.logprobs.end());
    s.top.insert(s.top.end(), r.top_logprobs.begin(), r.top_logprobs.end());
    s.kv = r.tokens.empty() ? s.kv + r.rows_run : static_cast<int32_t>(s.tokens.size()) - 1;
    s.ended = r.ended;
    s.last = r;
  }
  return *std::move(result);
}

void PlanDriver::Step() {
  const absl::Status status = Launch();
  CHECK(status.ok()) << status.ToString();
  Wait();
}

void PlanDriver::Finish(Sequence& s) {
  if (s.kv + 1 < static_cast<int32_t>(s.tokens.size()) || s.kv == 0) {
    Prefill(s);
    Step();
  }
  while (!s.ended) {
    Decode(s);
    Step();
  }
}

}  // namespace paceline

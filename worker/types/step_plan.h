// One step of the engine as a value: a ragged batch of spans over paged KV. It can be printed,
// compared, recorded, replayed and sent to another rank. The scheduler fills it, the runner carries
// it out; neither keeps a pointer into the other.
//
// Positions and KV. A span has `context_len` valid KV entries before it, at KV indices
// [0, context_len). Its row r writes KV index context_len + r. KV index i lies in block
// block_table[i / block_size], slot i % block_size. A row's *position* (rope, noise, causality)
// is its own: rows of a draft tree share depths, so position and KV index differ there. When a tree
// path is accepted the runner moves its KV to consecutive indices, so that behind a step KV index
// and position agree again for every kept row.
//
// Rows of a span see [0, context_len) and, of the span, the rows in their mask (kCausal: those up
// to and including themselves; kTree: their ancestors and themselves, by `parent`).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/types/sampling_params.h"

namespace paceline {

using BlockId = int32_t;
using SlotId = int32_t;  // a sequence's place in the runner's per-sequence state, [0, max_slots)

inline constexpr int32_t kNone = -1;

// State that a runner keeps per slot from bind to the next bind: the tokens so far (prompt,
// output), the sampling parameters, and whether the sample has ended. A bind replaces all of it.
struct SlotBind {
  SlotId slot = 0;
  std::shared_ptr<const SamplingParams> sampling;
  int32_t sample = 0;           // index for the noise
  int32_t prompt_len = 0;       // tokens[0, prompt_len) are the prompt
  std::vector<TokenId> tokens;  // prompt and what the sample has emitted so far
};

// Copies the first num_slots KV slots of a block, all layers. Done before any row of the step runs.
struct KvCopy {
  BlockId src = 0;
  BlockId dst = 0;
  int32_t num_slots = 0;
};

enum class SpanKind : uint8_t { kPrefill, kDecode, kVerify };
enum class SpanMask : uint8_t { kCausal, kTree };
enum class Head : uint8_t { kFinal, kExit, kNarrow, kBlockwise };

// A draft chain for one outcome of the step in flight: used if that step accepted exactly
// `accepted` of this slot's drafts and emitted `next` last.
struct PlannedBranch {
  int32_t accepted = 0;
  TokenId next = 0;
  std::vector<TokenId> tokens;  // at most num_rows - 1
};

struct Span {
  SlotId slot = 0;
  SpanKind kind = SpanKind::kDecode;
  SpanMask mask = SpanMask::kCausal;
  int32_t row_begin = 0;  // rows [row_begin, row_begin + num_rows) of the plan
  int32_t num_rows = 0;
  int32_t context_len = 0;  // KV entries before the span. With from_slot: an upper bound
  // Launched while the step that decides its base is still in flight: token and position of row 0
  // are the slot's newest token and its position; other rows' tokens come from the matching branch
  // and, if none matches, do not run. Host values of such rows are placeholders.
  bool from_slot = false;
  int32_t table_begin = 0;  // block_tables[table_begin, table_begin + table_len)
  int32_t table_len = 0;
  int32_t layer_begin = 0;  // layers [layer_begin, layer_end); layer_end 0 = all
  int32_t layer_end = 0;
  int32_t hidden_in = kNone;   // saved-hidden slot that the rows start from
  int32_t hidden_out = kNone;  // saved-hidden slot that the rows leave behind
  // The span's slot accepts: from row 0 walk to the child whose token equals the token sampled at
  // the current row, emitting each sampled token. Without it sample rows emit one token each.
  bool accept = false;
  std::vector<PlannedBranch> branches;  // only with from_slot
};

struct Row {
  TokenId token = 0;
  int32_t position = 0;
  int32_t parent = kNone;  // row of the same span (index within it) that precedes this one
};

// What is wanted of a row. Sample rows of an accepting span are all its rows in order.
struct SampleRow {
  int32_t row = 0;  // in the plan
  SlotId slot = 0;  // whose parameters, noise and history; receives the token. For the first
                    // tokens of parallel samples several slots share one row
  Head head = Head::kFinal;
  int32_t num_candidates = 0;  // also return this many best (by noise-coupled score) token ids
};

struct StepPlan {
  uint64_t step = 0;  // counts up by one
  std::vector<SlotBind> binds;
  std::vector<KvCopy> copies;
  std::vector<Span> spans;
  std::vector<Row> rows;
  std::vector<SampleRow> sample_rows;
  std::vector<BlockId> block_tables;

  bool empty() const { return spans.empty() && copies.empty() && binds.empty(); }
};

// What a launched span really did, and what its slot emitted.
struct SlotResult {
  SlotId slot = 0;
  int32_t span = kNone;     // index of the span in the plan
  int32_t context_len = 0;  // KV entries before the span, as run
  int32_t rows_run = 0;     // rows that ran; fewer than planned where no branch matched
  int32_t drafted = 0;      // draft rows among them
  int32_t accepted = 0;     // drafts accepted
  // accepted drafts and the target's own last token; cut behind the first token that ends the
  // sample. Empty for prefill chunks that sample nothing, and for slots that had ended before.
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;  // of tokens, if asked for
  std::vector<std::vector<std::pair<TokenId, float>>> top_logprobs;
  // [sample rows of the span][num_candidates] token ids by falling noise-coupled score, if asked
  // for
  std::vector<std::vector<TokenId>> candidates;
  bool ended = false;  // the last token is a stop id or EOS, or max_tokens is reached
};

struct StepResult {
  uint64_t step = 0;
  std::vector<SlotResult> slots;  // one per sample-emitting slot, in sample-row order, and one per
                                  // span without sample rows
};

// For logs and failing tests.
std::string DebugString(const StepPlan& plan);

// Every rule that the comments above state; used by tests and, in debug builds, before a launch.
struct PlanLimits {
  int32_t num_blocks = 0;
  int32_t block_size = 16;
  int32_t max_slots = 0;
  int32_t num_layers = 1;
  int32_t vocab_size = 0;
};
absl::Status ValidatePlan(const StepPlan& plan, const PlanLimits& limits);

}  // namespace paceline

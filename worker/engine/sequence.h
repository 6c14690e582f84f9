// One sample of one request, as the scheduler sees it. Owned by its RequestState; touched by the
// engine thread only.
//
// Lengths. `tokens` is prompt and committed output. KV is valid for indices [0, kv_len); a decoding
// sequence that is not in flight has kv_len == tokens.size() - 1: the newest token's KV is written
// when it is fed. `pending_rows` rows of launched, uncommitted plans may extend kv_len.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "common/types/draft_messages.h"
#include "common/types/generation.h"
#include "worker/kv/block_manager.h"
#include "worker/types/step_plan.h"

namespace paceline {

struct RequestState;

enum class SequenceState : uint8_t {
  kWaiting,   // queued, no slot, no KV
  kFollower,  // waits for its leader's prompt: the first tokens share the leader's last prompt row
  kPrefill,   // computes tokens[kv_len, prefill_target); the last row samples
  kDecode,    // one newest token per step, with drafts behind it
  kDone,
};

struct Sequence {
  RequestState* request = nullptr;
  int32_t sample = 0;
  SequenceState state = SequenceState::kWaiting;
  FinishReason finish = FinishReason::kNone;

  // Place in the one order of all sequences: greater priority, earlier arrival, lower sample.
  int32_t priority = 0;
  uint64_t arrival = 0;

  std::vector<TokenId> tokens;
  int32_t prompt_len = 0;
  int32_t max_len = 0;  // prompt + max_tokens

  SlotId slot = kNone;
  BlockTable table;
  int32_t kv_len = 0;
  int32_t prefill_target = 0;

  // Launched and not yet committed.
  int32_t pending_steps = 0;
  int32_t pending_rows = 0;
  int32_t pending_drafts = 0;   // of the newest launched plan
  int32_t pending_written = 0;  // rows that are no drafts
  bool pending_sample = false;  // the newest launched plan samples for it
  bool pending_fork = false;    // its first token, in flight, shares a row with other samples
  uint64_t last_step = 0;       // newest plan that names it

  // Of the Schedule in progress.
  bool chosen = false;  // its decode row fits the row budget
  bool ready = false;   // KV for its next row is reserved
  bool stuck = false;   // there is no KV for it
  bool yields = false;  // sits this plan out, so that its blocks can be taken in the next

  DraftSessionId draft_id;
  bool drafting = false;  // the speculator knows it

  TimePoint prefill_start{};
  int32_t prefill_from = 0;  // tokens that were not computed: found in the prefix cache
  TimePoint last_tokens{};   // time of the newest delta

  int32_t len() const { return static_cast<int32_t>(tokens.size()); }
  bool in_flight() const { return pending_steps > 0; }
  bool running() const {
    return state == SequenceState::kPrefill || state == SequenceState::kDecode;
  }
  // KV entries behind every launched plan; an upper bound while drafts are in flight.
  int32_t planned_kv() const { return kv_len + pending_rows; }
  int32_t prefill_left() const {
    return state == SequenceState::kPrefill ? std::max(0, prefill_target - planned_kv()) : 0;
  }
  // The next row is that of a newest token, known to the host or in flight.
  bool decodes() const { return running() && prefill_left() == 0; }
  // Every outcome of the step in flight ends it.
  bool surely_ends() const { return pending_sample && len() + 1 >= max_len; }
};

// True if `a` goes before `b`, in admission, for KV and as the last to be preempted.
struct RanksBefore {
  bool operator()(const Sequence* a, const Sequence* b) const {
    return std::tuple(-int64_t{a->priority}, a->arrival, a->sample) <
           std::tuple(-int64_t{b->priority}, b->arrival, b->sample);
  }
};

}  // namespace paceline

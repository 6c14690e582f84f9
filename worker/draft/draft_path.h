// One line of tokens that the draft model follows: what it holds of the runner and the pool, and
// the drafts at its end.
//
// A path starts behind `start` tokens that belong to others (the session's committed ones, and for
// a branch its outcome). Draft i has position start + i. The row at position start - 1 + i yields
// draft i and candidates i, so candidates[i] is known only if that row was sampled, and then KV is
// valid for [0, start + i) at least.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/kv/block_manager.h"
#include "worker/types/step_plan.h"

namespace paceline {

struct DraftPath {
  int32_t start = 0;
  std::vector<TokenId> drafts;
  // [i]: token ids for position start + i by falling noise-coupled score; may reach one further
  // than the drafts, or be shorter.
  std::vector<std::vector<TokenId>> candidates;
  bool ended = false;  // the last draft ends the sample

  BlockTable table;
  int32_t kv_len = 0;  // KV entries computed
  SlotId slot = kNone;
  int32_t slot_len = 0;  // the slot holds exactly the path's first slot_len tokens; 0 = bind it
  uint64_t planned_step = 0;  // newest plan that names it

  int32_t len() const { return start + static_cast<int32_t>(drafts.size()); }
  int32_t num_candidates() const { return static_cast<int32_t>(candidates.size()); }
};

}  // namespace paceline

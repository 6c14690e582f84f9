// The one rule of acceptance, for chains and trees alike: a draft is accepted where it equals the
// target's own token. Every runner calls this; so does the algebra test.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "worker/types/step_plan.h"

namespace paceline {

struct AcceptPath {
  std::vector<int32_t> rows;    // accepted rows of the span in path order; rows[0] == 0 always
  std::vector<TokenId> tokens;  // sampled at each of them; one more than drafts accepted
  bool ended = false;           // the last token ended the sample
};

// rows: [num_rows] of one span, sampled: [num_rows] the target's token at each row. `ends(token,
// index)` says whether the index-th token emitted by this walk ends the sample: the walk stops
// there. Among children with equal tokens the first wins.
AcceptPath Accept(std::span<const Row> rows, std::span<const TokenId> sampled,
                  const std::function<bool(TokenId, int32_t)>& ends);

}  // namespace paceline

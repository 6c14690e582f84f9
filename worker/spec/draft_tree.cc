#include "worker/spec/draft_tree.h"

#include <algorithm>

namespace paceline {

void DraftTree::Add(std::span<const TokenId> chain) {
  int32_t at = kNone;
  for (int32_t depth = 1; depth <= static_cast<int32_t>(chain.size()); ++depth) {
    const TokenId token = chain[depth - 1];
    int32_t child = at + 1;  // children stand behind their parents
    while (child < size() && !(parents_[child] == at && tokens_[child] == token)) ++child;
    if (child == size()) {
      if (size() >= max_rows_) return;
      tokens_.push_back(token);
      parents_.push_back(at);
      depth_ = std::max(depth_, depth);
    }
    at = child;
  }
}

}  // namespace paceline

// A small tree of drafts, grown from chains that share beginnings. In the order of growth, so that
// the path of first children is the chain that was added first. A plain value.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/types/step_plan.h"

namespace paceline {

class DraftTree {
 public:
  explicit DraftTree(int32_t max_rows) : max_rows_(max_rows) {}

  // Behind the newest token; what earlier chains have is not doubled. Cut where the rows end.
  void Add(std::span<const TokenId> chain);

  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  int32_t depth() const { return depth_; }
  const std::vector<TokenId>& tokens() const { return tokens_; }
  const std::vector<int32_t>& parents() const { return parents_; }  // kNone = the newest token

 private:
  int32_t max_rows_;
  int32_t depth_ = 0;
  std::vector<TokenId> tokens_;
  std::vector<int32_t> parents_;
};

}  // namespace paceline

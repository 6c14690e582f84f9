#include "worker/runner/accept.h"

namespace paceline {
namespace {

int32_t FindChild(std::span<const Row> rows, int32_t parent, TokenId token) {
  for (int32_t r = parent + 1; r < static_cast<int32_t>(rows.size()); ++r) {
    if (rows[r].parent == parent && rows[r].token == token) return r;
  }
  return kNone;
}

}  // namespace

AcceptPath Accept(std::span<const Row> rows, std::span<const TokenId> sampled,
                  const std::function<bool(TokenId, int32_t)>& ends) {
  AcceptPath path;
  for (int32_t row = 0; row != kNone;) {
    const TokenId token = sampled[row];
    path.rows.push_back(row);
    path.tokens.push_back(token);
    path.ended = ends(token, static_cast<int32_t>(path.tokens.size()) - 1);
    row = path.ended ? kNone : FindChild(rows, row, token);
  }
  return path;
}

}  // namespace paceline

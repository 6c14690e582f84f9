#include "worker/spec/ngram_drafter.h"

#include <algorithm>

#include "common/check.h"
#include "common/hash.h"
#include "worker/types/step_plan.h"

namespace paceline {
namespace {

// Links followed to find alternatives, so that a common pair of tokens costs no more than a rare
// one.
constexpr int kMaxHops = 32;

}  // namespace

NgramDrafter::NgramDrafter(int32_t min_n, int32_t max_n) : min_n_(min_n), max_n_(max_n) {
  CHECK(min_n >= 1 && min_n <= max_n);
}

uint64_t NgramDrafter::Key(int32_t n, std::span<const TokenId> last) const {
  return HashTokens(last.last(n), static_cast<uint64_t>(n));
}

// An n-gram is entered when its successor is known, so the sequence's own tail is never found.
void NgramDrafter::Append(std::span<const TokenId> tokens) {
  for (TokenId token : tokens) {
    const int32_t index = static_cast<int32_t>(tokens_.size());
    earlier_.push_back(kNone);
    for (int32_t n = min_n_; n <= std::min(max_n_, index); ++n) {
      const auto [it, fresh] = followers_.try_emplace(Key(n, tokens_), index);
      if (!fresh) {
        if (n == min_n_) earlier_[index] = it->second;
        it->second = index;
      }
    }
    tokens_.push_back(token);
  }
}

// Whether the tokens before index `end` are `last`: hashes may collide.
bool NgramDrafter::Matches(int32_t end, std::span<const TokenId> last) const {
  return std::equal(last.begin(), last.end(), tokens_.begin() + (end - last.size()));
}

// Index of the token that followed the longest known n-gram at the end of `tail`, or kNone.
int32_t NgramDrafter::Find(std::span<const TokenId> tail) const {
  for (int32_t n = std::min<int32_t>(max_n_, tail.size()); n >= min_n_; --n) {
    const auto it = followers_.find(Key(n, tail));
    if (it != followers_.end() && Matches(it->second, tail.last(n))) return it->second;
  }
  return kNone;
}

std::vector<TokenId> NgramDrafter::Draft(int32_t count, std::span<const TokenId> draft) const {
  if (count <= 0) return {};
  const size_t own = std::min<size_t>(tokens_.size(), max_n_);
  std::vector<TokenId> tail(tokens_.end() - own, tokens_.end());
  tail.insert(tail.end(), draft.begin(), draft.end());
  const int32_t follower = Find(tail);
  if (follower == kNone) return {};
  std::vector<TokenId> drafted;
  for (size_t i = follower; static_cast<int32_t>(drafted.size()) < count; ++i) {
    if (i < tokens_.size()) {
      drafted.push_back(tokens_[i]);
    } else if (i < tokens_.size() + draft.size()) {
      drafted.push_back(draft[i - tokens_.size()]);
    } else {
      drafted.push_back(drafted[i - tokens_.size() - draft.size()]);
    }
  }
  return drafted;
}

std::vector<TokenId> NgramDrafter::Alternatives(int32_t count) const {
  std::vector<TokenId> found;
  const auto add = [&](int32_t follower) {
    const TokenId token = tokens_[follower];
    if (std::ranges::find(found, token) == found.end()) found.push_back(token);
  };
  const std::span<const TokenId> all = tokens_;
  const auto full = [&] { return static_cast<int32_t>(found.size()) >= count; };
  for (int32_t n = std::min<int32_t>(max_n_, all.size()); n >= min_n_ && !full(); --n) {
    const auto it = followers_.find(Key(n, all));
    if (it == followers_.end() || !Matches(it->second, all.last(n))) continue;
    add(it->second);
    if (n > min_n_) continue;
    int32_t follower = earlier_[it->second];
    for (int hops = 0; follower != kNone && hops < kMaxHops && !full(); ++hops) {
      if (!Matches(follower, all.last(n))) break;
      add(follower);
      follower = earlier_[follower];
    }
  }
  return found;
}

}  // namespace paceline

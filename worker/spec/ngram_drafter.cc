#include "worker/spec/ngram_drafter.h"

#include <algorithm>

#include "common/check.h"
#include "worker/types/step_plan.h"

namespace paceline {
namespace {

// Occurrences looked at, so that a common pair of tokens costs no more than a rare one.
constexpr int kMaxHops = 128;
constexpr size_t kFirstSlots = 64;

}  // namespace

NgramDrafter::NgramDrafter(int32_t min_n, int32_t max_n) : min_n_(min_n), max_n_(max_n) {
  CHECK(min_n >= 1 && min_n <= max_n);
}

// Of the last min_n of these tokens.
size_t NgramDrafter::Slot(std::span<const TokenId> tokens) const {
  uint64_t hash = 0;
  for (TokenId token : tokens.last(min_n_)) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0x9e3779b97f4a7c15ull;
    hash ^= hash >> 32;
  }
  return hash & (newest_.size() - 1);
}

// A successor is entered when it is known, so the sequence's own tail is never found.
void NgramDrafter::Link(int32_t follower) {
  int32_t& newest = newest_[Slot(std::span(tokens_).first(follower))];
  earlier_[follower] = newest;
  newest = follower;
}

void NgramDrafter::Grow() {
  newest_.assign(std::max(kFirstSlots, newest_.size() * 2), kNone);
  for (int32_t i = min_n_; i < static_cast<int32_t>(tokens_.size()); ++i) Link(i);
}

void NgramDrafter::Append(std::span<const TokenId> tokens) {
  for (TokenId token : tokens) {
    const int32_t index = static_cast<int32_t>(tokens_.size());
    tokens_.push_back(token);
    earlier_.push_back(kNone);
    if (tokens_.size() * 2 > newest_.size()) {
      Grow();
    } else if (index >= min_n_) {
      Link(index);
    }
  }
}

// Tokens before `follower` that equal the end of the tail.
int32_t NgramDrafter::MatchLen(int32_t follower, std::span<const TokenId> tail) const {
  const int32_t most = std::min<int32_t>({max_n_, follower, static_cast<int32_t>(tail.size())});
  int32_t n = 0;
  while (n < most && tokens_[follower - 1 - n] == tail[tail.size() - 1 - n]) ++n;
  return n;
}

template <typename Use>
void NgramDrafter::Walk(std::span<const TokenId> tail, Use use) const {
  if (newest_.empty() || static_cast<int32_t>(tail.size()) < min_n_) return;
  int32_t follower = newest_[Slot(tail)];
  for (int hops = 0; follower != kNone && hops < kMaxHops; ++hops) {
    const int32_t n = MatchLen(follower, tail);
    if (n >= min_n_ && !use(follower, n)) return;
    follower = earlier_[follower];
  }
}

std::vector<TokenId> NgramDrafter::Draft(int32_t count, std::span<const TokenId> draft) const {
  if (count <= 0) return {};
  const size_t own = std::min<size_t>(tokens_.size(), max_n_);
  std::vector<TokenId> tail(tokens_.end() - own, tokens_.end());
  tail.insert(tail.end(), draft.begin(), draft.end());
  int32_t follower = kNone;
  int32_t best = 0;
  Walk(tail, [&](int32_t found, int32_t n) {
    if (n > best) {
      follower = found;
      best = n;
    }
    return best < max_n_;
  });
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
  std::vector<std::pair<int32_t, TokenId>> found;  // match length, token
  Walk(tokens_, [&](int32_t follower, int32_t n) {
    const auto same =
        std::ranges::find(found, tokens_[follower], &std::pair<int32_t, TokenId>::second);
    if (same == found.end()) {
      found.emplace_back(n, tokens_[follower]);
    } else {
      same->first = std::max(same->first, n);
    }
    return true;
  });
  std::ranges::stable_sort(found, std::greater<>(), &std::pair<int32_t, TokenId>::first);
  std::vector<TokenId> tokens;
  for (const auto& [n, token] : found) {
    if (static_cast<int32_t>(tokens.size()) < count) tokens.push_back(token);
  }
  return tokens;
}

}  // namespace paceline

#include "worker/spec/proposal_shelf.h"

#include <algorithm>
#include <utility>

namespace paceline {
namespace {

constexpr size_t kMaxAhead = 64;  // branches of one planned step

size_t TotalTokens(const DraftProposal& proposal) {
  size_t total = 0;
  for (const DraftBranch& branch : proposal.branches) total += branch.tokens.size();
  return total;
}

}  // namespace

void ProposalShelf::Clear() {
  num_told_ = 0;
  proposals_.clear();
  newest_base_ = judged_base_ = kNone;
}

void ProposalShelf::Told(int32_t base_len, std::span<const TokenId> in_flight) {
  if (base_len < newest_told()) return;
  if (base_len > newest_told()) ++num_told_;
  Base& newest = told_[(num_told_ - 1) % kMaxTold];
  newest.base_len = base_len;
  newest.in_flight.assign(in_flight.begin(), in_flight.end());
}

// Length of a branch as a chain behind its base.
int32_t ProposalShelf::Size(const Shelved& shelved, const DraftBranch& branch) {
  const int32_t tokens = static_cast<int32_t>(branch.tokens.size());
  return shelved.proposal.kind == ProposalKind::kChain ? tokens : branch.accepted + 1 + tokens;
}

TokenId ProposalShelf::At(const Shelved& shelved, const DraftBranch& branch, int32_t i) {
  if (shelved.proposal.kind == ProposalKind::kChain) return branch.tokens[i];
  if (i < branch.accepted) return shelved.in_flight[i];
  return i == branch.accepted ? branch.next : branch.tokens[i - branch.accepted - 1];
}

void ProposalShelf::Erase(size_t index) {
  if (!proposals_[index].used) ++stale_;
  proposals_.erase(proposals_.begin() + static_cast<std::ptrdiff_t>(index));
}

void ProposalShelf::Add(DraftProposal proposal) {
  const auto known = std::span(told_).first(std::min(num_told_, kMaxTold));
  const auto told = std::ranges::find(known, proposal.base_len, &Base::base_len);
  if (told == known.end()) {
    ++stale_;
    return;
  }
  newest_base_ = std::max(newest_base_, proposal.base_len);
  Shelved shelved{.in_flight = told->in_flight, .checked = proposal.base_len};
  if (proposal.kind == ProposalKind::kEnumerated) {
    const int32_t most = static_cast<int32_t>(shelved.in_flight.size());
    std::erase_if(proposal.branches, [&](const DraftBranch& b) { return b.accepted > most; });
  }
  for (size_t i = 0; i < proposals_.size(); ++i) {
    const DraftProposal& older = proposals_[i].proposal;
    if (older.base_len != proposal.base_len || older.kind != proposal.kind) continue;
    if (TotalTokens(older) > TotalTokens(proposal)) return;
    shelved.used = proposals_[i].used;
    proposals_[i].used = true;  // it lives on in what replaces it
    Erase(i);
    break;
  }
  if (proposals_.size() >= kMaxProposals) {
    const auto oldest = std::ranges::min_element(
        proposals_, {}, [](const Shelved& s) { return s.proposal.base_len; });
    Erase(static_cast<size_t>(oldest - proposals_.begin()));
  }
  shelved.proposal = std::move(proposal);
  proposals_.push_back(std::move(shelved));
}

ProposalShelf::Passed ProposalShelf::Advance(std::span<const TokenId> tokens) {
  Passed passed;
  const int32_t len = static_cast<int32_t>(tokens.size());
  for (size_t i = 0; i < proposals_.size();) {
    Shelved& s = proposals_[i];
    const int32_t base = s.proposal.base_len;
    // Once per base: frames may come twice.
    const bool first = base > judged_base_ && len > base;
    std::erase_if(s.proposal.branches, [&](const DraftBranch& branch) {
      if (Size(s, branch) <= len - base) return true;
      for (int32_t at = s.checked; at < len; ++at) {
        if (At(s, branch, at - base) != tokens[at]) return true;
      }
      return false;
    });
    s.checked = std::max(s.checked, len);
    const bool agrees = !s.proposal.branches.empty();
    if (first && s.proposal.kind == ProposalKind::kEnumerated) {
      ++(agrees ? passed.hits : passed.misses);
      judged_base_ = base;
    }
    if (agrees) {
      ++i;
    } else {
      Erase(i);
    }
  }
  passed.stale = std::exchange(stale_, 0);
  return passed;
}

void ProposalShelf::Gather(int32_t len, std::vector<Chain>* chains) {
  for (Shelved& s : proposals_) {
    if (s.checked != len) continue;
    for (const DraftBranch& branch : s.proposal.branches) {
      const int32_t left = Size(s, branch) - (len - s.proposal.base_len);
      if (left > 0) chains->push_back({.of = &s, .branch = &branch, .left = left});
    }
  }
}

std::vector<TokenId> ProposalShelf::Copy(const Chain& chain, int32_t len, int32_t count) const {
  const int32_t from = len - chain.of->proposal.base_len;
  std::vector<TokenId> tokens(std::min(count, chain.left));
  for (int32_t i = 0; i < static_cast<int32_t>(tokens.size()); ++i) {
    tokens[i] = At(*chain.of, *chain.branch, from + i);
  }
  return tokens;
}

std::vector<TokenId> ProposalShelf::Longest(int32_t len, int32_t count) {
  Chain best;
  for (Shelved& s : proposals_) {
    if (s.checked != len) continue;
    for (const DraftBranch& branch : s.proposal.branches) {
      const int32_t left = std::min(count, Size(s, branch) - (len - s.proposal.base_len));
      const bool newer = best.of != nullptr && s.proposal.base_len > best.of->proposal.base_len;
      if (left > best.left || (left == best.left && newer)) best = {&s, &branch, left};
    }
  }
  if (best.of == nullptr) return {};
  best.of->used = true;
  return Copy(best, len, count);
}

std::vector<std::vector<TokenId>> ProposalShelf::Chains(int32_t len, int32_t count, size_t most) {
  std::vector<Chain> chains;
  Gather(len, &chains);
  std::ranges::stable_sort(chains, std::greater<>(), [](const Chain& c) {
    return std::pair(c.left, c.of->proposal.base_len);
  });
  if (chains.size() > most) chains.resize(most);
  std::vector<std::vector<TokenId>> copies;
  for (const Chain& chain : chains) {
    chain.of->used = true;
    copies.push_back(Copy(chain, len, count));
  }
  return copies;
}

std::vector<PlannedBranch> ProposalShelf::Ahead(int32_t len, std::span<const TokenId> in_flight,
                                                int32_t count) {
  std::vector<Chain> chains;
  Gather(len, &chains);
  std::vector<PlannedBranch> branches;
  const int32_t verified = static_cast<int32_t>(in_flight.size());
  for (const Chain& chain : chains) {
    const int32_t from = len - chain.of->proposal.base_len;
    int32_t accepted = 0;
    while (accepted < std::min(verified, chain.left) &&
           At(*chain.of, *chain.branch, from + accepted) == in_flight[accepted]) {
      ++accepted;
    }
    const int32_t left = std::min(count, chain.left - accepted - 1);
    if (left <= 0) continue;
    const TokenId next = At(*chain.of, *chain.branch, from + accepted);
    const auto same = std::ranges::find_if(
        branches, [&](const PlannedBranch& b) { return b.accepted == accepted && b.next == next; });
    if (same != branches.end() && static_cast<int32_t>(same->tokens.size()) >= left) continue;
    if (same == branches.end() && branches.size() >= kMaxAhead) continue;
    PlannedBranch& branch = same != branches.end() ? *same : branches.emplace_back();
    branch.accepted = accepted;
    branch.next = next;
    branch.tokens.resize(left);
    for (int32_t i = 0; i < left; ++i) {
      branch.tokens[i] = At(*chain.of, *chain.branch, from + accepted + 1 + i);
    }
    chain.of->used = true;
  }
  return branches;
}

}  // namespace paceline

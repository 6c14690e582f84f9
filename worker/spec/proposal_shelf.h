// What a drafter has proposed for one sequence and is not used up: chains that continue a base told
// to it. An outcome of a verify is a chain too: the accepted part of what was in flight, the token
// that followed, and the drafts behind it. So a proposal from behind is of use as far as its first
// tokens equal what was committed since. Engine thread only.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "common/types/draft_messages.h"
#include "worker/types/step_plan.h"

namespace paceline {

class ProposalShelf {
 public:
  static constexpr size_t kMaxProposals = 4;
  static constexpr size_t kMaxTold = 8;  // older bases are of no use any more

  void Clear();

  // The drafter was told this base and what is verified behind it; said again, the newest holds.
  void Told(int32_t base_len, std::span<const TokenId> in_flight);

  // A proposal that the mailbox let pass. Replaces a shorter one of its base and kind.
  void Add(DraftProposal proposal);

  struct Passed {
    int32_t hits = 0;    // enumerations that foresaw what was committed
    int32_t misses = 0;  // and those that did not
    int32_t stale = 0;   // proposals that went unused
  };
  // The sequence is these tokens now: chains that disagree or have nothing left go.
  Passed Advance(std::span<const TokenId> tokens);

  // After Advance, for a sequence of this length: at most `count` tokens of the longest chain;
  // between equals, of the newest base.
  std::vector<TokenId> Longest(int32_t len, int32_t count);
  // The `most` longest chains, the longest first.
  std::vector<std::vector<TokenId>> Chains(int32_t len, int32_t count, size_t most);
  // Chains cut by the outcome of `in_flight`, which is verified behind `len`: one branch per
  // outcome, each with at most `count` tokens.
  std::vector<PlannedBranch> Ahead(int32_t len, std::span<const TokenId> in_flight, int32_t count);

  bool empty() const { return proposals_.empty(); }
  // The newest base for which anything has come; kNone if nothing has.
  int32_t newest_base() const { return newest_base_; }
  int32_t newest_told() const { return num_told_ == 0 ? kNone : Newest().base_len; }

 private:
  struct Base {
    int32_t base_len = 0;
    std::vector<TokenId> in_flight;
  };
  struct Shelved {
    DraftProposal proposal;
    std::vector<TokenId> in_flight;
    int32_t checked = 0;  // tokens of the sequence that its branches are known to agree with
    bool used = false;
  };
  struct Chain {
    Shelved* of = nullptr;
    const DraftBranch* branch = nullptr;
    int32_t left = 0;  // tokens behind the sequence
  };

  const Base& Newest() const { return told_[(num_told_ - 1) % kMaxTold]; }
  static int32_t Size(const Shelved& shelved, const DraftBranch& branch);
  static TokenId At(const Shelved& shelved, const DraftBranch& branch, int32_t i);
  std::vector<TokenId> Copy(const Chain& chain, int32_t len, int32_t count) const;
  void Gather(int32_t len, std::vector<Chain>* chains);
  void Erase(size_t index);

  std::array<Base, kMaxTold> told_;  // a ring, by rising length
  size_t num_told_ = 0;              // since Clear
  std::vector<Shelved> proposals_;
  int32_t newest_base_ = kNone;
  int32_t judged_base_ = kNone;  // whether it was foreseen is known
  int32_t stale_ = 0;            // not yet reported
};

}  // namespace paceline

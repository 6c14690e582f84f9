#include "worker/spec/proposal_shelf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/spec/draft_tree.h"

namespace paceline {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using Tokens = std::vector<TokenId>;

DraftProposal Chain(int32_t base_len, Tokens tokens) {
  return {.base_len = base_len, .branches = {{.tokens = std::move(tokens)}}};
}

DraftProposal Enumerated(int32_t base_len, std::vector<DraftBranch> branches) {
  return {.base_len = base_len, .kind = ProposalKind::kEnumerated, .branches = std::move(branches)};
}

TEST(ProposalShelfTest, AChainFromBehindIsUsedAsFarAsItAgrees) {
  ProposalShelf shelf;
  shelf.Told(2, {});
  shelf.Add(Chain(2, {3, 4, 5, 6}));
  shelf.Advance(Tokens{1, 2});
  EXPECT_THAT(shelf.Longest(2, 3), ElementsAre(3, 4, 5));
  shelf.Advance(Tokens{1, 2, 3, 4});
  EXPECT_THAT(shelf.Longest(4, 8), ElementsAre(5, 6));
  EXPECT_EQ(shelf.Advance(Tokens{1, 2, 3, 4, 9}).stale, 0) << "it was of use";
  EXPECT_TRUE(shelf.empty());
  EXPECT_EQ(shelf.newest_base(), 2);
}

TEST(ProposalShelfTest, OneThatNeverAgreedIsStale) {
  ProposalShelf shelf;
  shelf.Told(2, {});
  shelf.Add(Chain(2, {3, 4}));
  const ProposalShelf::Passed passed = shelf.Advance(Tokens{1, 2, 7});
  EXPECT_EQ(passed.stale, 1);
  EXPECT_EQ(passed.misses, 0) << "a chain foresees nothing";
  EXPECT_THAT(shelf.Longest(3, 4), IsEmpty());
}

TEST(ProposalShelfTest, UsedUpIsNotKept) {
  ProposalShelf shelf;
  shelf.Told(2, {});
  shelf.Add(Chain(2, {3, 4}));
  shelf.Advance(Tokens{1, 2, 3, 4});
  EXPECT_TRUE(shelf.empty());
}

TEST(ProposalShelfTest, TheBranchOfTheOutcome) {
  ProposalShelf shelf;
  const Tokens in_flight = {3, 4};
  shelf.Told(2, in_flight);
  const auto all = [] {
    return Enumerated(2, {{.accepted = 0, .next = 8, .tokens = {20, 21}},
                          {.accepted = 1, .next = 8, .tokens = {30, 31}},
                          {.accepted = 2, .next = 8, .tokens = {40, 41}},
                          {.accepted = 2, .next = 9, .tokens = {50, 51}}});
  };
  struct Case {
    Tokens committed;
    Tokens drafts;
  };
  for (const Case& c :
       {Case{{1, 2, 8}, {20, 21}}, Case{{1, 2, 3, 8}, {30, 31}}, Case{{1, 2, 3, 4, 8}, {40, 41}},
        Case{{1, 2, 3, 4, 9}, {50, 51}}, Case{{1, 2, 3, 7}, {}}}) {
    ProposalShelf fresh;
    fresh.Told(2, in_flight);
    fresh.Add(all());
    const ProposalShelf::Passed passed = fresh.Advance(c.committed);
    EXPECT_EQ(passed.hits, c.drafts.empty() ? 0 : 1);
    EXPECT_EQ(passed.misses, c.drafts.empty() ? 1 : 0);
    EXPECT_EQ(fresh.Longest(static_cast<int32_t>(c.committed.size()), 8), c.drafts);
  }
  // Two steps later the branch is a chain like any other.
  shelf.Add(all());
  shelf.Advance(Tokens{1, 2, 3, 8, 30});
  EXPECT_THAT(shelf.Longest(5, 8), ElementsAre(31));
}

TEST(ProposalShelfTest, AFrameThatComesTwiceCountsOnce) {
  ProposalShelf shelf;
  shelf.Told(2, {});
  const DraftProposal proposal = Enumerated(2, {{.accepted = 0, .next = 8, .tokens = {20, 21}}});
  shelf.Add(proposal);
  EXPECT_EQ(shelf.Advance(Tokens{1, 2, 8}).hits, 1);
  shelf.Add(proposal);
  EXPECT_EQ(shelf.Advance(Tokens{1, 2, 8}).hits, 0);
  EXPECT_THAT(shelf.Longest(3, 8), ElementsAre(20, 21));
}

TEST(ProposalShelfTest, MoreAcceptedThanWasInFlight) {
  ProposalShelf shelf;
  shelf.Told(2, Tokens{3});
  shelf.Add(Enumerated(2, {{.accepted = 2, .next = 8, .tokens = {20}}}));
  shelf.Advance(Tokens{1, 2});
  EXPECT_TRUE(shelf.empty());
}

TEST(ProposalShelfTest, OfABaseNeverTold) {
  ProposalShelf shelf;
  shelf.Told(2, {});
  shelf.Add(Chain(3, {4}));
  EXPECT_TRUE(shelf.empty());
  EXPECT_EQ(shelf.Advance(Tokens{1, 2}).stale, 1);
}

TEST(ProposalShelfTest, LongestThenNewest) {
  ProposalShelf shelf;
  shelf.Told(1, {});
  shelf.Told(2, {});
  shelf.Add(Chain(1, {2, 3, 4, 5}));
  shelf.Add(Chain(2, {7, 8}));
  shelf.Advance(Tokens{1, 2});
  EXPECT_THAT(shelf.Longest(2, 8), ElementsAre(3, 4, 5));
  EXPECT_THAT(shelf.Longest(2, 2), ElementsAre(7, 8));
  EXPECT_THAT(shelf.Chains(2, 8, 4), ElementsAre(ElementsAre(3, 4, 5), ElementsAre(7, 8)));
  EXPECT_THAT(shelf.Chains(2, 8, 1), SizeIs(1));
}

TEST(ProposalShelfTest, AheadAChainIsOneOutcome) {
  ProposalShelf shelf;
  shelf.Told(2, {});
  shelf.Add(Chain(2, {3, 4, 5, 6, 7}));
  shelf.Advance(Tokens{1, 2});
  const auto one = [&](const Tokens& in_flight) {
    const auto branches = shelf.Ahead(2, in_flight, 2);
    EXPECT_THAT(branches, SizeIs(1));
    return branches.at(0);
  };
  EXPECT_EQ(one({}).accepted, 0);
  EXPECT_EQ(one({}).next, 3);
  EXPECT_THAT(one({}).tokens, ElementsAre(4, 5));
  EXPECT_EQ(one({3, 4}).accepted, 2);
  EXPECT_EQ(one({3, 4}).next, 5);
  EXPECT_THAT(one({3, 4}).tokens, ElementsAre(6, 7));
  EXPECT_EQ(one({3, 9, 9}).accepted, 1);
  EXPECT_EQ(one({3, 9, 9}).next, 4);
  EXPECT_THAT(shelf.Ahead(2, Tokens{3, 4, 5, 6}, 2), IsEmpty()) << "nothing is left behind 7";
}

TEST(ProposalShelfTest, AheadAnEnumerationIsAllOutcomes) {
  ProposalShelf shelf;
  const Tokens in_flight = {3, 4};
  shelf.Told(2, in_flight);
  shelf.Add(Enumerated(2, {{.accepted = 0, .next = 8, .tokens = {20, 21, 22}},
                           {.accepted = 2, .next = 8, .tokens = {40}},
                           {.accepted = 2, .next = 9, .tokens = {50, 51}}}));
  shelf.Advance(Tokens{1, 2});
  const auto branches = shelf.Ahead(2, in_flight, 2);
  ASSERT_THAT(branches, SizeIs(3));
  EXPECT_EQ(branches[0].accepted, 0);
  EXPECT_THAT(branches[0].tokens, ElementsAre(20, 21));
  EXPECT_EQ(branches[2].accepted, 2);
  EXPECT_EQ(branches[2].next, 9);
}

TEST(ProposalShelfTest, FewAreKept) {
  ProposalShelf shelf;
  for (int32_t base = 1; base <= 6; ++base) {
    shelf.Told(base, {});
    shelf.Add(Chain(base, {9}));
  }
  EXPECT_EQ(shelf.Advance(Tokens{1}).stale, 2);
}

TEST(DraftTreeTest, ChainsShareTheirBeginnings) {
  DraftTree tree(8);
  tree.Add(Tokens{1, 2, 3});
  tree.Add(Tokens{1, 2, 4});
  tree.Add(Tokens{5});
  tree.Add(Tokens{1, 2});
  EXPECT_THAT(tree.tokens(), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(tree.parents(), ElementsAre(kNone, 0, 1, 1, kNone));
  EXPECT_EQ(tree.depth(), 3);
}

TEST(DraftTreeTest, RowsEnd) {
  DraftTree tree(3);
  tree.Add(Tokens{1, 2});
  tree.Add(Tokens{4, 5, 6});
  EXPECT_THAT(tree.tokens(), ElementsAre(1, 2, 4));
  EXPECT_THAT(tree.parents(), ElementsAre(kNone, 0, kNone));
  tree.Add({});
  EXPECT_EQ(tree.size(), 3);
}

}  // namespace
}  // namespace paceline

// The verifier's algebra, exhaustively: for a target that is any function from prefixes to tokens,
// and for every draft, the tokens emitted round by round are those of decoding one by one.
#include "worker/runner/accept.h"

#include <algorithm>
#include <cstdlib>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace paceline {
namespace {

using testing::ElementsAre;

std::function<bool(TokenId, int32_t)> Never() {
  return [](TokenId, int32_t) { return false; };
}

// A target over a small alphabet: bit patterns of `code` choose the token behind each prefix of at
// most `depth` tokens, so that all codes are all such targets.
struct ToyTarget {
  int64_t code = 0;
  int32_t letters = 2;
  int32_t depth = 3;

  TokenId Next(const std::vector<TokenId>& prefix) const {
    int64_t index = 0;  // of the prefix among those of up to `depth` letters
    const size_t begin = prefix.size() > static_cast<size_t>(depth) ? prefix.size() - depth : 0;
    for (size_t i = begin; i < prefix.size(); ++i) index = index * letters + 1 + prefix[i];
    int64_t digits = code;
    for (int64_t i = 0; i < index; ++i) digits /= letters;
    return static_cast<TokenId>(digits % letters);
  }
  static int64_t Prefixes(int32_t letters, int32_t depth) {
    int64_t count = 0, power = 1;
    for (int32_t d = 0; d <= depth; ++d, power *= letters) count += power;
    return count;
  }
  std::vector<TokenId> Decode(size_t count) const {
    std::vector<TokenId> tokens;
    while (tokens.size() < count) tokens.push_back(Next(tokens));
    return tokens;
  }
};

// Row 0 is the newest token; the target's token at each row follows from the row's path.
std::vector<TokenId> SampleRows(const ToyTarget& target, const std::vector<Row>& rows,
                                const std::vector<TokenId>& before) {
  std::vector<TokenId> sampled;
  for (int32_t r = 0; r < static_cast<int32_t>(rows.size()); ++r) {
    std::vector<TokenId> path;
    for (int32_t at = r; at > 0; at = rows[at].parent) path.push_back(rows[at].token);
    std::vector<TokenId> prefix = before;
    prefix.insert(prefix.end(), path.rbegin(), path.rend());
    sampled.push_back(target.Next(prefix));
  }
  return sampled;
}

// Every set of drafts with these parents, against one target.
void TryAllTokens(const ToyTarget& target, const std::vector<int32_t>& parents) {
  int64_t all = 1;
  for (size_t i = 0; i < parents.size(); ++i) all *= target.letters;
  const std::vector<TokenId> truth = target.Decode(parents.size() + 3);
  for (int64_t draft = 0; draft < all; ++draft) {
    std::vector<Row> rows(1);
    int64_t digits = draft;
    for (int32_t parent : parents) {
      rows.push_back({.token = static_cast<TokenId>(digits % target.letters), .parent = parent});
      digits /= target.letters;
    }
    for (size_t emitted = 0; emitted < 2; ++emitted) {
      const std::vector<TokenId> before(truth.begin(), truth.begin() + emitted);
      const AcceptPath path = Accept(rows, SampleRows(target, rows, before), Never());
      ASSERT_EQ(path.rows.size(), path.tokens.size());
      ASSERT_EQ(path.rows[0], 0);
      ASSERT_LE(emitted + path.tokens.size(), truth.size());
      ASSERT_TRUE(std::equal(path.tokens.begin(), path.tokens.end(), truth.begin() + emitted))
          << "target " << target.code << ", draft " << draft;
      for (size_t k = 1; k < path.rows.size(); ++k) {
        ASSERT_EQ(rows[path.rows[k]].parent, path.rows[k - 1]);
        ASSERT_EQ(rows[path.rows[k]].token, path.tokens[k - 1]);
      }
      // It stops only where no child has the token.
      for (size_t r = 1; r < rows.size(); ++r) {
        ASSERT_FALSE(rows[r].parent == path.rows.back() && rows[r].token == path.tokens.back());
      }
    }
  }
}

// Every tree: each draft's parent is row 0 or an earlier draft.
void ForAllTrees(int32_t drafts, std::vector<int32_t>* parents,
                 const std::function<void(const std::vector<int32_t>&)>& fn) {
  if (static_cast<int32_t>(parents->size()) == drafts) return fn(*parents);
  for (int32_t parent = 0; parent <= static_cast<int32_t>(parents->size()); ++parent) {
    parents->push_back(parent);
    ForAllTrees(drafts, parents, fn);
    parents->pop_back();
  }
}

int64_t Power(int64_t base, int64_t exponent) {
  return exponent == 0 ? 1 : base * Power(base, exponent - 1);
}

// Of so many targets one is tried: all, but under the sanitizers.
int64_t Stride() { return std::getenv("PACELINE_SANITIZED") != nullptr ? 11 : 1; }

TEST(AcceptTest, EveryTreeAgainstEveryTargetOfTwoLetters) {
  const int64_t targets = Power(2, ToyTarget::Prefixes(2, 2));
  for (int32_t drafts = 0; drafts <= 4; ++drafts) {
    std::vector<int32_t> parents;
    ForAllTrees(drafts, &parents, [&](const std::vector<int32_t>& tree) {
      for (int64_t code = 0; code < targets; code += Stride()) {
        TryAllTokens({.code = code, .letters = 2, .depth = 2}, tree);
        if (testing::Test::HasFatalFailure()) return;
      }
    });
  }
}

TEST(AcceptTest, EveryTreeAgainstEveryTargetOfThreeLetters) {
  const int64_t targets = Power(3, ToyTarget::Prefixes(3, 1));
  for (int32_t drafts = 0; drafts <= 4; ++drafts) {
    std::vector<int32_t> parents;
    ForAllTrees(drafts, &parents, [&](const std::vector<int32_t>& tree) {
      for (int64_t code = 0; code < targets; code += Stride()) {
        TryAllTokens({.code = code, .letters = 3, .depth = 1}, tree);
        if (testing::Test::HasFatalFailure()) return;
      }
    });
  }
}

TEST(AcceptTest, EveryLongChainAgainstEveryTarget) {
  for (int64_t code = 0; code < Power(2, ToyTarget::Prefixes(2, 3)); code += 7 * Stride()) {
    TryAllTokens({.code = code, .letters = 2, .depth = 3}, {0, 1, 2, 3, 4, 5});
    if (HasFatalFailure()) return;
  }
}

// Whatever the draft, a walk that may end emits what decoding with the same end emits.
TEST(AcceptTest, EveryEnd) {
  const ToyTarget target{.code = 0b1011010, .letters = 2, .depth = 2};
  const std::vector<TokenId> truth = target.Decode(8);
  std::vector<Row> rows(1);
  for (int32_t i = 0; i < 5; ++i) rows.push_back({.token = truth[i], .parent = i});
  const std::vector<TokenId> sampled = SampleRows(target, rows, {});
  for (int32_t end = 0; end <= 6; ++end) {
    const AcceptPath path =
        Accept(rows, sampled, [&](TokenId, int32_t index) { return index == end; });
    const size_t count = std::min(end + 1, 6);
    EXPECT_EQ(path.tokens, std::vector<TokenId>(truth.begin(), truth.begin() + count));
    EXPECT_EQ(path.ended, end < 6);
  }
}

TEST(AcceptTest, TheFirstOfEqualChildrenWins) {
  const std::vector<Row> rows = {{.token = 9},
                                 {.token = 5, .parent = 0},
                                 {.token = 5, .parent = 0},
                                 {.token = 6, .parent = 2}};
  const AcceptPath path = Accept(rows, std::vector<TokenId>{5, 6, 6, 1}, Never());
  EXPECT_THAT(path.rows, ElementsAre(0, 1));
  EXPECT_THAT(path.tokens, ElementsAre(5, 6));
}

TEST(AcceptTest, ADraftThatEndedTheSampleIsNotFollowed) {
  const std::vector<Row> rows = {
      {.token = 9}, {.token = 5, .parent = 0}, {.token = 6, .parent = 1}};
  const AcceptPath path = Accept(rows, std::vector<TokenId>{5, 6, 7},
                                 [](TokenId token, int32_t) { return token == 5; });
  EXPECT_THAT(path.rows, ElementsAre(0));
  EXPECT_THAT(path.tokens, ElementsAre(5));
  EXPECT_TRUE(path.ended);
}

}  // namespace
}  // namespace paceline

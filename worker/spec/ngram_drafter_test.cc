#include "worker/spec/ngram_drafter.h"

#include <random>

#include <gtest/gtest.h>

namespace paceline {
namespace {

// Searches all earlier occurrences, longest n first, newest first.
std::vector<TokenId> NaiveDraft(std::vector<TokenId> all, int32_t indexed, int32_t min_n,
                                int32_t max_n, int32_t count) {
  for (int32_t n = max_n; n >= min_n; --n) {
    if (static_cast<int32_t>(all.size()) < n) continue;
    for (int32_t follower = indexed - 1; follower >= n; --follower) {
      if (!std::equal(all.end() - n, all.end(), all.begin() + follower - n)) continue;
      std::vector<TokenId> drafted;
      for (int32_t i = follower; static_cast<int32_t>(drafted.size()) < count; ++i) {
        drafted.push_back(all[i]);
        all.push_back(all[i]);  // what is drafted counts as text behind the end
      }
      return drafted;
    }
  }
  return {};
}

TEST(NgramDrafterTest, EqualsNaiveSearch) {
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    std::mt19937 random(seed);
    const int32_t vocab = 2 + seed % 7;
    const int32_t min_n = 1 + seed % 3;
    const int32_t max_n = min_n + seed % 4;
    NgramDrafter drafter(min_n, max_n);
    std::vector<TokenId> all;
    for (int step = 0; step < 80; ++step) {
      std::vector<TokenId> more(random() % 4);
      for (TokenId& t : more) t = random() % vocab;
      drafter.Append(more);
      all.insert(all.end(), more.begin(), more.end());
      const int32_t count = random() % 9;
      ASSERT_EQ(drafter.Draft(count), NaiveDraft(all, all.size(), min_n, max_n, count))
          << "seed " << seed << " step " << step;
      std::vector<TokenId> behind(random() % 4);
      for (TokenId& t : behind) t = random() % vocab;
      std::vector<TokenId> joined = all;
      joined.insert(joined.end(), behind.begin(), behind.end());
      ASSERT_EQ(drafter.Draft(count, behind), NaiveDraft(joined, all.size(), min_n, max_n, count))
          << "seed " << seed << " step " << step << " behind a draft";
    }
  }
}

TEST(NgramDrafterTest, ContinuesAPeriod) {
  NgramDrafter drafter;
  drafter.Append(std::vector<TokenId>{9, 1, 2, 3, 1, 2});
  EXPECT_EQ(drafter.Draft(7), (std::vector<TokenId>{3, 1, 2, 3, 1, 2, 3}));
}

TEST(NgramDrafterTest, LongestMatchBeatsNewest) {
  NgramDrafter drafter(1, 3);
  drafter.Append(std::vector<TokenId>{1, 2, 3, 40, 9, 3, 50, 1, 2, 3});
  EXPECT_EQ(drafter.Draft(1), (std::vector<TokenId>{40}));
  EXPECT_EQ(drafter.Alternatives(4), (std::vector<TokenId>{40, 50}));
}

TEST(NgramDrafterTest, NothingToFind) {
  NgramDrafter drafter;
  EXPECT_TRUE(drafter.Draft(4).empty());
  drafter.Append(std::vector<TokenId>{1, 2, 3, 4});
  EXPECT_TRUE(drafter.Draft(4).empty());
  EXPECT_TRUE(drafter.Draft(0).empty());
  EXPECT_TRUE(drafter.Alternatives(3).empty());
}

}  // namespace
}  // namespace paceline

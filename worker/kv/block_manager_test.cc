#include "worker/kv/block_manager.h"

#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace paceline {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

std::vector<TokenId> Count(TokenId first, int32_t n) {
  std::vector<TokenId> tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

BlockManagerOptions Options(int32_t num_blocks, int32_t block_size = 4) {
  return {.num_blocks = num_blocks, .block_size = block_size, .model_fingerprint = "m"};
}

// A table whose blocks hold `tokens` and are published.
BlockTable Prefill(BlockManager* pool, const std::vector<TokenId>& tokens,
                   std::string_view salt = "") {
  BlockTable table;
  pool->MatchPrefix(tokens, salt, &table);
  EXPECT_TRUE(pool->Reserve(&table, static_cast<int32_t>(tokens.size())));
  pool->SetLive(&table, static_cast<int32_t>(tokens.size()));
  pool->Publish(tokens, static_cast<int32_t>(tokens.size()), salt, &table);
  return table;
}

int32_t Hits(BlockManager* pool, const std::vector<TokenId>& tokens, std::string_view salt = "") {
  BlockTable table;
  const int32_t hits = pool->MatchPrefix(tokens, salt, &table);
  pool->Release(&table);
  return hits;
}

TEST(BlockManagerTest, ReserveIsAllOrNothing) {
  BlockManager pool(Options(4));
  BlockTable table;
  EXPECT_TRUE(pool.Reserve(&table, 9));
  EXPECT_EQ(table.blocks.size(), 3u);
  EXPECT_FALSE(pool.Reserve(&table, 17));
  EXPECT_EQ(table.blocks.size(), 3u);
  EXPECT_EQ(pool.counters().alloc_failures, 1u);
  EXPECT_TRUE(pool.Reserve(&table, 16));
  pool.Shrink(&table, 5);
  EXPECT_EQ(pool.num_available(), 2);
  pool.Release(&table);
  EXPECT_EQ(pool.num_available(), 4);
}

TEST(BlockManagerTest, AHitLeavesOneTokenToCompute) {
  BlockManager pool(Options(8));
  BlockTable table = Prefill(&pool, Count(0, 8));
  pool.Release(&table);
  EXPECT_EQ(Hits(&pool, Count(0, 8)), 4);
  EXPECT_EQ(Hits(&pool, Count(0, 9)), 8);
  EXPECT_EQ(Hits(&pool, Count(0, 4)), 0);
  EXPECT_EQ(Hits(&pool, {}), 0);
}

TEST(BlockManagerTest, SaltsAndModelsShareNothing) {
  BlockManager pool(Options(8));
  BlockTable table = Prefill(&pool, Count(0, 8), "a");
  pool.Release(&table);
  EXPECT_EQ(Hits(&pool, Count(0, 9), "a"), 8);
  EXPECT_EQ(Hits(&pool, Count(0, 9), "b"), 0);
  EXPECT_EQ(Hits(&pool, Count(0, 9)), 0);
}

TEST(BlockManagerTest, PartOfABlockIsNeverPublished) {
  BlockManager pool(Options(8));
  BlockTable table = Prefill(&pool, Count(0, 7));
  EXPECT_EQ(table.num_published, 1);
  pool.Release(&table);
  EXPECT_EQ(pool.occupancy().cached_blocks, 1);
  EXPECT_EQ(pool.occupancy().free_blocks, 7);
}

TEST(BlockManagerTest, WithoutAPrefixCacheNothingIsKept) {
  BlockManagerOptions options = Options(8);
  options.prefix_cache = false;
  BlockManager pool(options);
  BlockTable table = Prefill(&pool, Count(0, 8));
  pool.Release(&table);
  EXPECT_EQ(Hits(&pool, Count(0, 9)), 0);
  EXPECT_EQ(pool.occupancy().free_blocks, 8);
}

TEST(BlockManagerTest, EvictsTheLeastRecentlyUsedAndChildrenFirst) {
  BlockManager pool(Options(4));
  BlockTable old = Prefill(&pool, Count(0, 8));
  BlockTable young = Prefill(&pool, Count(100, 8));
  pool.Release(&old);
  pool.Release(&young);
  EXPECT_EQ(Hits(&pool, Count(0, 9)), 8);  // now the younger of the two
  BlockTable table;
  ASSERT_TRUE(pool.Reserve(&table, 4));
  EXPECT_EQ(pool.counters().evictions, 1u);
  EXPECT_EQ(Hits(&pool, Count(0, 9)), 8);
  EXPECT_EQ(Hits(&pool, Count(100, 9)), 4);
  pool.Release(&table);
}

TEST(BlockManagerTest, TaggedBlocksGoLastButDoGo) {
  BlockManager pool(Options(4));
  BlockTable kept = Prefill(&pool, Count(0, 8));
  pool.Tag("s", kept, TimePoint(seconds(10)));
  pool.Release(&kept);
  BlockTable other = Prefill(&pool, Count(100, 8));
  pool.Release(&other);
  BlockTable table;
  ASSERT_TRUE(pool.Reserve(&table, 8));
  EXPECT_EQ(Hits(&pool, Count(0, 9)), 8);
  EXPECT_EQ(Hits(&pool, Count(100, 9)), 0);
  ASSERT_TRUE(pool.Reserve(&table, 16));  // short: tags do not wedge the pool
  EXPECT_EQ(Hits(&pool, Count(0, 9)), 0);
  EXPECT_THAT(pool.ListTags(TimePoint{}), IsEmpty());
  pool.Release(&table);
}

TEST(BlockManagerTest, ExpiredAndDroppedTagsDoNotRetain) {
  for (bool expire : {false, true}) {
    BlockManager pool(Options(4));
    BlockTable table = Prefill(&pool, Count(0, 8));
    pool.Tag("s", table, TimePoint(seconds(10)));
    pool.Release(&table);
    table = Prefill(&pool, Count(100, 8));
    pool.Release(&table);
    if (expire) {
      pool.ExpireTags(TimePoint(seconds(9)));
      ASSERT_EQ(pool.ListTags(TimePoint(seconds(9))).size(), 1u);
      pool.ExpireTags(TimePoint(seconds(10)));
    } else {
      pool.DropTag("unknown");
      pool.DropTag("s");
    }
    pool.CheckInvariants();
    EXPECT_THAT(pool.ListTags(TimePoint{}), IsEmpty());
    // As if released just now: behind the others.
    ASSERT_TRUE(pool.Reserve(&table, 8));
    EXPECT_EQ(Hits(&pool, Count(0, 9)), 8);
    pool.Release(&table);
  }
}

TEST(BlockManagerTest, ListsSessionsWithTheirBlocks) {
  BlockManager pool(Options(8));
  BlockTable table = Prefill(&pool, Count(0, 8));
  pool.Tag("b", table, TimePoint(seconds(5)));
  pool.Tag("a", table, TimePoint(seconds(10)));
  pool.Tag("a", table, TimePoint(seconds(20)));  // renewed
  pool.Release(&table);
  const auto list = pool.ListTags(TimePoint(seconds(5)));
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].session_id, "a");
  EXPECT_EQ(list[0].blocks, 2);
  EXPECT_EQ(list[0].expires, TimePoint(seconds(20)));
}

TEST(BlockManagerTest, AWriterCopiesWhatOthersSee) {
  BlockManager pool(Options(8));
  BlockTable a;
  ASSERT_TRUE(pool.Reserve(&a, 6));
  pool.SetLive(&a, 6);
  BlockTable b = pool.Fork(a);
  EXPECT_EQ(pool.CopiesNeeded(a, 6, 8), 1);
  std::vector<KvCopy> copies;
  ASSERT_TRUE(pool.MakeWritable(&b, 6, 8, &copies));
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].src, a.blocks[1]);
  EXPECT_EQ(copies[0].dst, b.blocks[1]);
  EXPECT_EQ(copies[0].num_slots, 2);
  EXPECT_EQ(a.blocks[0], b.blocks[0]);
  EXPECT_EQ(pool.live_slots(), 8);
  // The last holder writes in place.
  EXPECT_EQ(pool.CopiesNeeded(a, 6, 8), 0);
  pool.Release(&a);
  pool.Release(&b);
}

TEST(BlockManagerTest, APublishedBlockIsCopiedEvenByItsOnlyHolder) {
  BlockManager pool(Options(8));
  BlockTable table = Prefill(&pool, Count(0, 8));
  pool.Shrink(&table, 6);
  std::vector<KvCopy> copies;
  ASSERT_TRUE(pool.MakeWritable(&table, 6, 7, &copies));
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].num_slots, 2);
  EXPECT_EQ(Hits(&pool, Count(0, 9)), 8);  // the published one is still there
  pool.CheckInvariants();
  pool.Release(&table);
}

TEST(BlockManagerTest, CopyOnWriteIsAllOrNothing) {
  BlockManager pool(Options(3));
  BlockTable a;
  ASSERT_TRUE(pool.Reserve(&a, 8));
  BlockTable b = pool.Fork(a);
  std::vector<KvCopy> copies;
  EXPECT_FALSE(pool.MakeWritable(&b, 0, 8, &copies));
  EXPECT_THAT(copies, IsEmpty());
  EXPECT_EQ(a.blocks, b.blocks);
  EXPECT_TRUE(pool.MakeWritable(&b, 4, 8, &copies));
  EXPECT_THAT(copies, IsEmpty()) << "a block with nothing before the range is not copied";
}

TEST(BlockManagerTest, ATwinTakesThePlaceOfTheEvicted) {
  BlockManager pool(Options(5));
  // Two sequences prefill the same prompt at once: the second keeps private blocks.
  BlockTable a;
  BlockTable b;
  ASSERT_TRUE(pool.Reserve(&a, 8));
  ASSERT_TRUE(pool.Reserve(&b, 8));
  pool.Publish(Count(0, 8), 8, "", &a);
  pool.Publish(Count(0, 8), 8, "", &b);
  EXPECT_EQ(b.num_published, 2);
  EXPECT_NE(a.blocks, b.blocks);
  pool.Release(&a);
  EXPECT_EQ(pool.occupancy().cached_blocks, 2);
  BlockTable table;
  ASSERT_TRUE(pool.Reserve(&table, 12));  // evicts both
  EXPECT_EQ(Hits(&pool, Count(0, 9)), 0);
  pool.Release(&b);
  EXPECT_EQ(Hits(&pool, Count(0, 9)), 8);
  pool.CheckInvariants();
  pool.Release(&table);
}

TEST(BlockManagerTest, ACollidingKeyIsAMiss) {
  BlockManagerOptions options = Options(64, 1);
  options.key_bits = 1;
  BlockManager pool(options);
  BlockTable table = Prefill(&pool, {1});
  for (TokenId t = 2; t < 20; ++t) EXPECT_EQ(Hits(&pool, {t, 0}), 0) << t;
  EXPECT_EQ(Hits(&pool, {1, 0}), 1);
  BlockTable other = Prefill(&pool, Count(2, 10));  // most cannot be published
  EXPECT_LT(other.num_published, 10);
  pool.CheckInvariants();
  pool.Release(&table);
  pool.Release(&other);
  EXPECT_EQ(pool.num_available(), 64);
}

TEST(BlockManagerTest, SummaryHoldsWholeChunks) {
  BlockManager pool(Options(16, 16));
  const uint64_t epoch = pool.prefix_epoch();
  const std::vector<TokenId> tokens = Count(0, 130);
  BlockTable table = Prefill(&pool, tokens, "salt");
  const std::span<const TokenId> all(tokens);
  const uint64_t first = HashTokens(all.first(64), PrefixSeed("salt"));
  const uint64_t second = HashTokens(all.first(128), PrefixSeed("salt"));
  EXPECT_THAT(pool.PrefixChunks(), UnorderedElementsAre(first, second));
  EXPECT_NE(pool.prefix_epoch(), epoch);
  const uint64_t full = pool.prefix_epoch();
  pool.Release(&table);
  EXPECT_EQ(pool.prefix_epoch(), full);  // cached instead of active: the set is the same
  ASSERT_TRUE(pool.Reserve(&table, 9 * 16));
  EXPECT_THAT(pool.PrefixChunks(), ElementsAre(first));
  EXPECT_NE(pool.prefix_epoch(), full);
  pool.Release(&table);
}

TEST(BlockManagerTest, SummaryKeepsTheMostRecentlyUsed) {
  BlockManagerOptions options = Options(16, 64);
  options.max_prefix_chunks = 2;
  BlockManager pool(options);
  BlockTable tables[3];
  for (int i = 0; i < 3; ++i) tables[i] = Prefill(&pool, Count(1000 * i, 64));
  const auto chunk = [](int i) { return HashTokens(Count(1000 * i, 64), PrefixSeed("")); };
  EXPECT_THAT(pool.PrefixChunks(), ElementsAre(chunk(2), chunk(1)));
  const uint64_t epoch = pool.prefix_epoch();
  EXPECT_EQ(Hits(&pool, Count(0, 65)), 64);
  EXPECT_THAT(pool.PrefixChunks(), ElementsAre(chunk(0), chunk(2)));
  EXPECT_NE(pool.prefix_epoch(), epoch);
  for (BlockTable& table : tables) pool.Release(&table);
}

TEST(BlockManagerTest, LiveSlotsCountSharedBlocksOnce) {
  BlockManager pool(Options(16));
  BlockTable a = Prefill(&pool, Count(0, 10));
  EXPECT_EQ(pool.live_slots(), 10);
  ASSERT_TRUE(pool.Reserve(&a, 16));  // reserved, not written: waste
  EXPECT_EQ(pool.live_slots(), 10);
  BlockTable b;
  EXPECT_EQ(pool.MatchPrefix(Count(0, 10), "", &b), 8);
  EXPECT_EQ(pool.live_slots(), 10);
  ASSERT_TRUE(pool.Reserve(&b, 10));
  pool.SetLive(&b, 10);
  EXPECT_EQ(pool.live_slots(), 12);
  pool.Release(&a);
  EXPECT_EQ(pool.live_slots(), 10);
  pool.SetLive(&b, 9);
  EXPECT_EQ(pool.live_slots(), 9);
  pool.Release(&b);
  EXPECT_EQ(pool.live_slots(), 0);
}

TEST(BlockManagerDeathTest, Misuse) {
  BlockManager pool(Options(8));
  BlockTable table = Prefill(&pool, Count(0, 8));
  BlockTable stale = table;
  EXPECT_DEATH(pool.MatchPrefix(Count(0, 9), "", &table), "empty table");
  EXPECT_DEATH(pool.SetLive(&table, 9), "");
  EXPECT_DEATH(pool.Publish(Count(0, 8), 12, "", &table), "");
  EXPECT_DEATH(pool.Publish(Count(0, 12), 12, "", &table), "");
  std::vector<KvCopy> copies;
  EXPECT_DEATH(pool.MakeWritable(&table, 4, 9, &copies), "");
  EXPECT_DEATH(pool.MakeWritable(&table, 0, 4, &copies), "behind the range");
  EXPECT_DEATH(pool.ReferenceCount(8), "block 8");
  BlockTable fork = pool.Fork(table);
  fork.num_published = 0;
  EXPECT_DEATH(pool.Publish(Count(50, 8), 8, "", &fork), "holds other tokens");
  pool.Release(&fork);
  pool.Release(&table);
  EXPECT_DEATH(pool.Release(&stale), "given back twice");
  EXPECT_DEATH(BlockManager(Options(0)), "");
}

}  // namespace
}  // namespace paceline

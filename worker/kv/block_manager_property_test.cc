// Random operations on BlockManager beside a naive model of the pool: what every KV slot really
// holds, which prefix every block stands for, and the eviction order as plain vectors. Replay one
// run with PACELINE_TEST_SEED=n; PACELINE_TEST_OPS=n makes it longer.

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <map>
#include <optional>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "common/hash.h"
#include "worker/kv/block_manager.h"

namespace paceline {
namespace {

using Prefix =
    std::pair<std::string, std::vector<TokenId>>;  // salt, all tokens up to a block's end

struct Sequence {
  std::string salt;
  std::vector<TokenId> tokens;  // committed, KV written
  std::vector<uint64_t> folds;  // [tokens] what the KV slot of each must hold
  BlockTable table;
};

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoll(value);
}

class PoolModel {
 public:
  PoolModel(uint64_t seed, int64_t* hits) : random_(seed), hits_(hits) {
    static constexpr int32_t kBlockSizes[] = {1, 2, 4, 16, 32};
    static constexpr int32_t kKeyBits[] = {128, 128, 128, 63, 5};
    options_.block_size = kBlockSizes[Below(5)];
    options_.num_blocks = 4 + Below(60);
    options_.prefix_cache = Below(12) != 0;
    options_.key_bits = kKeyBits[Below(5)];
    options_.max_prefix_chunks = Below(3) == 0 ? 1 + Below(4) : 4096;
    options_.model_fingerprint = "model";
    exact_ = options_.key_bits > 60;
    vocab_ = Below(2) == 0 ? 2 : 1000;
    pool_ = std::make_unique<BlockManager>(options_);
    kv_.assign(options_.num_blocks * options_.block_size, 0);
    stands_for_.resize(options_.num_blocks);
    for (int i = 0; i < 4; ++i) prompts_.push_back(Tokens(1 + Below(12 * options_.block_size)));
  }

  void RandomOperation() {
    const std::vector<uint64_t> chunks_before = Chunks();
    const uint64_t epoch_before = pool_->prefix_epoch();
    switch (Below(12)) {
      case 0:
      case 1:
      case 2:
        Begin();
        break;
      case 3:
      case 4:
        Append();
        break;
      case 5:
        Speculate();
        break;
      case 6:
        ForkOne();
        break;
      case 7:
      case 8:
        ReleaseOne();
        break;
      case 9:
        if (Sequence* s = Any()) PublishSome(s);
        break;
      case 10:
        RollBack();
        break;
      default:
        Tags();
    }
    pool_->CheckInvariants();
    CheckCounts();
    CheckChunks(chunks_before, epoch_before);
    if (++operations_ % 16 == 0) {
      for (const auto& s : sequences_) CheckContent(*s);
    }
  }

  void Finish() {
    while (!sequences_.empty()) ReleaseOne();
    pool_->CheckInvariants();
    EXPECT_EQ(pool_->num_available(), options_.num_blocks);
    EXPECT_EQ(pool_->live_slots(), 0);
  }

 private:
  int32_t Below(int32_t n) { return static_cast<int32_t>(random_() % n); }
  int32_t size() const { return options_.block_size; }

  std::vector<TokenId> Tokens(int32_t n) {
    std::vector<TokenId> tokens(n);
    for (TokenId& t : tokens) t = Below(vocab_);
    return tokens;
  }

  Sequence* Any() {
    return sequences_.empty() ? nullptr
                              : sequences_[Below(static_cast<int32_t>(sequences_.size()))].get();
  }

  // --- What the KV memory holds ---

  uint64_t& Slot(const BlockTable& table, int32_t index) {
    return kv_[table.blocks[index / size()] * size() + index % size()];
  }

  void Commit(Sequence* s, std::span<const TokenId> tokens) {
    for (TokenId t : tokens) {
      const int32_t index = static_cast<int32_t>(s->tokens.size());
      const uint64_t parent = index == 0 ? HashBytes(s->salt) : s->folds.back();
      s->folds.push_back(HashCombine(parent, t));
      s->tokens.push_back(t);
      Slot(s->table, index) = s->folds.back();
    }
    pool_->SetLive(&s->table, static_cast<int32_t>(s->tokens.size()));
  }

  void CheckContent(const Sequence& s) {
    for (size_t i = 0; i < s.tokens.size(); ++i) {
      ASSERT_EQ(Slot(s.table, static_cast<int32_t>(i)), s.folds[i]) << "KV index " << i;
    }
  }

  // Space for `extra` entries behind the tokens, writable; false if the pool is short.
  bool Extend(Sequence* s, int32_t extra) {
    const int32_t begin = static_cast<int32_t>(s->tokens.size());
    const int32_t end = begin + extra;
    const int32_t needed = pool_->BlocksNeeded(s->table, end);
    const int32_t available = pool_->num_available();
    const size_t blocks_before = s->table.blocks.size();
    EXPECT_EQ(pool_->Reserve(&s->table, end), needed <= available);
    NoteEvicted(s->table, blocks_before);
    if (needed > available) {
      EXPECT_EQ(s->table.blocks.size(), blocks_before);
      return false;
    }
    return Own(s, begin, end);
  }

  bool Own(Sequence* s, int32_t begin, int32_t end) {
    const int32_t needed = pool_->CopiesNeeded(s->table, begin, end);
    const int32_t available = pool_->num_available();
    const BlockTable before = s->table;
    std::vector<KvCopy> copies;
    EXPECT_EQ(pool_->MakeWritable(&s->table, begin, end, &copies), needed <= available);
    if (needed > available) {
      EXPECT_EQ(s->table.blocks, before.blocks);
      return false;
    }
    if (needed > 0) exact_order_ = false;  // not modelled
    for (size_t i = before.blocks.size(); i-- > 0;) {
      if (s->table.blocks[i] == before.blocks[i]) continue;
      std::erase(idle_, s->table.blocks[i]);
      Forget(s->table.blocks[i]);
      NoteReleased({before.blocks[i]});
    }
    for (const KvCopy& copy : copies) {
      for (int32_t i = 0; i < copy.num_slots; ++i) {
        kv_[copy.dst * size() + i] = kv_[copy.src * size() + i];
      }
    }
    for (int32_t i = begin; i < end; ++i) {
      EXPECT_EQ(pool_->ReferenceCount(s->table.blocks[i / size()]), 1);
      Slot(s->table, i) = random_();  // drafts, later rejected
    }
    return true;
  }

  // --- What the cache should hold, and the order in which it goes ---

  Prefix PrefixOf(const Sequence& s, int32_t block) const {
    return {s.salt, {s.tokens.begin(), s.tokens.begin() + (block + 1) * size()}};
  }

  int32_t ExpectedHits(const std::string& salt, std::span<const TokenId> tokens) const {
    int32_t blocks = 0;
    for (size_t end = size(); end < tokens.size(); end += size()) {
      if (!cache_.contains(Prefix{salt, {tokens.begin(), tokens.begin() + end}})) break;
      ++blocks;
    }
    return blocks;
  }

  void Forget(BlockId b) {
    if (!stands_for_[b].has_value()) return;
    cache_.erase(*stands_for_[b]);
    stands_for_[b].reset();
    for (auto& [id, session] : sessions_) session.second.erase(b);
  }

  bool Tagged(BlockId b) const {
    return std::ranges::any_of(sessions_,
                               [&](const auto& s) { return s.second.second.contains(b); });
  }

  // Blocks from `first` on were allocated: free ones, then the oldest untagged, then tagged.
  void NoteEvicted(const BlockTable& table, size_t first) {
    std::vector<BlockId> evicted;
    for (size_t i = first; i < table.blocks.size(); ++i) {
      if (stands_for_[table.blocks[i]].has_value()) evicted.push_back(table.blocks[i]);
    }
    if (exact_ && exact_order_) {
      std::vector<BlockId> order;
      for (bool tagged : {false, true}) {
        for (BlockId b : idle_) {
          if (Tagged(b) == tagged) order.push_back(b);
        }
      }
      ASSERT_LE(evicted.size(), order.size());
      order.resize(evicted.size());
      EXPECT_EQ(evicted, order);
    }
    for (BlockId b : evicted) {
      std::erase(idle_, b);
      Forget(b);
    }
  }

  int32_t References(BlockId b) const {
    int32_t count = 0;
    for (const auto& s : sequences_) count += std::ranges::count(s->table.blocks, b);
    return count;
  }

  void NoteReleased(const std::vector<BlockId>& blocks) {
    for (size_t i = blocks.size(); i-- > 0;) {
      if (References(blocks[i]) == 0 && stands_for_[blocks[i]].has_value()) {
        idle_.push_back(blocks[i]);
      }
    }
  }

  // --- Operations ---

  void Begin() {
    if (sequences_.size() > 6) return;
    std::vector<TokenId> prompt = prompts_[Below(4)];
    prompt.resize(1 + Below(static_cast<int32_t>(prompt.size())));
    for (TokenId t : Tokens(Below(3) * Below(2 * size() + 1))) prompt.push_back(t);
    auto s = std::make_unique<Sequence>();
    s->salt = Below(3) == 0 ? "salt" : "";
    const int32_t expected = options_.prefix_cache ? ExpectedHits(s->salt, prompt) * size() : 0;
    const int32_t matched = pool_->MatchPrefix(prompt, s->salt, &s->table);
    if (exact_) {
      EXPECT_EQ(matched, expected);
    }
    EXPECT_LT(matched, static_cast<int32_t>(prompt.size()));
    *hits_ += matched;
    for (BlockId b : s->table.blocks) std::erase(idle_, b);
    // Committed by somebody else: the slots must hold this very prefix.
    uint64_t fold = HashBytes(s->salt);
    for (int32_t i = 0; i < matched; ++i) {
      fold = HashCombine(fold, prompt[i]);
      ASSERT_EQ(Slot(s->table, i), fold) << "KV index " << i << " of a hit";
      s->tokens.push_back(prompt[i]);
      s->folds.push_back(fold);
    }
    sequences_.push_back(std::move(s));
    Sequence* added = sequences_.back().get();
    if (!Extend(added, static_cast<int32_t>(prompt.size()) - matched)) {
      Release(sequences_.size() - 1);
      return;
    }
    Commit(added, std::span(prompt).subspan(matched));
    if (Below(2) == 0) PublishSome(added);
  }

  void Append() {
    Sequence* s = Any();
    if (s == nullptr) return;
    const std::vector<TokenId> tokens = Tokens(1 + Below(2 * size()));
    if (Extend(s, static_cast<int32_t>(tokens.size()))) Commit(s, tokens);
  }

  void Speculate() {
    Sequence* s = Any();
    if (s == nullptr || !Extend(s, 1 + Below(8))) return;
    Commit(s, Tokens(1));
    const size_t blocks = s->table.blocks.size();
    pool_->Shrink(&s->table, static_cast<int32_t>(s->tokens.size()));
    EXPECT_LE(s->table.blocks.size(), blocks);
  }

  void ForkOne() {
    Sequence* s = Any();
    if (s == nullptr || sequences_.size() > 6) return;
    auto copy = std::make_unique<Sequence>(*s);
    copy->table = pool_->Fork(s->table);
    EXPECT_EQ(copy->table.blocks, s->table.blocks);
    sequences_.push_back(std::move(copy));
  }

  void Release(size_t index) {
    const std::unique_ptr<Sequence> s = std::move(sequences_[index]);
    sequences_.erase(sequences_.begin() + index);
    const std::vector<BlockId> blocks = s->table.blocks;
    pool_->Release(&s->table);
    EXPECT_TRUE(s->table.blocks.empty());
    NoteReleased(blocks);
  }

  void ReleaseOne() {
    if (sequences_.empty()) return;
    const size_t index = Below(static_cast<int32_t>(sequences_.size()));
    CheckContent(*sequences_[index]);
    Release(index);
  }

  void PublishSome(Sequence* s) {
    const int32_t committed = Below(4) == 0 ? Below(static_cast<int32_t>(s->tokens.size()) + 1)
                                            : static_cast<int32_t>(s->tokens.size());
    const int32_t from = s->table.num_published;
    pool_->Publish(s->tokens, committed, s->salt, &s->table);
    if (!options_.prefix_cache) {
      EXPECT_EQ(s->table.num_published, 0);
      return;
    }
    if (options_.key_bits == 128) {
      EXPECT_GE(s->table.num_published, committed / size());
    }
    for (int32_t i = from; i < s->table.num_published; ++i) {
      const BlockId b = s->table.blocks[i];
      const auto [entry, added] = cache_.emplace(PrefixOf(*s, i), b);
      if (added) {
        stands_for_[b] = entry->first;
      } else if (entry->second != b) {
        // Twins: who stays after an eviction, and with which tags, is not modelled.
        exact_ = exact_order_ = false;
      }
    }
  }

  void RollBack() {
    Sequence* s = Any();
    if (s == nullptr) return;
    const std::vector<BlockId> before = s->table.blocks;
    const int32_t keep = Below(static_cast<int32_t>(s->tokens.size()) + 1);
    s->tokens.resize(keep);
    s->folds.resize(keep);
    pool_->Shrink(&s->table, keep);
    NoteReleased({before.begin() + s->table.blocks.size(), before.end()});
    // A block that one table rolled back and others see, or saw, keeps what they saw.
    if (keep % size() != 0 && (pool_->ReferenceCount(s->table.blocks.back()) > 1 ||
                               stands_for_[s->table.blocks.back()].has_value())) {
      exact_live_ = false;
    }
  }

  void Tags() {
    const std::string id = "session" + std::to_string(Below(3));
    switch (Below(4)) {
      case 0:
        pool_->DropTag(id);
        DropSession(id);
        break;
      case 1: {
        now_ += std::chrono::seconds(Below(20));
        if (Below(2) == 0) {
          pool_->ExpireTags(now_);
        } else {
          pool_->ListTags(now_);
        }
        std::vector<std::pair<TimePoint, std::string>> expired;
        for (const auto& [name, session] : sessions_) {
          if (session.first <= now_) expired.emplace_back(session.first, name);
        }
        std::ranges::sort(expired);
        for (const auto& [when, name] : expired) DropSession(name);
        break;
      }
      default: {
        Sequence* s = Any();
        if (s == nullptr) return;
        const TimePoint expires = now_ + std::chrono::seconds(1 + Below(60));
        pool_->Tag(id, s->table, expires);
        auto& session = sessions_[id];
        session.first = expires;
        for (int32_t i = 0; i < s->table.num_published; ++i) {
          session.second.insert(s->table.blocks[i]);
        }
      }
    }
    if (!exact_) return;
    for (const BlockManager::SessionBlocks& listed : pool_->ListTags(now_)) {
      ASSERT_TRUE(sessions_.contains(listed.session_id));
      EXPECT_EQ(listed.blocks, static_cast<int32_t>(sessions_[listed.session_id].second.size()));
    }
  }

  void DropSession(const std::string& id) {
    const auto it = sessions_.find(id);
    if (it == sessions_.end()) return;
    std::vector<std::pair<size_t, BlockId>> by_depth;
    for (BlockId b : it->second.second) {
      if (stands_for_[b]) by_depth.emplace_back(stands_for_[b]->second.size(), b);
    }
    sessions_.erase(it);
    std::ranges::sort(by_depth, std::greater<>());
    for (const auto& [depth, b] : by_depth) {
      if (Tagged(b) || std::erase(idle_, b) == 0) continue;
      idle_.push_back(b);
    }
  }

  // --- Checks ---

  void CheckCounts() {
    std::map<BlockId, int32_t> references;
    std::map<BlockId, int32_t> live;
    for (const auto& s : sequences_) {
      for (size_t i = 0; i < s->table.blocks.size(); ++i) {
        const BlockId b = s->table.blocks[i];
        ++references[b];
        const int32_t here = std::clamp<int32_t>(
            static_cast<int32_t>(s->tokens.size()) - static_cast<int32_t>(i) * size(), 0, size());
        live[b] = std::max(live[b], here);
      }
    }
    for (BlockId b = 0; b < options_.num_blocks; ++b) {
      const auto it = references.find(b);
      ASSERT_EQ(pool_->ReferenceCount(b), it == references.end() ? 0 : it->second);
    }
    int64_t live_slots = 0;
    for (const auto& [b, slots] : live) live_slots += slots;
    if (exact_live_) {
      EXPECT_EQ(pool_->live_slots(), live_slots);
    }
    const KvOccupancy o = pool_->occupancy();
    EXPECT_EQ(o.active_blocks, static_cast<int32_t>(references.size()));
    EXPECT_EQ(o.active_blocks + o.cached_blocks + o.free_blocks, options_.num_blocks);
    if (exact_) {
      EXPECT_EQ(o.cached_blocks, static_cast<int32_t>(idle_.size()));
    }
    EXPECT_EQ(pool_->num_available(), o.cached_blocks + o.free_blocks);
  }

  std::vector<uint64_t> Chunks() const {
    std::vector<uint64_t> chunks = pool_->PrefixChunks();
    std::ranges::sort(chunks);
    return chunks;
  }

  void CheckChunks(const std::vector<uint64_t>& before, uint64_t epoch_before) {
    const std::vector<uint64_t> now = Chunks();
    EXPECT_LE(static_cast<int32_t>(now.size()), options_.max_prefix_chunks);
    if (now != before) {
      EXPECT_NE(pool_->prefix_epoch(), epoch_before);
    }
    if (options_.max_prefix_chunks < 4096 || !exact_) return;
    if (now == before) return;
    std::vector<uint64_t> expected;
    for (const auto& [prefix, b] : cache_) {
      if (prefix.second.size() % kPrefixChunk != 0) continue;
      expected.push_back(HashTokens(prefix.second, PrefixSeed(prefix.first)));
    }
    std::ranges::sort(expected);
    EXPECT_EQ(now, expected);
  }

  std::mt19937_64 random_;
  int64_t* hits_;
  BlockManagerOptions options_;
  std::unique_ptr<BlockManager> pool_;
  bool exact_ = true;        // the cache's content is predicted, not only bounded
  bool exact_order_ = true;  // and the eviction order
  bool exact_live_ = true;
  int32_t vocab_ = 2;
  int64_t operations_ = 0;
  TimePoint now_{};
  std::vector<std::vector<TokenId>> prompts_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<uint64_t> kv_;
  std::map<Prefix, BlockId> cache_;
  std::vector<std::optional<Prefix>> stands_for_;  // [num_blocks]
  std::vector<BlockId> idle_;                      // cached, in the order of their release
  std::map<std::string, std::pair<TimePoint, std::set<BlockId>>> sessions_;
};

volatile int64_t current_seed = 0;

// A CHECK in the pool ends the program: say which seed did it.
void PrintSeed(int) { std::cerr << "replay with PACELINE_TEST_SEED=" << current_seed << std::endl; }

TEST(BlockManagerPropertyTest, BehavesAsTheNaivePool) {
  const int64_t fixed = FromEnvironment("PACELINE_TEST_SEED", -1);
  const int64_t total = FromEnvironment("PACELINE_TEST_OPS", 400'000);
  constexpr int64_t kPerSeed = 500;
  std::signal(SIGABRT, PrintSeed);
  int64_t hits = 0;
  int64_t done = 0;
  for (int64_t seed = std::max<int64_t>(0, fixed); done < total; ++seed, done += kPerSeed) {
    current_seed = seed;
    PoolModel model(seed, &hits);
    for (int64_t i = 0; i < kPerSeed; ++i) {
      model.RandomOperation();
      if (HasFailure()) {
        FAIL() << "operation " << i << "; replay with PACELINE_TEST_SEED=" << seed;
      }
    }
    model.Finish();
    ASSERT_FALSE(HasFailure()) << "replay with PACELINE_TEST_SEED=" << seed;
    if (fixed >= 0) break;
  }
  std::cout << done << " operations, " << hits << " tokens hit\n";
  if (fixed < 0) {
    EXPECT_GT(hits, 1000);
  }
}

}  // namespace
}  // namespace paceline

// Owns the bookkeeping of the paged KV pool: which blocks are free, referenced, or cached for
// reuse. Integers only; the memory itself belongs to the runner. One thread, the engine's.
//
// A block is *active* (referenced by a table, or by a launched plan), *cached* (published,
// referenced by nobody, evictable in LRU order) or *free*. Published blocks are immutable: a
// sequence that must write into a block with more than one reference, or into a published one,
// copies it first.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "common/hash.h"
#include "worker/types/step_plan.h"

namespace paceline {

struct BlockManagerOptions {
  int32_t num_blocks = 0;
  int32_t block_size = 16;
  bool prefix_cache = true;
  std::string model_fingerprint;     // seeds the block keys, with adapter and KV dtype in it
  int32_t max_prefix_chunks = 4096;  // of PrefixChunks: the most recently used
  int32_t key_bits = 128;            // fewer only in tests, to make keys collide
};

// The blocks of one sequence, in order. Owned by the sequence; only BlockManager changes it.
struct BlockTable {
  std::vector<BlockId> blocks;
  int32_t num_published = 0;  // leading blocks that are in the prefix cache
  Hash128 last_key;           // key of block num_published - 1
  int32_t num_live = 0;       // leading KV entries of committed tokens, see SetLive
};

struct KvOccupancy {
  int32_t active_blocks = 0;  // shared blocks counted once
  int32_t cached_blocks = 0;
  int32_t free_blocks = 0;
};

struct KvCounters {
  uint64_t query_tokens = 0;  // looked up in the prefix cache
  uint64_t hit_tokens = 0;
  uint64_t evictions = 0;
  uint64_t alloc_failures = 0;
  uint64_t copies = 0;
};

class BlockManager {
 public:
  explicit BlockManager(BlockManagerOptions options);
  ~BlockManager();
  BlockManager(const BlockManager&) = delete;
  BlockManager& operator=(const BlockManager&) = delete;

  int32_t block_size() const;
  // Blocks that Reserve could hand out now: free and evictable.
  int32_t num_available() const;

  // Fills an empty table with the longest cached prefix of `tokens`, whole blocks only, and never
  // all of `tokens`: at least one token is left to compute. Returns the number of cached tokens.
  int32_t MatchPrefix(std::span<const TokenId> tokens, std::string_view salt, BlockTable* table);

  // Grows the table to hold num_tokens KV entries; all or nothing. False when the pool is short.
  bool Reserve(BlockTable* table, int32_t num_tokens);
  // New blocks that Reserve would need.
  int32_t BlocksNeeded(const BlockTable& table, int32_t num_tokens) const;
  // Gives back blocks wholly behind num_tokens KV entries (after drafts were rejected).
  void Shrink(BlockTable* table, int32_t num_tokens);

  // A second table over the same blocks.
  BlockTable Fork(const BlockTable& table);
  // Makes KV indices [begin, end) writable by this table: each block of the range with other
  // references is replaced by a fresh one; the copies to do before the step are appended, with the
  // slots before `begin` in num_slots. All or nothing; false when the pool is short. The copies
  // must be done in order, before any row: a source may be the destination of a later one. No
  // published block of the table may lie behind the range (Shrink first).
  bool MakeWritable(BlockTable* table, int32_t begin, int32_t end, std::vector<KvCopy>* copies);
  // Fresh blocks that MakeWritable would need.
  int32_t CopiesNeeded(const BlockTable& table, int32_t begin, int32_t end) const;

  // Enters into the prefix cache the whole blocks of tokens[0, num_committed), all of them
  // committed and their KV computed. A block whose key is cached already stays private to its
  // table.
  void Publish(std::span<const TokenId> tokens, int32_t num_committed, std::string_view salt,
               BlockTable* table);

  // Drops the table's references; the blocks become cached or free at once, deepest evicted first.
  void Release(BlockTable* table);

  // Says that KV entries [0, num_live) of the table hold committed tokens. Published blocks that
  // MatchPrefix gave are live already. O(blocks that gained entries).
  void SetLive(BlockTable* table, int32_t num_live);
  // Live entries of all active blocks, shared blocks counted once. Fragmentation is
  // 1 - live_slots / (active_blocks x block_size). O(1).
  int64_t live_slots() const;

  // Session tags for retention: released blocks of a live session are evicted after untagged ones.
  // A tag never keeps a block from being evicted when the pool is short. Tags the table's published
  // blocks, so it comes after Publish and before Release.
  void Tag(std::string_view session_id, const BlockTable& table, TimePoint expires);
  void DropTag(std::string_view session_id);
  // Forgets sessions with expires <= now. O(1) when there are none: call it every step.
  void ExpireTags(TimePoint now);
  struct SessionBlocks {
    std::string session_id;
    int32_t blocks = 0;  // cached or active, bearing the tag
    TimePoint expires{};
  };
  std::vector<SessionBlocks> ListTags(TimePoint now);

  KvOccupancy occupancy() const;
  const KvCounters& counters() const;

  // Hashes of all cached prefix chunks (common/hash.h, kPrefixChunk), and a number that changes
  // whenever the set does. For the router's prefix affinity.
  uint64_t prefix_epoch() const;
  std::vector<uint64_t> PrefixChunks() const;

  // CHECKs every invariant: references, lists, keys, counts. For tests; O(blocks).
  void CheckInvariants() const;
  int32_t ReferenceCount(BlockId block) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline

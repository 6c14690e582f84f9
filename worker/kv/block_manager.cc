#include "worker/kv/block_manager.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "common/check.h"
#include "worker/kv/block_lists.h"

namespace paceline {
namespace {

// What the pool knows of a block's content.
enum class Content : uint8_t {
  kPrivate,    // anything; only its tables know
  kPublished,  // in the prefix cache: immutable, found by its key
  kDuplicate,  // full and committed, but another block held its key; takes its place if that goes
};

// Identity of a prefix that ends at a block border: two blocks with equal ids behind parents of
// equal identity hold equal KV. Keys may collide, identities do not.
using PrefixId = uint64_t;

struct Block {
  int32_t references = 0;
  int32_t live = 0;         // slots with committed tokens, counted while the block is active
  int32_t tags = 0;         // live sessions that bear it
  uint32_t generation = 0;  // grows when the content is forgotten, so that old tags do not match
  Content content = Content::kPrivate;
  bool promoted = false;  // published as the heir of an evicted twin
  int32_t depth = 0;      // index in its tables; this and the rest unless kPrivate
  Hash128 key;
  PrefixId prefix = 0;
  PrefixId parent = 0;
  uint64_t fold = 0;  // HashTokens from token 0 to the block's end
};

// Lists of the blocks that nobody references and that may be evicted.
constexpr int32_t kUntagged = 0;
constexpr int32_t kTagged = 1;

Hash128 MaskKey(Hash128 key, int32_t bits) {
  if (bits >= 128) return key;
  return Hash128{.hi = 0, .lo = key.lo & ((uint64_t{1} << bits) - 1)};
}

}  // namespace

struct BlockManager::Impl {
  explicit Impl(BlockManagerOptions o)
      : options(std::move(o)),
        blocks(options.num_blocks),
        token_ids(static_cast<size_t>(options.num_blocks) * options.block_size),
        evictable(options.num_blocks, 2),
        chunks(options.num_blocks, 1) {
    free_blocks.reserve(options.num_blocks);
    for (BlockId b = options.num_blocks - 1; b >= 0; --b) free_blocks.push_back(b);
    if (options.prefix_cache) by_key.reserve(options.num_blocks);
  }

  struct Session {
    TimePoint expires{};
    absl::flat_hash_map<BlockId, uint32_t> generations;  // of the blocks that bear the tag
  };

  // The parent of a block at some place of a table.
  struct Parent {
    Hash128 key;
    PrefixId prefix = 0;
    uint64_t fold = 0;
  };

  int32_t size() const { return options.block_size; }
  Block& at(BlockId b) {
    CHECK(b >= 0 && b < options.num_blocks) << "block " << b << " of " << options.num_blocks;
    return blocks[b];
  }
  std::span<TokenId> ids(BlockId b) {
    return std::span(token_ids).subspan(static_cast<size_t>(b) * size(), size());
  }

  Parent Root(std::string_view salt) const;
  Parent ParentAt(const BlockTable& table, int32_t index, std::string_view salt);
  Parent Child(const Parent& parent, std::span<const TokenId> tokens) const;
  BlockId Find(const Hash128& key, PrefixId parent, std::span<const TokenId> tokens);

  // The published block that this duplicate repeats, or kNone.
  BlockId Twin(BlockId b) const {
    if (blocks[b].content != Content::kDuplicate) return kNone;
    const auto it = by_key.find(blocks[b].key);
    return it != by_key.end() && blocks[it->second].prefix == blocks[b].prefix ? it->second : kNone;
  }

  int32_t available() const {
    return static_cast<int32_t>(free_blocks.size()) + evictable.size(kUntagged) +
           evictable.size(kTagged);
  }
  BlockId Allocate();
  void Ref(BlockId b);
  void Unref(BlockId b);
  void KeepParentsYounger(const BlockTable& table, size_t num_blocks);
  void EnterCache(BlockId b);
  void LeaveCache(BlockId b);
  void Forget(BlockId b);
  void PublishOne(BlockId b, int32_t depth, const Parent& parent, const Parent& child,
                  std::span<const TokenId> tokens);
  bool CanPublish(BlockId b, const Parent& parent, const Hash128& key,
                  std::span<const TokenId> tokens);

  void MakeEvictable(BlockId b) { evictable.PushNewest(at(b).tags > 0 ? kTagged : kUntagged, b); }
  void Touch(BlockId b) {
    if (evictable.list_of(b) == kNone) return;
    evictable.Remove(b);
    MakeEvictable(b);
  }
  void TouchChunk(BlockId b);
  void SetBlockLive(BlockId b, int32_t live) {
    live_slots += live - at(b).live;
    at(b).live = live;
  }
  bool MustReplace(BlockId b) {
    return at(b).references > 1 || at(b).content == Content::kPublished;
  }

  void TagBlock(Session* session, BlockId b);
  void DropSession(absl::flat_hash_map<std::string, Session>::iterator it);
  int32_t LiveTags(const Session& session) const;
  void PruneSessions();
  void CheckBlock(BlockId b, const absl::flat_hash_map<PrefixId, BlockId>& by_prefix) const;

  BlockManagerOptions options;
  std::vector<Block> blocks;
  std::vector<TokenId> token_ids;  // [num_blocks][block_size], unless kPrivate
  std::vector<BlockId> free_blocks;
  BlockLists evictable;
  BlockLists chunks;  // published blocks that end a prefix chunk
  absl::flat_hash_map<Hash128, BlockId, Hash128Hasher> by_key;
  PrefixId next_prefix = 1;
  uint64_t epoch = 0;
  int64_t live_slots = 0;
  KvCounters counters;
  absl::flat_hash_map<std::string, Session> sessions;
  std::set<std::pair<TimePoint, std::string>> expiries;
  size_t prune_at = 64;
};

BlockManager::Impl::Parent BlockManager::Impl::Root(std::string_view salt) const {
  const uint64_t model = HashBytes(options.model_fingerprint);
  Parent root;
  root.key = Hash128{.hi = HashBytes(salt, model), .lo = HashBytes(salt, ~model)};
  // The top bit keeps identities of salts and of blocks apart.
  root.prefix = HashBytes(salt, 0x726f6f74) | (uint64_t{1} << 63);
  root.fold = PrefixSeed(salt);
  return root;
}

BlockManager::Impl::Parent BlockManager::Impl::ParentAt(const BlockTable& table, int32_t index,
                                                        std::string_view salt) {
  if (index == 0) return Root(salt);
  const Block& block = at(table.blocks[index - 1]);
  return Parent{.key = block.key, .prefix = block.prefix, .fold = block.fold};
}

// The place behind `parent` and one block of tokens; its identity is not known yet.
BlockManager::Impl::Parent BlockManager::Impl::Child(const Parent& parent,
                                                     std::span<const TokenId> tokens) const {
  return Parent{.key = MaskKey(HashBlock(parent.key, tokens), options.key_bits),
                .prefix = 0,
                .fold = HashTokens(tokens, parent.fold)};
}

// The cached block with these tokens behind this prefix; a colliding key is a miss.
BlockId BlockManager::Impl::Find(const Hash128& key, PrefixId parent,
                                 std::span<const TokenId> tokens) {
  const auto it = by_key.find(key);
  if (it == by_key.end()) return kNone;
  const BlockId b = it->second;
  if (blocks[b].parent != parent || !std::ranges::equal(ids(b), tokens)) return kNone;
  return b;
}

BlockId BlockManager::Impl::Allocate() {
  if (free_blocks.empty()) {
    const int32_t list = evictable.size(kUntagged) > 0 ? kUntagged : kTagged;
    CHECK_GT(evictable.size(list), 0) << "no block to evict";
    const BlockId victim = evictable.oldest(list);
    evictable.Remove(victim);
    LeaveCache(victim);
    Forget(victim);
    free_blocks.push_back(victim);
    ++counters.evictions;
  }
  const BlockId b = free_blocks.back();
  free_blocks.pop_back();
  Block& block = at(b);
  CHECK_EQ(block.references, 0) << "block " << b;
  block.references = 1;
  return b;
}

void BlockManager::Impl::Ref(BlockId b) {
  Block& block = at(b);
  if (block.references++ > 0) return;
  evictable.Remove(b);
}

void BlockManager::Impl::Unref(BlockId b) {
  Block& block = at(b);
  CHECK_GT(block.references, 0) << "block " << b << " given back twice";
  const BlockId twin = Twin(b);
  if (twin != kNone) Touch(twin);  // its children may just have become evictable, and go before it
  if (--block.references > 0) return;
  SetBlockLive(b, 0);
  if (block.content == Content::kDuplicate && !by_key.contains(block.key)) {
    EnterCache(b);
    block.promoted = true;
  }
  if (block.content == Content::kPublished) {
    MakeEvictable(b);
  } else {
    Forget(b);
    free_blocks.push_back(b);
  }
}

// After blocks behind the first num_blocks were dropped: the twins of those that stay may be older
// in the list than the dropped ones, which must be evicted before them.
void BlockManager::Impl::KeepParentsYounger(const BlockTable& table, size_t num_blocks) {
  for (size_t i = num_blocks; i-- > 0;) {
    if (const BlockId twin = Twin(table.blocks[i]); twin != kNone) Touch(twin);
  }
}

void BlockManager::Impl::EnterCache(BlockId b) {
  Block& block = at(b);
  CHECK(by_key.emplace(block.key, b).second);
  block.content = Content::kPublished;
  if ((int64_t{block.depth} + 1) * size() % kPrefixChunk == 0) {
    chunks.PushNewest(0, b);
    ++epoch;
  }
}

void BlockManager::Impl::LeaveCache(BlockId b) {
  Block& block = at(b);
  CHECK(block.content == Content::kPublished) << "block " << b;
  by_key.erase(block.key);
  block.content = Content::kPrivate;
  block.promoted = false;
  if (chunks.list_of(b) != kNone) {
    chunks.Remove(b);
    ++epoch;
  }
}

// The content is no longer what its key and its tags said.
void BlockManager::Impl::Forget(BlockId b) {
  Block& block = at(b);
  CHECK(block.content != Content::kPublished) << "block " << b;
  block.content = Content::kPrivate;
  block.tags = 0;
  ++block.generation;
}

void BlockManager::Impl::TouchChunk(BlockId b) {
  if (chunks.list_of(b) == kNone) return;
  chunks.Remove(b);
  chunks.PushNewest(0, b);
  if (chunks.size(0) > options.max_prefix_chunks) ++epoch;  // the summary's tail may change
}

BlockManager::BlockManager(BlockManagerOptions options) {
  CHECK_GT(options.num_blocks, 0);
  CHECK_GT(options.block_size, 0);
  CHECK(options.key_bits > 0 && (options.key_bits < 64 || options.key_bits == 128));
  impl_ = std::make_unique<Impl>(std::move(options));
}

BlockManager::~BlockManager() = default;

int32_t BlockManager::block_size() const { return impl_->size(); }
int32_t BlockManager::num_available() const { return impl_->available(); }
int64_t BlockManager::live_slots() const { return impl_->live_slots; }
const KvCounters& BlockManager::counters() const { return impl_->counters; }
uint64_t BlockManager::prefix_epoch() const { return impl_->epoch; }
int32_t BlockManager::ReferenceCount(BlockId block) const { return impl_->at(block).references; }

int32_t BlockManager::MatchPrefix(std::span<const TokenId> tokens, std::string_view salt,
                                  BlockTable* table) {
  CHECK(table->blocks.empty()) << "MatchPrefix needs an empty table";
  *table = BlockTable{};
  Impl& m = *impl_;
  if (!m.options.prefix_cache || tokens.empty()) return 0;
  m.counters.query_tokens += tokens.size();
  const size_t max_blocks = (tokens.size() - 1) / m.size();
  Impl::Parent parent = m.Root(salt);
  for (size_t i = 0; i < max_blocks; ++i) {
    const auto chunk = tokens.subspan(i * m.size(), m.size());
    Impl::Parent next = m.Child(parent, chunk);
    const BlockId b = m.Find(next.key, parent.prefix, chunk);
    if (b == kNone) break;
    m.Ref(b);
    m.SetBlockLive(b, m.size());
    table->blocks.push_back(b);
    next.prefix = m.at(b).prefix;
    parent = next;
  }
  table->num_published = static_cast<int32_t>(table->blocks.size());
  table->last_key = table->blocks.empty() ? Hash128{} : parent.key;
  table->num_live = table->num_published * m.size();
  // Deepest first, so that the summary loses children before parents.
  for (size_t i = table->blocks.size(); i-- > 0;) m.TouchChunk(table->blocks[i]);
  m.counters.hit_tokens += table->num_live;
  return table->num_live;
}

int32_t BlockManager::BlocksNeeded(const BlockTable& table, int32_t num_tokens) const {
  CHECK_GE(num_tokens, 0);
  const int64_t blocks = (int64_t{num_tokens} + impl_->size() - 1) / impl_->size();
  return static_cast<int32_t>(
      std::max<int64_t>(0, blocks - static_cast<int64_t>(table.blocks.size())));
}

bool BlockManager::Reserve(BlockTable* table, int32_t num_tokens) {
  const int32_t needed = BlocksNeeded(*table, num_tokens);
  if (needed > impl_->available()) {
    ++impl_->counters.alloc_failures;
    return false;
  }
  for (int32_t i = 0; i < needed; ++i) table->blocks.push_back(impl_->Allocate());
  return true;
}

void BlockManager::Shrink(BlockTable* table, int32_t num_tokens) {
  CHECK_GE(num_tokens, 0);
  Impl& m = *impl_;
  if (table->num_live > num_tokens) SetLive(table, num_tokens);
  const size_t keep = (static_cast<size_t>(num_tokens) + m.size() - 1) / m.size();
  bool known = false;
  while (table->blocks.size() > keep) {
    known |= m.at(table->blocks.back()).content != Content::kPrivate;
    m.Unref(table->blocks.back());
    table->blocks.pop_back();
  }
  if (known) m.KeepParentsYounger(*table, keep);
  if (table->num_published > num_tokens / m.size()) {
    table->num_published = num_tokens / m.size();
    table->last_key =
        table->num_published == 0 ? Hash128{} : m.at(table->blocks[table->num_published - 1]).key;
  }
}

BlockTable BlockManager::Fork(const BlockTable& table) {
  for (BlockId b : table.blocks) {
    CHECK_GT(impl_->at(b).references, 0) << "block " << b;
    impl_->Ref(b);
  }
  return table;
}

int32_t BlockManager::CopiesNeeded(const BlockTable& table, int32_t begin, int32_t end) const {
  CHECK(begin >= 0 && begin <= end);
  CHECK_LE(int64_t{end}, static_cast<int64_t>(table.blocks.size()) * impl_->size());
  int32_t needed = 0;
  for (int32_t i = begin / impl_->size(); int64_t{i} * impl_->size() < end; ++i) {
    if (impl_->MustReplace(table.blocks[i])) ++needed;
  }
  return needed;
}

bool BlockManager::MakeWritable(BlockTable* table, int32_t begin, int32_t end,
                                std::vector<KvCopy>* copies) {
  Impl& m = *impl_;
  if (CopiesNeeded(*table, begin, end) > m.available()) {
    ++m.counters.alloc_failures;
    return false;
  }
  if (begin == end) return true;
  const int32_t first = begin / m.size();
  const int32_t last = (end - 1) / m.size();
  CHECK_LE(table->num_published, last + 1) << "published blocks behind the range";
  if (table->num_published > first) {
    table->num_published = first;
    table->last_key = first == 0 ? Hash128{} : m.at(table->blocks[first - 1]).key;
  }
  if (table->num_live > begin) SetLive(table, begin);
  bool known = false;
  for (int32_t i = last; i >= first; --i) {
    const BlockId old = table->blocks[i];
    if (!m.MustReplace(old)) {
      if (m.at(old).content == Content::kDuplicate) m.Forget(old);
      continue;
    }
    const BlockId fresh = m.Allocate();
    table->blocks[i] = fresh;
    const int32_t kept = std::max(0, begin - i * m.size());
    m.SetBlockLive(fresh, std::clamp(table->num_live - i * m.size(), 0, kept));
    if (kept > 0) {
      copies->push_back(KvCopy{.src = old, .dst = fresh, .num_slots = kept});
      ++m.counters.copies;
    }
    known |= m.at(old).content != Content::kPrivate;
    m.Unref(old);
  }
  if (known) m.KeepParentsYounger(*table, first);
  return true;
}

// Whether the key is free for this block. An entry with equal tokens behind a prefix that has
// left the cache can never be found again and makes room.
bool BlockManager::Impl::CanPublish(BlockId b, const Parent& parent, const Hash128& key,
                                    std::span<const TokenId> tokens) {
  const auto it = by_key.find(key);
  if (it == by_key.end()) return true;
  const BlockId other = it->second;
  if (!std::ranges::equal(ids(other), tokens) || blocks[other].parent == parent.prefix) {
    return false;
  }
  LeaveCache(other);
  Forget(other);
  if (blocks[other].references == 0) {
    evictable.Remove(other);
    free_blocks.push_back(other);
  }
  return true;
}

void BlockManager::Impl::PublishOne(BlockId b, int32_t depth, const Parent& parent,
                                    const Parent& child, std::span<const TokenId> tokens) {
  Block& block = at(b);
  std::ranges::copy(tokens, ids(b).begin());
  block.depth = depth;
  block.key = child.key;
  block.parent = parent.prefix;
  block.fold = child.fold;
  block.prefix = child.prefix;
}

void BlockManager::Publish(std::span<const TokenId> tokens, int32_t num_committed,
                           std::string_view salt, BlockTable* table) {
  Impl& m = *impl_;
  const int32_t last = num_committed / m.size();
  if (!m.options.prefix_cache || table->num_published >= last) return;
  CHECK_LE(static_cast<size_t>(num_committed), tokens.size());
  CHECK_LE(static_cast<size_t>(last), table->blocks.size());
  Impl::Parent parent = m.ParentAt(*table, table->num_published, salt);
  for (int32_t i = table->num_published; i < last; ++i) {
    const BlockId b = table->blocks[i];
    const auto chunk = tokens.subspan(static_cast<size_t>(i) * m.size(), m.size());
    CHECK_GT(m.at(b).references, 0) << "block " << b;
    Impl::Parent child = m.Child(parent, chunk);
    if (m.at(b).content != Content::kPrivate) {  // a fork of this table published it
      CHECK(std::ranges::equal(m.ids(b), chunk)) << "block " << b << " holds other tokens";
      child.prefix = m.at(b).prefix;
    } else if (const BlockId other = m.Find(child.key, parent.prefix, chunk); other != kNone) {
      child.prefix = m.at(other).prefix;
      m.PublishOne(b, i, parent, child, chunk);
      m.at(b).content = Content::kDuplicate;
    } else if (m.CanPublish(b, parent, child.key, chunk)) {
      child.prefix = m.next_prefix++;
      m.PublishOne(b, i, parent, child, chunk);
      m.EnterCache(b);
    } else {
      return;  // a collision: neither this block nor those behind it can be found
    }
    table->num_published = i + 1;
    table->last_key = child.key;
    parent = child;
  }
}

void BlockManager::Release(BlockTable* table) {
  for (size_t i = table->blocks.size(); i-- > 0;) impl_->Unref(table->blocks[i]);
  *table = BlockTable{};
}

void BlockManager::SetLive(BlockTable* table, int32_t num_live) {
  Impl& m = *impl_;
  CHECK_GE(num_live, 0);
  CHECK_LE(int64_t{num_live}, static_cast<int64_t>(table->blocks.size()) * m.size());
  const int32_t from = std::min(num_live, table->num_live);
  const int32_t to = std::max(num_live, table->num_live);
  for (int32_t i = from / m.size(); int64_t{i} * m.size() < to; ++i) {
    const BlockId b = table->blocks[i];
    const int32_t live = std::clamp(num_live - i * m.size(), 0, m.size());
    // What another table sees in a shared block stays live.
    if (m.at(b).references == 1 || live > m.at(b).live) m.SetBlockLive(b, live);
  }
  table->num_live = num_live;
}

void BlockManager::Impl::TagBlock(Session* session, BlockId b) {
  Block& block = at(b);
  const auto [it, added] = session->generations.try_emplace(b, block.generation);
  if (added || it->second != block.generation) {
    it->second = block.generation;
    ++block.tags;
  }
  Touch(b);  // tagged before or not: a parent stays behind its children
}

void BlockManager::Tag(std::string_view session_id, const BlockTable& table, TimePoint expires) {
  Impl& m = *impl_;
  if (m.sessions.size() >= m.prune_at) m.PruneSessions();
  const std::string id(session_id);
  Impl::Session& session = m.sessions[id];
  m.expiries.erase({session.expires, id});
  session.expires = expires;
  m.expiries.emplace(expires, id);
  for (int32_t i = table.num_published; i-- > 0;) {
    const BlockId b = table.blocks[i];
    m.TagBlock(&session, b);
    if (const BlockId twin = m.Twin(b); twin != kNone) m.TagBlock(&session, twin);
  }
}

void BlockManager::Impl::DropSession(absl::flat_hash_map<std::string, Session>::iterator it) {
  std::vector<BlockId> bearing;
  for (const auto& [b, generation] : it->second.generations) {
    if (blocks[b].generation == generation) bearing.push_back(b);
  }
  std::ranges::sort(bearing, [&](BlockId a, BlockId b) {
    return std::pair(blocks[a].depth, a) > std::pair(blocks[b].depth, b);
  });
  for (BlockId b : bearing) {
    if (--blocks[b].tags == 0) Touch(b);
  }
  expiries.erase({it->second.expires, it->first});
  sessions.erase(it);
}

void BlockManager::DropTag(std::string_view session_id) {
  const auto it = impl_->sessions.find(std::string(session_id));
  if (it != impl_->sessions.end()) impl_->DropSession(it);
}

void BlockManager::ExpireTags(TimePoint now) {
  Impl& m = *impl_;
  while (!m.expiries.empty() && m.expiries.begin()->first <= now) {
    m.DropSession(m.sessions.find(std::string(m.expiries.begin()->second)));
  }
}

int32_t BlockManager::Impl::LiveTags(const Session& session) const {
  return static_cast<int32_t>(std::ranges::count_if(session.generations, [&](const auto& entry) {
    return blocks[entry.first].generation == entry.second;
  }));
}

// Sessions whose last block was evicted are forgotten; amortised by doubling.
void BlockManager::Impl::PruneSessions() {
  for (auto it = sessions.begin(); it != sessions.end();) {
    const auto next = std::next(it);
    if (LiveTags(it->second) == 0) DropSession(it);
    it = next;
  }
  prune_at = 2 * sessions.size() + 64;
}

std::vector<BlockManager::SessionBlocks> BlockManager::ListTags(TimePoint now) {
  ExpireTags(now);
  impl_->PruneSessions();
  std::vector<SessionBlocks> list;
  for (const auto& [id, session] : impl_->sessions) {
    list.push_back(
        {.session_id = id, .blocks = impl_->LiveTags(session), .expires = session.expires});
  }
  std::ranges::sort(list, {}, &SessionBlocks::session_id);
  return list;
}

KvOccupancy BlockManager::occupancy() const {
  const Impl& m = *impl_;
  KvOccupancy o;
  o.free_blocks = static_cast<int32_t>(m.free_blocks.size());
  o.cached_blocks = m.evictable.size(kUntagged) + m.evictable.size(kTagged);
  o.active_blocks = m.options.num_blocks - o.free_blocks - o.cached_blocks;
  return o;
}

std::vector<uint64_t> BlockManager::PrefixChunks() const {
  const Impl& m = *impl_;
  std::vector<uint64_t> hashes;
  hashes.reserve(std::min(m.chunks.size(0), m.options.max_prefix_chunks));
  for (BlockId b = m.chunks.newest(0); m.chunks.IsBlock(b); b = m.chunks.older(b)) {
    if (static_cast<int32_t>(hashes.size()) == m.options.max_prefix_chunks) break;
    hashes.push_back(m.blocks[b].fold);
  }
  return hashes;
}

void BlockManager::Impl::CheckBlock(BlockId b,
                                    const absl::flat_hash_map<PrefixId, BlockId>& by_prefix) const {
  const Block& block = blocks[b];
  CHECK_GE(block.references, 0) << "block " << b;
  CHECK(block.live >= 0 && block.live <= options.block_size) << "block " << b;
  const bool idle = block.references == 0;
  const bool published = block.content == Content::kPublished;
  CHECK_EQ(evictable.list_of(b) != kNone, idle && published) << "block " << b;
  if (idle) CHECK_EQ(block.live, 0) << "block " << b;
  if (idle && !published) CHECK(block.content == Content::kPrivate) << "block " << b;
  const bool ends_chunk = (int64_t{block.depth} + 1) * options.block_size % kPrefixChunk == 0;
  CHECK_EQ(chunks.list_of(b) != kNone, published && ends_chunk) << "block " << b;
  if (!published) return;
  const auto entry = by_key.find(block.key);
  CHECK(entry != by_key.end() && entry->second == b) << "block " << b;
  if (!idle) return;
  CHECK_EQ(evictable.list_of(b), block.tags > 0 ? kTagged : kUntagged) << "block " << b;
  const auto parent = by_prefix.find(block.parent);
  if (parent == by_prefix.end() || blocks[parent->second].references > 0) return;
  if (blocks[parent->second].promoted) return;
  CHECK_LE(evictable.list_of(b), evictable.list_of(parent->second)) << "child " << b;
}

void BlockManager::CheckInvariants() const {
  const Impl& m = *impl_;
  absl::flat_hash_map<PrefixId, BlockId> by_prefix;
  size_t published = 0;
  int32_t active = 0;
  int64_t live = 0;
  for (BlockId b = 0; b < m.options.num_blocks; ++b) {
    live += m.blocks[b].live;
    if (m.blocks[b].references > 0) ++active;
    if (m.blocks[b].content != Content::kPublished) continue;
    ++published;
    CHECK(by_prefix.emplace(m.blocks[b].prefix, b).second) << "block " << b;
  }
  CHECK_EQ(live, m.live_slots);
  CHECK_EQ(published, m.by_key.size());
  CHECK_EQ(active, occupancy().active_blocks);
  for (BlockId b = 0; b < m.options.num_blocks; ++b) m.CheckBlock(b, by_prefix);
  std::vector<bool> is_free(m.options.num_blocks, false);
  for (BlockId b : m.free_blocks) {
    CHECK_EQ(m.blocks[b].references, 0) << "block " << b;
    CHECK(m.blocks[b].content == Content::kPrivate && !is_free[b]) << "block " << b;
    is_free[b] = true;
  }
  // Children are evicted before parents (a promoted twin may lack the tags of the one it follows).
  for (int32_t list : {kUntagged, kTagged}) {
    std::vector<bool> passed(m.options.num_blocks, false);
    int32_t length = 0;
    for (BlockId b = m.evictable.oldest(list); m.evictable.IsBlock(b); b = m.evictable.newer(b)) {
      CHECK_EQ(m.evictable.list_of(b), list) << "block " << b;
      const auto parent = by_prefix.find(m.blocks[b].parent);
      CHECK(parent == by_prefix.end() || !passed[parent->second] ||
            m.blocks[parent->second].promoted)
          << "parent " << parent->second << " is evicted before " << b;
      passed[b] = true;
      ++length;
    }
    CHECK_EQ(length, m.evictable.size(list));
  }
}

}  // namespace paceline

// KV blocks and runner slots of draft paths. Slots are state that a bind can rebuild: when they run
// short, the path that has not run for longest gives up its own. Engine thread.
#pragma once

#include <list>
#include <memory>
#include <string_view>
#include <vector>

#include "worker/draft/draft_path.h"
#include "worker/runner/runner.h"

namespace paceline {

class DraftPool {
 public:
  DraftPool(const RunnerInfo& info, bool prefix_cache);

  BlockManager& blocks() { return blocks_; }
  const BlockManager& blocks() const { return blocks_; }

  // Gives the path a slot, if need be that of the path which was planned longest ago. False when
  // paths of the plan `step` hold them all.
  bool TakeSlot(DraftPath* path, uint64_t step);

  // A branch of `path` behind its first kv_len entries, which are computed.
  std::unique_ptr<DraftPath> Fork(const DraftPath& path, int32_t kv_len);

  // Makes room for rows [kv_len, kv_len + rows), with the copies to do before them. False when
  // blocks are short; nothing has changed then but blocks reserved.
  bool Reserve(DraftPath* path, int32_t rows, std::vector<KvCopy>* copies);
  // Blocks that Reserve would take.
  int32_t BlocksNeeded(const DraftPath& path, int32_t rows) const;

  // Forgets KV behind the first kv_len entries.
  void Truncate(DraftPath* path, int32_t kv_len);
  // Gives back all of it. The drafts stay.
  void Release(DraftPath* path);

  // CHECKs that nothing is in use.
  void CheckEmpty() const;

 private:
  struct Slot {
    DraftPath* owner = nullptr;
    std::list<SlotId>::iterator place;
  };
  void FreeSlot(DraftPath* path);

  BlockManager blocks_;
  std::vector<Slot> slots_;
  std::list<SlotId> order_;  // free ones first, then by last use
};

}  // namespace paceline

#include "worker/draft/draft_pool.h"

#include <algorithm>

#include "common/check.h"

namespace paceline {

DraftPool::DraftPool(const RunnerInfo& info, bool prefix_cache)
    : blocks_({.num_blocks = info.num_blocks,
               .block_size = info.block_size,
               .prefix_cache = prefix_cache,
               .model_fingerprint = info.model_fingerprint}),
      slots_(info.max_slots) {
  for (SlotId slot = 0; slot < info.max_slots; ++slot) {
    slots_[slot].place = order_.insert(order_.end(), slot);
  }
}

bool DraftPool::TakeSlot(DraftPath* path, uint64_t step) {
  if (path->slot == kNone) {
    Slot& oldest = slots_[order_.front()];
    if (oldest.owner != nullptr) {
      if (oldest.owner->planned_step == step) return false;
      oldest.owner->slot = kNone;
      oldest.owner->slot_len = 0;
    }
    oldest.owner = path;
    path->slot = order_.front();
    path->slot_len = 0;
  }
  order_.splice(order_.end(), order_, slots_[path->slot].place);
  path->planned_step = step;
  return true;
}

void DraftPool::FreeSlot(DraftPath* path) {
  if (path->slot == kNone) return;
  CHECK(slots_[path->slot].owner == path) << "slot " << path->slot;
  slots_[path->slot].owner = nullptr;
  order_.splice(order_.begin(), order_, slots_[path->slot].place);
  path->slot = kNone;
  path->slot_len = 0;
}

std::unique_ptr<DraftPath> DraftPool::Fork(const DraftPath& path, int32_t kv_len) {
  CHECK_LE(kv_len, path.kv_len);
  auto fork = std::make_unique<DraftPath>();
  fork->table = blocks_.Fork(path.table);
  fork->kv_len = kv_len;
  blocks_.Shrink(&fork->table, kv_len);
  return fork;
}

int32_t DraftPool::BlocksNeeded(const DraftPath& path, int32_t rows) const {
  const int32_t end = path.kv_len + rows;
  const int32_t capacity = static_cast<int32_t>(path.table.blocks.size()) * blocks_.block_size();
  return blocks_.BlocksNeeded(path.table, end) +
         blocks_.CopiesNeeded(path.table, std::min(path.kv_len, capacity), std::min(end, capacity));
}

bool DraftPool::Reserve(DraftPath* path, int32_t rows, std::vector<KvCopy>* copies) {
  if (BlocksNeeded(*path, rows) > blocks_.num_available()) return false;
  const int32_t end = path->kv_len + rows;
  CHECK(blocks_.Reserve(&path->table, end));
  CHECK(blocks_.MakeWritable(&path->table, path->kv_len, end, copies));
  return true;
}

void DraftPool::Truncate(DraftPath* path, int32_t kv_len) {
  if (kv_len >= path->kv_len) return;
  path->kv_len = kv_len;
  blocks_.Shrink(&path->table, kv_len);
}

void DraftPool::Release(DraftPath* path) {
  FreeSlot(path);
  blocks_.Release(&path->table);
  path->kv_len = 0;
}

void DraftPool::CheckEmpty() const {
  blocks_.CheckInvariants();
  CHECK_EQ(blocks_.occupancy().active_blocks, 0);
  for (const Slot& slot : slots_) CHECK(slot.owner == nullptr);
}

}  // namespace paceline

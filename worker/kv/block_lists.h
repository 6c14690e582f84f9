// The order in which blocks may leave the pool.
#pragma once

#include <cstdint>
#include <vector>

#include "common/check.h"
#include "worker/types/step_plan.h"

namespace paceline {

// A few doubly linked lists of block ids, from oldest to newest, in plain arrays: a block is in at
// most one of them, every change is O(1), nothing is allocated after construction. A list's head
// is an id behind the blocks.
class BlockLists {
 public:
  BlockLists(int32_t num_blocks, int32_t num_lists)
      : num_blocks_(num_blocks), sizes_(num_lists, 0), list_(num_blocks, kNone) {
    next_.resize(num_blocks + num_lists);
    prev_.resize(num_blocks + num_lists);
    for (int32_t i = 0; i < num_lists; ++i) next_[Head(i)] = prev_[Head(i)] = Head(i);
  }

  int32_t size(int32_t list) const { return sizes_[list]; }
  // The list that holds the block, or kNone.
  int32_t list_of(BlockId block) const { return list_[block]; }
  // Ids of at least num_blocks end an iteration.
  BlockId oldest(int32_t list) const { return next_[Head(list)]; }
  BlockId newest(int32_t list) const { return prev_[Head(list)]; }
  BlockId newer(BlockId block) const { return next_[block]; }
  BlockId older(BlockId block) const { return prev_[block]; }
  bool IsBlock(BlockId id) const { return id < num_blocks_; }

  void PushNewest(int32_t list, BlockId block) {
    CHECK_EQ(list_[block], kNone) << "block " << block;
    const BlockId head = Head(list);
    const BlockId before = prev_[head];
    next_[before] = prev_[head] = block;
    prev_[block] = before;
    next_[block] = head;
    list_[block] = list;
    ++sizes_[list];
  }

  void Remove(BlockId block) {
    CHECK_NE(list_[block], kNone) << "block " << block;
    next_[prev_[block]] = next_[block];
    prev_[next_[block]] = prev_[block];
    --sizes_[list_[block]];
    list_[block] = kNone;
  }

 private:
  BlockId Head(int32_t list) const { return num_blocks_ + list; }

  int32_t num_blocks_;
  std::vector<int32_t> sizes_;
  std::vector<int32_t> list_;
  std::vector<BlockId> next_;
  std::vector<BlockId> prev_;
};

}  // namespace paceline

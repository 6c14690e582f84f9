// What must hold between any two calls of the scheduler.
#include <algorithm>

#include "common/check.h"
#include "worker/engine/scheduler.h"

namespace paceline {

void Scheduler::CheckInvariants() const {
  blocks_.CheckInvariants();
  CheckRunning();
  CheckRequests();
}

// Slots and blocks belong to exactly those that hold them.
void Scheduler::CheckRunning() const {
  std::vector<int32_t> references(info_.num_blocks, 0);
  std::vector<bool> used(info_.max_slots, false);
  CHECK(std::ranges::is_sorted(running_, RanksBefore()));
  for (const Sequence* s : running_) {
    CHECK(s->running());
    CHECK(s->slot >= 0 && !used[s->slot]) << "slot " << s->slot << " twice";
    used[s->slot] = true;
    for (BlockId b : s->table.blocks) ++references[b];
    const int64_t capacity = static_cast<int64_t>(s->table.blocks.size()) * info_.block_size;
    CHECK(s->kv_len <= capacity && s->table.num_live <= capacity) << "slot " << s->slot;
    CHECK_EQ(s->pending_steps > 0, s->last_step > done_step_) << "slot " << s->slot;
    CHECK(s->pending_steps >= 0 && s->pending_steps <= 2) << "slot " << s->slot;
    CHECK(s->len() < s->max_len) << "slot " << s->slot << " runs beyond its end";
    if (s->in_flight()) continue;
    CHECK_EQ(s->pending_rows, 0);
    CHECK(!s->pending_fork && !s->pending_sample);
    if (s->state == SequenceState::kDecode) CHECK_EQ(s->kv_len, s->len() - 1);
  }
  for (SlotId slot : free_slots_) {
    CHECK(!used[slot]) << "free slot " << slot << " is used";
    used[slot] = true;
  }
  CHECK(std::ranges::all_of(used, [](bool u) { return u; })) << "a slot is lost";
  for (const Grave& grave : graves_) {
    for (BlockId b : grave.table.blocks) ++references[b];
  }
  for (BlockId b = 0; b < info_.num_blocks; ++b) {
    CHECK_EQ(blocks_.ReferenceCount(b), references[b]) << "block " << b;
  }
}

// Each sample is where its state says, and the counts agree.
void Scheduler::CheckRequests() const {
  size_t running = 0;
  size_t waiting = 0;
  int32_t queued = 0;
  for (const auto& [handle, request] : requests_) {
    int32_t unfinished = 0;
    int32_t with_kv = 0;
    for (const auto& s : request->samples) {
      unfinished += s->state != SequenceState::kDone;
      with_kv += s->running();
      if (s->running()) CHECK(std::ranges::binary_search(running_, s.get(), RanksBefore()));
      if (s->running()) continue;
      CHECK(s->table.blocks.empty() && s->slot == kNone && !s->drafting) << "request " << handle;
      if (s->state == SequenceState::kWaiting) CHECK(waiting_.contains(s.get()));
      waiting += s->state == SequenceState::kWaiting;
      if (s->state == SequenceState::kFollower) CHECK(request->leader != nullptr);
    }
    CHECK(unfinished > 0 && unfinished == request->unfinished) << "request " << handle;
    CHECK_EQ(with_kv, request->running) << "request " << handle;
    running += with_kv;
    queued += !request->admitted;
    CHECK(next_deadline_ <= request->request.deadline) << "request " << handle;
  }
  CHECK_EQ(running, running_.size());
  CHECK_EQ(waiting, waiting_.size());
  CHECK_EQ(queued, num_queued_);
}

}  // namespace paceline

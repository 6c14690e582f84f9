// The draft workers of a target: their links as of the newest look, their load, what is to be sent
// to them, and which of them a session should go to.
//
// Add and Remove: any thread. Everything else: the engine thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "worker/spec/draft_link.h"
#include "worker/spec/draft_mailbox.h"

namespace paceline {

struct Drafter {
  DraftLinkId id = 0;
  std::shared_ptr<DraftLink> link;
  uint64_t name_hash = 0;
  DraftLinkStatus status;
  DraftLoad load;
  int32_t sessions = 0;        // of ours, open on the stream of this incarnation
  int32_t asked = 0;           // of those, asked for drafts in this step
  int32_t asking = 0;          // and in the one before
  uint64_t refused_until = 0;  // step; no session is opened before it
  int32_t refusals = 0;
  // Whether it answers, where its stream stands: its engine may hang behind a network that lives.
  bool silent = false;        // its sessions are to leave
  bool on_trial = false;      // has been silent: one session, until it answers
  uint64_t frames = 0;        // heard from it
  uint64_t answered = 0;      // of those, as of the last step that looked
  int32_t unanswered = 0;     // steps that asked since it was heard ...
  Duration unanswered_for{};  // ... the time between those that followed one another ...
  int32_t owed = 0;           // ... and tokens that it was given to read since
  int32_t silences = 0;
  TargetFrame frame;  // since the last flush

  bool up() const { return status.state != DraftLinkState::kDown; }
};

class DrafterTable {
 public:
  // Silent is a drafter that has said nothing for so long, and so many steps, behind a question.
  // Longer while it has prompts to read, and where it was silent before.
  explicit DrafterTable(Duration patience = std::chrono::milliseconds(250)) : patience_(patience) {}

  DraftLinkId Add(std::shared_ptr<DraftLink> link);
  void Remove(DraftLinkId id);

  // Looks at all links and takes over what was added and removed. A drafter whose stream has ended
  // has forgotten its sessions: their number falls to 0.
  void Refresh(const DraftMailbox& mailbox);

  // Once per step, done at `now`: `asked` becomes `asking`, and who does not answer becomes silent.
  // Returns how many did.
  int32_t EndStep(uint64_t step, TimePoint now);

  // The drafter that serves this stream; null when the stream has ended.
  Drafter* Find(DraftLinkId id, uint64_t incarnation);
  // For a new session: equal keys (beginnings of prompts) prefer the same drafter, up to its share
  // of the load. Null when none takes sessions.
  Drafter* Pick(uint64_t key, uint64_t step);
  bool AnyUp() const;

  // The drafter refused, or does not keep up with what it is sent: no new session for a while,
  // longer each time.
  void Refused(Drafter* drafter, uint64_t step);

  // Sends what has been gathered. Sessions of frames that could not be sent are appended to `lost`.
  void Flush(uint64_t step, std::vector<uint64_t>* lost);

  const std::vector<Drafter>& drafters() const { return drafters_; }

 private:
  struct Change {
    DraftLinkId id = 0;
    std::shared_ptr<DraftLink> link;  // null = removed
  };
  void TakeChanges();
  bool FallsSilent(Drafter* drafter, TimePoint now);

  const Duration patience_;
  TimePoint last_step_{};
  std::mutex mutex_;
  std::vector<Change> changes_;
  DraftLinkId next_id_ = 1;
  std::atomic<bool> changed_ = false;

  std::vector<Drafter> drafters_;
  std::vector<uint64_t> flushing_;  // sessions of the frame being sent
};

}  // namespace paceline

// Receive side of remote drafting: frames come in on receive threads, are checked as words of a
// stranger, and wait in per-sequence slots for the engine thread. A bad part quarantines its
// session until the session's next epoch and is counted; the rest of the frame, the stream and its
// thread go on. No lock is held longer than it takes to copy one proposal.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "common/clock.h"
#include "common/types/draft_messages.h"
#include "worker/spec/spec_counters.h"

namespace paceline {

using DraftLinkId = uint32_t;

struct DraftMailboxLimits {
  int32_t vocab_size = 0;   // token ids are below it
  int32_t max_tokens = 64;  // per branch
  int32_t max_branches = 256;
  int32_t max_proposals_per_frame = 4096;
  int32_t max_waiting = 4;  // proposals per slot; the one with the oldest base goes first
  int32_t remembered_bases = 32;
};

// What one slot held.
struct DraftMail {
  std::vector<DraftProposal> proposals;  // in order of arrival, checked
  std::optional<DraftNack> nack;         // the newest
  bool quarantined = false;
};

class DraftMailbox {
 public:
  explicit DraftMailbox(DraftMailboxLimits limits);

  // From any thread: a frame of this link's stream `incarnation`.
  void Deliver(DraftLinkId link, uint64_t incarnation, DraftFrame frame);

  // --- The engine thread ---

  // The session is open at this drafter; replaces an older epoch or place, and its mail. A
  // quarantine outlives a change of place within the epoch.
  void Open(const DraftSessionId& id, DraftLinkId link, uint64_t incarnation);
  // A base that the drafter was told, with the hash of its prefix. `enough`: tokens of the longest
  // branch or chain for it that answer what was asked with it; 0 = nothing was asked.
  void Told(uint64_t session, int32_t base_len, uint64_t prefix_hash, int32_t enough = 0);
  void Close(uint64_t session);
  // Empties the session's slot. Cheap when nothing is there.
  void Take(uint64_t session, DraftMail* mail);

  // Until all that was asked with the newest bases is answered, or for `most`. Returns the share
  // of it that is.
  double AwaitAnswers(Duration most);
  bool awaits_answers() const;
  // The session's drafter has gone: nothing will come.
  void AwaitNothing(uint64_t session);

  // The newest report of a link's drafter.
  DraftLoad load(DraftLinkId link) const;
  // Frames that have come over the link.
  uint64_t num_frames(DraftLinkId link) const;
  // Adds what was counted since the last call.
  void AddCountersTo(SpecCounters* counters);
  size_t num_slots() const;

 private:
  struct Slot {
    uint32_t epoch = 0;
    DraftLinkId link = 0;
    uint64_t incarnation = 0;
    bool quarantined = false;
    bool asks = false;
    int32_t enough = 0;  // of an answer that is awaited
    struct Base {
      int32_t len = 0;
      uint64_t hash = 0;
    };
    std::deque<Base> bases;  // by rising length
    std::vector<DraftProposal> proposals;
    std::optional<DraftNack> nack;
  };

  Slot* Find(const DraftSessionId& id, DraftLinkId link, uint64_t incarnation);
  std::optional<DraftDrop> Check(const Slot& slot, const DraftProposal& proposal) const;
  void Keep(Slot* slot, DraftProposal proposal);
  void Await(Slot* slot, int32_t enough);
  void Answered(Slot* slot);
  bool TokensFit(std::span<const TokenId> tokens) const;
  void Count(DraftDrop reason) { ++drops_[static_cast<size_t>(reason)]; }

  const DraftMailboxLimits limits_;
  mutable std::mutex mutex_;
  std::condition_variable answered_;
  std::unordered_map<uint64_t, Slot> slots_;
  int32_t asking_ = 0;      // slots that asked with their newest base
  int32_t unanswered_ = 0;  // slots that await an answer
  struct Heard {
    DraftLoad load;
    uint64_t frames = 0;
  };
  std::unordered_map<DraftLinkId, Heard> heard_;
  std::array<uint64_t, static_cast<size_t>(DraftDrop::kNumReasons)> drops_{};
  uint64_t received_ = 0;
  uint64_t late_ = 0;
  uint64_t nacks_ = 0;
  uint64_t quarantines_ = 0;
};

}  // namespace paceline

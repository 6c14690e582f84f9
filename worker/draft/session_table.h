// All sessions of a drafter, and the words of targets applied to them: every frame is a stranger's,
// checked here, and costs its own session at most. Engine thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "worker/draft/draft_outbox.h"
#include "worker/draft/draft_pace.h"
#include "worker/draft/draft_session.h"

namespace paceline {

class SessionTable {
 public:
  using TargetId = DraftEngine::TargetId;

  // All outlive the table.
  SessionTable(const DraftEngineOptions& options, const RunnerInfo& info, const DraftPace* pace,
               DraftPool* pool, DraftEngineCounters* counters, DraftOutbox* outbox);
  ~SessionTable();

  // Applies a frame: opens, then commits, then closes.
  void Apply(TargetId target, TargetFrame frame, TimePoint now);
  void DropTarget(TargetId target);
  void DropAll();
  // Says what is new and useful of a session's drafts.
  void Propose(DraftSession* session, bool at_commit);
  // The same for those whose commits were applied since the last call: what is left of a chain.
  void ProposeHeard();
  // Drops sessions not heard of for the idle timeout.
  void Expire(TimePoint now);

  // Sessions that may have work, in no order. The planner takes out those that have none.
  std::vector<DraftSession*>& active() { return active_; }
  void Activate(DraftSession* session);

  // Makes `blocks` blocks available, if need be by taking the KV of sessions heard less recently,
  // the least recently first, but not of those that the planner's turn has given rows. Those
  // are blocked then, and so is the session where later turns would not find enough either.
  bool MakeRoom(DraftSession* session, int32_t blocks, uint64_t turn);
  // A path of the session has got its first blocks.
  void HoldsKv(DraftSession* session) { holders_.insert({session->heard, session}); }

  // Sessions of the newest turn that enumerate: they share the steps.
  void SetEnumerating(int32_t sessions) { enumerating_ = sessions; }
  int32_t enumerating() const { return std::max(1, enumerating_); }

  int32_t size() const { return static_cast<int32_t>(sessions_.size()); }
  const GuessRanks& ranks() const { return ranks_; }

 private:
  struct Key {
    TargetId target = 0;
    uint64_t session = 0;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct KeyHasher {
    size_t operator()(const Key& key) const;
  };
  using Sessions = std::unordered_map<Key, std::unique_ptr<DraftSession>, KeyHasher>;

  void Open(TargetId target, DraftOpen open, TimePoint now);
  void Commit(TargetId target, DraftCommit commit, TimePoint now);
  void Close(TargetId target, const DraftClose& close);

  int32_t NumSessions(TargetId target) const;
  bool Refuses(TargetId target, const DraftOpen& open);
  bool AddsNothing(const DraftSession& session, const DraftOpen& open) const;
  void Reset(DraftSession* session, DraftOpen open);
  // Whether the commit makes sense at all.
  bool IsSound(const DraftSession& session, const DraftCommit& commit) const;
  // The tokens that the commit adds; false when it does not continue what is known.
  bool Continues(const DraftSession& session, const DraftCommit& commit,
                 std::span<const TokenId>* added) const;
  bool InVocab(std::span<const TokenId> tokens) const;
  void Hear(DraftSession* session, TimePoint now);
  void Want(DraftSession* session, DraftCommit commit);
  void Nack(TargetId target, const DraftSessionId& id, DraftNackReason reason,
            int32_t have_len = 0);
  Sessions::iterator Drop(Sessions::iterator it);
  void WakeBlocked();
  int32_t NumFreedBy(std::span<DraftSession* const> sessions);

  const DraftEngineOptions options_;
  const RunnerInfo info_;
  const DraftPace* const pace_;
  DraftPool* const pool_;
  DraftEngineCounters* const counters_;
  DraftOutbox* const outbox_;
  GuessRanks ranks_;
  Sessions sessions_;
  std::unordered_map<TargetId, int32_t> per_target_;
  std::vector<DraftSession*> active_;
  std::set<std::pair<uint64_t, DraftSession*>> holders_;  // of KV, by `heard`
  int32_t enumerating_ = 0;
  bool any_blocked_ = false;  // some session may be
  uint64_t next_heard_ = 1;
  std::vector<int32_t> references_;  // [num_blocks], all 0 between calls of NumFreedBy
};

}  // namespace paceline

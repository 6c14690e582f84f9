// What the speculator keeps of one decoding sequence between its first and its last step. Plain
// state of the engine thread; draft_speculator.cc has the rules.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "worker/spec/draft_controller.h"
#include "worker/spec/ngram_drafter.h"
#include "worker/spec/remote_session.h"
#include "worker/spec/spec_counters.h"
#include "worker/spec/speculator.h"

namespace paceline {

// One sequence's drafts in one step, from Propose to Committed.
struct DraftFlight {
  int32_t committed = 0;  // tokens known when it was launched
  bool ahead = false;     // its base was in flight then
  ProposalSource source = ProposalSource::kNoProposal;
  std::vector<TokenId> drafts;          // the chain that runs; ahead: empty until its base is known
  std::vector<PlannedBranch> branches;  // ahead
  int32_t depth = 0;                    // drafts behind one another; of a tree less than its rows
};

struct DraftedSequence {
  explicit DraftedSequence(const DraftSessionId& id) : session(id.session), remote(id.session) {}

  uint64_t session;
  DecodingMode mode = DecodingMode::kAuto;
  DraftStrategy strategy = DraftStrategy::kChain;
  int32_t draft_len = 0;  // of kDraft and kNgram
  RemoteSession remote;
  NgramDrafter ngram;
  DraftRequest request;

  // The step being planned.
  DraftFlight planned;
  FallbackReason reason = FallbackReason::kController;  // why it has no remote draft
  bool remote_wanted = false;

  std::deque<DraftFlight> flights;  // launched, oldest first; at most two

  // Strategy kSync: sat out for this base.
  int32_t wait_base = kNone;
  int32_t waits = 0;  // in polls
  uint64_t wait_step = 0;
};

}  // namespace paceline

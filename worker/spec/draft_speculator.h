// Speculation as the engine calls it: remote drafts from several draft workers, the local n-gram
// draft that covers misses, and the controller that decides how much of either pays. What has not
// arrived when Propose is called does not exist; only the plan behind a running step is put off.
//
// Engine thread: everything of Speculator, and counters(). Any thread: AddLink, RemoveLink,
// mailbox().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "worker/spec/draft_controller.h"
#include "worker/spec/draft_link.h"
#include "worker/spec/draft_mailbox.h"
#include "worker/spec/spec_counters.h"
#include "worker/spec/speculator.h"

namespace paceline {

struct DraftSpeculatorOptions {
  int32_t vocab_size = 0;                              // of the target: proposed ids are below it
  DraftStrategy strategy = DraftStrategy::kEnumerate;  // where the request leaves it open
  int32_t draft_len = 5;      // where the controller does not decide (DecodingMode::kDraft, kNgram)
  int32_t max_branches = 24;  // outcomes asked for per sequence, shared out by the drafters' load
  int32_t branch_rows = 256;  // branches asked of one drafter in all
  bool ngram = true;          // miss cover, and DecodingMode::kNgram
  bool trees = false;         // first-token alternatives as a shallow tree of at most 16 rows ...
  int32_t tree_sequences = 4;  // ... for at most so many sequences
  int32_t max_sync_waits = 4;  // steps sat out per base with strategy kSync
  int32_t opens_per_step =
      8;  // sessions (re)opened per step at most, so that a reconnect is no storm
  int32_t open_tokens_per_step = 16384;
  // A drafter that answers nothing for so long loses its sessions to another.
  Duration drafter_patience = std::chrono::milliseconds(250);
  DraftControllerOptions controller;
};

class DraftSpeculator final : public Speculator {
 public:
  explicit DraftSpeculator(DraftSpeculatorOptions options);
  ~DraftSpeculator() override;

  // A draft worker to use from now on, up or not. The id names it in DraftMailbox::Deliver.
  DraftLinkId AddLink(std::shared_ptr<DraftLink> link);
  // Its sessions move elsewhere at the next step.
  void RemoveLink(DraftLinkId id);
  DraftMailbox& mailbox();

  void Begin(const SpecSequence& sequence) override;
  SpecProposal Propose(const SpecSequence& sequence, int32_t max_drafts, bool ahead) override;
  void Launched(const SpecSequence& sequence, std::span<const TokenId> in_flight) override;
  void EndLaunch() override;
  bool WantsToWait(const SpecSequence& sequence) override;
  void AwaitDrafts(const SpecStepInFlight& step) override;
  void Committed(const SpecSequence& sequence, const SpecOutcome& outcome) override;
  void End(const DraftSessionId& id) override;
  void EndStep(const SpecStepTiming& timing) override;

  // As of the last EndStep.
  const SpecCounters& counters() const;
  const DraftController& controller() const;
  // Sessions open at each link, by link name; for status and tests.
  std::vector<std::pair<std::string, int32_t>> SessionsByLink() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline

// What the engine asks of speculation, behind one interface: remote drafts, the local n-gram draft
// and the controller that chooses among them sit behind it. All calls come from the engine thread,
// none but AwaitDrafts blocks, and none can change a token: a wrong proposal costs speed only.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "common/types/draft_messages.h"
#include "common/types/generation.h"
#include "worker/types/step_plan.h"

namespace paceline {

// An engine that has nothing to run but waits for drafts asks again this often per usual step.
inline constexpr int32_t kPollsPerStep = 8;

// A sequence (one sample of one request) that may be drafted for, as of the step's start.
struct SpecSequence {
  DraftSessionId id;                // epoch bumped at every preemption and resume
  std::span<const TokenId> tokens;  // committed: prompt and output
  int32_t prompt_len = 0;
  int32_t max_len = 0;  // prompt + max_tokens
  int32_t sample = 0;
  DecodingMode mode = DecodingMode::kAuto;
  DraftStrategy strategy = DraftStrategy::kDefault;
  int32_t draft_len = 0;  // asked for with kDraft; 0 = the worker's
  const SamplingParams* sampling = nullptr;
  int32_t priority = 0;
  std::string_view cache_salt;  // prefixes are shared only within an equal salt, at drafters too
};

enum class ProposalSource : uint8_t { kNoProposal = 0, kRemoteFull, kRemotePartial, kNgram };

// Rows to verify behind the sequence's newest token. Either host-known drafts (tokens with parents:
// a chain or a small tree), or, for a step launched ahead, branches keyed by the outcome in flight.
struct SpecProposal {
  ProposalSource source = ProposalSource::kNoProposal;
  std::vector<TokenId> tokens;   // [num_drafts]
  std::vector<int32_t> parents;  // [num_drafts]; kNone = behind the newest token. Empty = a chain
  std::vector<PlannedBranch> branches;
};

// What became of one sequence in one step.
struct SpecOutcome {
  DraftSessionId id;
  ProposalSource source = ProposalSource::kNoProposal;
  int32_t drafted = 0;  // draft rows that ran
  int32_t accepted = 0;
  int32_t base_len = 0;                 // committed length after the step
  std::span<const TokenId> new_tokens;  // committed by the step
};

struct SpecStepTiming {
  Duration step{};   // launch to result
  TimePoint done{};  // when its result was there
  int32_t rows = 0;
  int64_t context = 0;  // tokens that its sequences attend to, in all
  int32_t sequences = 0;
};

// A step that runs beside an engine that launches ahead.
struct SpecStepInFlight {
  TimePoint now{};
  TimePoint started{};
  int32_t rows = 0;
  int64_t context = 0;
  Duration host{};    // that the engine usually takes to plan a step and to launch it
  Duration waited{};  // from the newest launch to the result of the step before it
};

class Speculator {
 public:
  virtual ~Speculator() = default;

  // The sequence decodes from now on. Called again with a larger epoch after a preemption.
  virtual void Begin(const SpecSequence& sequence) = 0;

  // Drafts for the step being planned, at most max_drafts rows. `ahead`: the step that decides this
  // sequence's base is in flight, and only branches can be used.
  virtual SpecProposal Propose(const SpecSequence& sequence, int32_t max_drafts, bool ahead) = 0;

  // The step with these host-known drafts has been launched (called also with none): tells the
  // drafter what is being verified.
  virtual void Launched(const SpecSequence& sequence, std::span<const TokenId> in_flight) = 0;

  // All Launched calls of the step are done and the step is on the device: what drafters should
  // know of it goes out now, while there is a step's time to draft for its outcomes.
  virtual void EndLaunch() {}

  // Only the mode sync, which exists for comparison, ever answers true: a proposal for this base is
  // being made, and the engine may leave the sequence out of the step. Bounded: at most a few times
  // kPollsPerStep per base, and in steps where others run.
  virtual bool WantsToWait(const SpecSequence&) { return false; }

  // The engine would plan the next step now, while this one runs. Blocks as long as drafts for its
  // outcome may still come and planning them will be done before it ends; no longer.
  virtual void AwaitDrafts(const SpecStepInFlight&) {}

  virtual void Committed(const SpecSequence& sequence, const SpecOutcome& outcome) = 0;

  // Finished, cancelled or preempted.
  virtual void End(const DraftSessionId& id) = 0;

  // After every step's commit: frames gathered since the last call go out, the controller learns.
  virtual void EndStep(const SpecStepTiming& timing) = 0;
};

// Never proposes.
class NoSpeculator final : public Speculator {
 public:
  void Begin(const SpecSequence&) override {}
  SpecProposal Propose(const SpecSequence&, int32_t, bool) override { return {}; }
  void Launched(const SpecSequence&, std::span<const TokenId>) override {}
  void Committed(const SpecSequence&, const SpecOutcome&) override {}
  void End(const DraftSessionId&) override {}
  void EndStep(const SpecStepTiming&) override {}
};

}  // namespace paceline

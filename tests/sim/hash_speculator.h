// A Speculator that needs no drafter: it knows the hash model, so that acceptance and the share of
// guessed outcomes are what the options say. For simulations of the engine; no thread, no time.
#pragma once

#include <unordered_map>

#include "tests/sim/hash_model.h"
#include "worker/spec/speculator.h"

namespace paceline {

struct HashSpeculatorOptions {
  HashModelOptions target;
  double agreement = 0.7;  // of a draft token with the target's, see HashModelOptions
  double hit_rate = 0.8;   // share of outcomes in flight that a branch is ready for
  int32_t max_drafts = 8;
};

class HashSpeculator final : public Speculator {
 public:
  explicit HashSpeculator(HashSpeculatorOptions options);

  void Begin(const SpecSequence& sequence) override;
  SpecProposal Propose(const SpecSequence& sequence, int32_t max_drafts, bool ahead) override;
  void Launched(const SpecSequence&, std::span<const TokenId>) override {}
  void Committed(const SpecSequence& sequence, const SpecOutcome& outcome) override;
  void End(const DraftSessionId& id) override { sessions_.erase(id.session); }
  void EndStep(const SpecStepTiming&) override {}

  int64_t drafted() const { return drafted_; }
  int64_t accepted() const { return accepted_; }

 private:
  struct Session {
    uint64_t prefix = 0;  // fold over the first `length` tokens
    size_t length = 0;
    int32_t accepted = 0;  // by the newest committed step
    SpecProposal last;     // what the step in flight, if any, verifies
  };

  uint64_t Prefix(Session* session, std::span<const TokenId> tokens);
  std::vector<TokenId> Draft(uint64_t prefix, std::vector<TokenId> history,
                             const SpecSequence& sequence, int32_t count) const;
  TokenId Next(const HashModel& model, uint64_t prefix, const std::vector<TokenId>& history,
               const SpecSequence& sequence) const;
  PlannedBranch GuessOutcome(const Session& session, const SpecSequence& sequence,
                             int32_t max_drafts);

  HashSpeculatorOptions options_;
  HashModel target_;
  HashModel drafter_;
  std::unordered_map<uint64_t, Session> sessions_;
  int64_t drafted_ = 0;
  int64_t accepted_ = 0;
};

}  // namespace paceline

// A Speculator that proposes anything: the target's own tokens, spoilt ones, trees around the right
// path, ids out of the vocabulary, parents that are none, more than was asked for. It also holds
// the scheduler to the contract of the calls. For fuzzing; no thread, no time.
#pragma once

#include <random>
#include <string>
#include <unordered_map>

#include "tests/sim/hash_model.h"
#include "worker/spec/speculator.h"

namespace paceline {

class HostileSpeculator final : public Speculator {
 public:
  HostileSpeculator(HashModelOptions target, uint64_t seed)
      : target_(std::move(target)), rng_(seed) {}

  void Begin(const SpecSequence& sequence) override;
  SpecProposal Propose(const SpecSequence& sequence, int32_t max_drafts, bool ahead) override;
  void Launched(const SpecSequence& sequence, std::span<const TokenId>) override;
  void Committed(const SpecSequence& sequence, const SpecOutcome& outcome) override;
  void End(const DraftSessionId& id) override;
  void EndStep(const SpecStepTiming&) override {}

  // The first call that the contract forbids; empty if none.
  const std::string& fault() const { return fault_; }
  size_t num_sessions() const { return sessions_.size(); }
  int64_t drafted() const { return drafted_; }
  int64_t accepted() const { return accepted_; }
  int64_t trees() const { return trees_; }        // proposed
  int64_t branches() const { return branches_; }  // proposed

 private:
  struct Session {
    uint32_t epoch = 0;
    std::vector<TokenId> tokens;
    int32_t in_flight = 0;  // steps launched since Begin, less steps committed
  };

  Session* Find(const SpecSequence& sequence, const char* call);
  void Expect(bool holds, const char* what);
  int32_t Below(int32_t n) { return static_cast<int32_t>(rng_() % static_cast<uint64_t>(n)); }
  TokenId AnyToken() { return Below(target_.options().vocab_size); }
  std::vector<TokenId> Truth(const SpecSequence& sequence, int32_t count) const;
  void Spoil(std::vector<TokenId>* tokens);
  void MakeTree(const std::vector<TokenId>& truth, int32_t count, SpecProposal* proposal);
  void MakeBranches(const std::vector<TokenId>& truth, int32_t max_drafts, SpecProposal* proposal);

  HashModel target_;
  std::mt19937_64 rng_;
  std::unordered_map<uint64_t, Session> sessions_;
  std::unordered_map<uint64_t, uint32_t> newest_epoch_;
  std::string fault_;
  int64_t drafted_ = 0;
  int64_t accepted_ = 0;
  int64_t trees_ = 0;
  int64_t branches_ = 0;
};

}  // namespace paceline

// A draft worker and the stream to it, for simulations: drafts with a hash model as well as it is
// told to, and fails in every way that a process or a network can. One thread; time is ticks.
#pragma once

#include <functional>
#include <map>
#include <random>
#include <string>
#include <unordered_map>

#include "tests/sim/hash_model.h"
#include "worker/spec/draft_link.h"

namespace paceline {

struct ScriptedDrafterOptions {
  HashModelOptions model;                // the target's, with the agreement of the drafts
  int32_t guesses = 3;                   // next tokens per count of accepted drafts
  int32_t max_len = 16;                  // drafts per chain or branch
  int32_t max_sessions = 1 << 20;        // more are answered kOverloaded
  int32_t min_delay = 0, max_delay = 0;  // ticks from a frame to its answer; differing = reordered

  // Chances, per frame or answer.
  double lose = 0;       // a target's frame
  double silent = 0;     // an answer is not sent
  double duplicate = 0;  // an answer comes twice
  double garbage = 0;    // a proposal is made nonsense that can be seen to be
  double random = 0;     // a proposal has random tokens
  double evict = 0;      // a session is forgotten, and said so
  double forget = 0;     // a session is forgotten, and not said so
  double refuse_send = 0;
  // Per tick.
  double die = 0;      // the stream ends ...
  double recover = 1;  // ... and a new one begins
  double drain = 0;    // turned on or off
};

class ScriptedDrafter final : public DraftLink {
 public:
  using Deliver = std::function<void(uint64_t incarnation, DraftFrame frame)>;

  ScriptedDrafter(std::string name, ScriptedDrafterOptions options, uint64_t seed)
      : name_(std::move(name)), options_(options), model_(options.model), rng_(seed) {}
  void SetDeliver(Deliver deliver) { deliver_ = std::move(deliver); }

  const std::string& name() const override { return name_; }
  DraftLinkStatus status() const override { return status_; }
  bool Send(uint64_t incarnation, TargetFrame frame) override;

  // Time passes: answers arrive, the stream dies or comes back.
  void Tick();
  void Die();
  void Recover();
  void SetDraining(bool draining);
  ScriptedDrafterOptions& options() { return options_; }
  int64_t proposals() const { return proposals_; }
  size_t num_sessions() const { return sessions_.size(); }

 private:
  struct Session {
    uint32_t epoch = 0;
    SamplingParams sampling;
    int32_t sample = 0;
    int32_t prompt_len = 0;
    int32_t max_len = 0;
    std::vector<TokenId> tokens;
  };

  bool Chance(double p) { return std::uniform_real_distribution<>(0, 1)(rng_) < p; }
  void OnOpen(DraftOpen open, DraftFrame* answer);
  void OnCommit(const DraftCommit& commit, DraftFrame* answer);
  DraftProposal Propose(const Session& session, const DraftCommit& commit);
  std::vector<TokenId> Draft(const Session& session, std::vector<TokenId> history, int32_t count);
  std::vector<TokenId> Guesses(const Session& session, const std::vector<TokenId>& history);
  void Spoil(DraftProposal* proposal);

  const std::string name_;
  ScriptedDrafterOptions options_;
  HashModel model_;
  std::mt19937_64 rng_;
  Deliver deliver_;
  DraftLinkStatus status_{.state = DraftLinkState::kUp, .incarnation = 1};
  std::unordered_map<uint64_t, Session> sessions_;
  std::multimap<int64_t, std::pair<uint64_t, DraftFrame>> answers_;  // by tick of arrival
  int64_t now_ = 0;
  int64_t proposals_ = 0;
};

}  // namespace paceline

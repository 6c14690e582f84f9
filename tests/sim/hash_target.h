// For tests: a target over a HashModel, which speaks to a draft engine as a real one would, and the
// tokens that a drafter over another HashModel must propose to it.
#pragma once

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/hash.h"
#include "tests/sim/hash_model.h"
#include "worker/draft/draft_engine.h"

namespace paceline {

class HashTarget {
 public:
  struct Session {
    DraftOpen open;
    std::vector<TokenId> truth;  // prompt and the whole output
    int32_t base_len = 0;
    std::vector<TokenId> in_flight;
    std::vector<DraftProposal> proposals;  // in order of arrival
    std::vector<DraftNack> nacks;

    bool done() const { return base_len == static_cast<int32_t>(truth.size()); }
    std::span<const TokenId> base() const { return std::span(truth).first(base_len); }
  };

  HashTarget(DraftEngine* engine, HashModel model) : engine_(engine), model_(std::move(model)) {
    id_ = engine_->AttachTarget([this](DraftFrame frame) { Receive(std::move(frame)); });
  }
  ~HashTarget() { engine_->DetachTarget(id_); }
  HashTarget(const HashTarget&) = delete;
  HashTarget& operator=(const HashTarget&) = delete;

  // A session and its truth; sent by Open.
  Session& NewSession(uint64_t id, int32_t prompt_len, SamplingParams sampling,
                      std::string salt = "") {
    Session& s = sessions_[id];
    s = Session{};
    s.open.id = {id, 1};
    s.open.sampling = std::move(sampling);
    s.open.prompt_len = prompt_len;
    s.open.max_len = prompt_len + s.open.sampling.max_tokens;
    s.open.cache_salt = std::move(salt);
    for (int32_t i = 0; i < prompt_len; ++i) {
      s.open.tokens.push_back(
          static_cast<TokenId>(1 + Mix64(id / 8 * 1000 + i) % (model_.options().vocab_size - 1)));
    }
    s.truth = s.open.tokens;
    for (TokenId t : model_.Generate(s.open.tokens, s.open.sampling, 0)) s.truth.push_back(t);
    s.base_len = prompt_len;
    return s;
  }

  TargetFrame OpenFrame(Session& s) {
    s.open.tokens.assign(s.truth.begin(), s.truth.begin() + s.base_len);
    return {.opens = {s.open}};
  }
  void Open(Session& s) { Deliver(OpenFrame(s)); }

  // Commits `count` more tokens of the truth and says what is verified next.
  DraftCommit Advance(Session& s, int32_t count, std::vector<TokenId> in_flight, int32_t want_len,
                      int32_t want_branches) {
    count = std::min(count, static_cast<int32_t>(s.truth.size()) - s.base_len);
    const auto begin = s.truth.begin() + s.base_len;
    s.base_len += count;
    s.in_flight = in_flight;
    return {.id = s.open.id,
            .base_len = s.base_len,
            .new_tokens = {begin, begin + count},
            .prefix_hash = HashTokens(s.base()),
            .in_flight = std::move(in_flight),
            .want_len = want_len,
            .want_branches = want_branches};
  }
  void Commit(Session& s, int32_t count, std::vector<TokenId> in_flight, int32_t want_len,
              int32_t want_branches = 0) {
    Deliver({.commits = {Advance(s, count, std::move(in_flight), want_len, want_branches)}});
  }
  void Close(const Session& s) { Deliver({.closes = {{s.open.id}}}); }
  void Deliver(TargetFrame frame) { engine_->Deliver(id_, std::move(frame)); }

  // What the verify of the session's in_flight yields: accepted drafts and the token behind them.
  static int32_t Verify(const Session& s) {
    int32_t n = 0;
    const auto left = static_cast<int32_t>(s.truth.size()) - s.base_len;
    while (n < static_cast<int32_t>(s.in_flight.size()) && n < left - 1 &&
           s.in_flight[n] == s.truth[s.base_len + n]) {
      ++n;
    }
    return n;
  }

  Session& session(uint64_t id) { return sessions_.at(id); }
  std::map<uint64_t, Session>& sessions() { return sessions_; }
  DraftEngine::TargetId id() const { return id_; }
  const DraftLoad& load() const { return load_; }
  int32_t frames() const { return frames_; }

 private:
  void Receive(DraftFrame frame) {
    ++frames_;
    load_ = frame.load;
    for (DraftProposal& p : frame.proposals) {
      if (const auto it = sessions_.find(p.id.session); it != sessions_.end()) {
        it->second.proposals.push_back(std::move(p));
      }
    }
    for (const DraftNack& nack : frame.nacks) {
      if (const auto it = sessions_.find(nack.id.session); it != sessions_.end()) {
        it->second.nacks.push_back(nack);
      }
    }
  }

  DraftEngine* const engine_;
  const HashModel model_;
  DraftEngine::TargetId id_ = 0;
  std::map<uint64_t, Session> sessions_;
  DraftLoad load_;
  int32_t frames_ = 0;
};

// The `count` tokens that the model draws behind `tokens`, fewer where the sample ends.
inline std::vector<TokenId> Continue(const HashModel& model, const DraftOpen& open,
                                     std::vector<TokenId> tokens, int32_t count) {
  std::vector<TokenId> drawn;
  uint64_t prefix = model.Empty();
  for (TokenId t : tokens) prefix = model.Extend(prefix, t);
  while (static_cast<int32_t>(drawn.size()) < count) {
    const TokenId t =
        model.Sample(prefix, open.sampling, open.sample, tokens, open.prompt_len).token;
    const auto index = static_cast<int32_t>(tokens.size()) - open.prompt_len;
    drawn.push_back(t);
    tokens.push_back(t);
    prefix = model.Extend(prefix, t);
    if (model.Ends(t, index, open.sampling)) break;
  }
  return drawn;
}

}  // namespace paceline

// Random targets over a small drafter: sessions open, commit, lose, repeat and reorder messages,
// move on and go; some frames are nonsense. Every proposal must be what the drafter's model draws
// behind the base it names; the runner finds broken KV by itself. Replays one run with
// PACELINE_TEST_SEED=n.
#include <cstdlib>
#include <iostream>
#include <random>

#include <gtest/gtest.h>

#include "tests/sim/hash_runner.h"
#include "tests/sim/hash_target.h"

namespace paceline {
namespace {

constexpr int32_t kVocab = 128;

class Fuzz {
 public:
  explicit Fuzz(uint64_t seed) : random_(seed) {
    runner_.model.agreement = Pick({1.0, 0.9, 0.6});
    runner_.num_blocks = Pick({30, 80, 400});
    runner_.block_size = Pick({4, 16});
    runner_.max_slots = Pick({3, 16, 200});
    runner_.max_context = Pick({120, 400});
    options_.max_batch_rows = Pick({3, 16, 100});
    options_.prefill_chunk = Pick({2, 16, 64});
    options_.max_len = Pick({1, 4, 8});
    options_.max_branches = Pick({1, 6, 20});
    options_.max_candidates = Pick({1, 4, 16});
    options_.max_sessions = Pick({4, 100});
    options_.idle_timeout = Pick({std::chrono::seconds(2), std::chrono::seconds(60)});
    options_.prefix_cache = Chance(0.7);
    drafter_.emplace(runner_.model);
    engine_ =
        std::make_unique<DraftEngine>(options_, std::make_unique<HashRunner>(runner_), clock_);
    for (int32_t i = 0; i < Int(1, 3); ++i) targets_.push_back(NewTarget());
  }
  ~Fuzz() {
    targets_.clear();
    engine_->CheckQuiescent();
  }

  void Run(int32_t operations) {
    for (int32_t i = 0; i < operations && !testing::Test::HasFailure(); ++i) {
      const double what = Double();
      if (what < 0.25) {
        Step();
      } else if (what < 0.45) {
        Commit();
      } else if (what < 0.55) {
        OpenSession();
      } else if (what < 0.60) {
        CloseSession();
      } else if (what < 0.65) {
        Reopen();
      } else if (what < 0.75) {
        Repeat();
      } else if (what < 0.85) {
        Mutate();
      } else if (what < 0.90) {
        Nonsense();
      } else if (what < 0.905) {
        targets_[Index(targets_.size())] = NewTarget();
      } else {
        clock_.Advance(std::chrono::milliseconds(Int(0, 200)));
      }
    }
    EndWell();
  }

 private:
  struct Target {
    std::unique_ptr<HashTarget> target;
    std::vector<TargetFrame> sent;  // of late
    // Of each session's base, all that was said to be in flight behind it.
    std::map<std::pair<uint64_t, int32_t>, std::vector<std::vector<TokenId>>> told;
  };

  double Double() { return std::uniform_real_distribution<double>(0, 1)(random_); }
  bool Chance(double p) { return Double() < p; }
  int32_t Int(int32_t least, int32_t most) {
    return std::uniform_int_distribution<int32_t>(least, most)(random_);
  }
  size_t Index(size_t size) { return static_cast<size_t>(Int(0, static_cast<int32_t>(size) - 1)); }
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return *(values.begin() + static_cast<std::ptrdiff_t>(Index(values.size())));
  }

  std::unique_ptr<Target> NewTarget() {
    auto target = std::make_unique<Target>();
    target->target = std::make_unique<HashTarget>(engine_.get(), HashModel(HashModelOptions{}));
    return target;
  }
  Target& AnyTarget() { return *targets_[Index(targets_.size())]; }
  static HashTarget::Session* Any(Target& t, size_t index) {
    auto& sessions = t.target->sessions();
    if (sessions.empty()) return nullptr;
    auto it = sessions.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(index % sessions.size()));
    return &it->second;
  }

  void Step() {
    const absl::StatusOr<bool> worked = engine_->Step();
    ASSERT_TRUE(worked.ok()) << worked.status();
    EXPECT_LE(engine_->load().rows_per_step, options_.max_batch_rows);
    for (auto& t : targets_) {
      for (auto& [id, s] : t->target->sessions()) {
        for (const DraftProposal& p : s.proposals) Check(*t, s, p);
        s.proposals.clear();
      }
    }
  }

  void Check(const Target& t, const HashTarget::Session& s, const DraftProposal& p) {
    if (p.id != s.open.id) return;  // of an epoch that is over
    ASSERT_GT(p.base_len, 0);
    ASSERT_LE(p.base_len, s.base_len);
    const std::vector<TokenId> base(s.truth.begin(), s.truth.begin() + p.base_len);
    EXPECT_EQ(p.prefix_hash, HashTokens(base));
    ASSERT_FALSE(p.branches.empty());
    if (p.kind == ProposalKind::kChain) {
      ASSERT_EQ(p.branches.size(), 1u);
      ExpectDrawn(s, base, p.branches[0].tokens);
      return;
    }
    EXPECT_LE(static_cast<int32_t>(p.branches.size()), options_.max_branches);
    const auto told = t.told.find({p.id.session, p.base_len});
    ASSERT_NE(told, t.told.end());
    // One of the flights told explains all branches.
    const bool explained =
        std::ranges::any_of(told->second, [&](const std::vector<TokenId>& in_flight) {
          return std::ranges::all_of(
              p.branches, [&](const DraftBranch& b) { return Explains(s, base, in_flight, b); });
        });
    EXPECT_TRUE(explained) << "session " << p.id.session << " base " << p.base_len;
  }
  bool Explains(const HashTarget::Session& s, std::vector<TokenId> tokens,
                const std::vector<TokenId>& in_flight, const DraftBranch& b) {
    if (b.accepted < 0 || b.accepted > static_cast<int32_t>(in_flight.size())) return false;
    if (b.accepted < static_cast<int32_t>(in_flight.size()) && b.next == in_flight[b.accepted]) {
      return false;
    }
    tokens.insert(tokens.end(), in_flight.begin(), in_flight.begin() + b.accepted);
    tokens.push_back(b.next);
    return !b.tokens.empty() &&
           b.tokens == Continue(*drafter_, s.open, tokens, static_cast<int32_t>(b.tokens.size()));
  }
  void ExpectDrawn(const HashTarget::Session& s, const std::vector<TokenId>& base,
                   const std::vector<TokenId>& tokens) {
    ASSERT_FALSE(tokens.empty());
    EXPECT_LE(static_cast<int32_t>(tokens.size()), options_.max_len);
    EXPECT_EQ(tokens, Continue(*drafter_, s.open, base, static_cast<int32_t>(tokens.size())));
  }

  void Send(Target& t, TargetFrame frame, bool lost = false) {
    for (const DraftCommit& c : frame.commits) {
      t.told[{c.id.session, c.base_len}].push_back(c.in_flight);
    }
    if (t.sent.size() >= 20) t.sent.erase(t.sent.begin());
    t.sent.push_back(frame);
    if (!lost) t.target->Deliver(std::move(frame));
  }

  void OpenSession() {
    Target& t = AnyTarget();
    if (t.target->sessions().size() > 12) return;
    const uint64_t id = next_session_++;
    SamplingParams sampling;
    sampling.seed = static_cast<uint64_t>(Int(0, 3));
    sampling.temperature = Pick({0.0f, 1.0f});
    sampling.max_tokens = Int(1, 80);
    sampling.ignore_eos = Chance(0.5);
    sampling.repetition_penalty = Pick({1.0f, 1.2f});
    if (Chance(0.3)) sampling.stop_token_ids = {Int(0, kVocab - 1)};
    HashTarget::Session& s =
        t.target->NewSession(id, Int(1, 100), sampling, Chance(0.2) ? "salt" : "");
    s.open.priority = Int(0, 1);
    s.open.id.epoch = static_cast<uint32_t>(Int(-3, 3));
    Send(t, t.target->OpenFrame(s), Chance(0.05));
  }
  void Reopen() {
    Target& t = AnyTarget();
    HashTarget::Session* s = Any(t, Index(100));
    if (s == nullptr) return;
    ++s->open.id.epoch;
    Send(t, t.target->OpenFrame(*s), Chance(0.05));
  }
  void CloseSession() {
    Target& t = AnyTarget();
    HashTarget::Session* s = Any(t, Index(100));
    if (s == nullptr) return;
    Send(t, {.closes = {{s->open.id}}});
    t.target->sessions().erase(s->open.id.session);
  }

  std::vector<TokenId> InFlight(const HashTarget::Session& s, int32_t skip) {
    std::vector<TokenId> tokens;
    const int32_t count = Int(0, 6);
    for (int32_t i = 0; i < count; ++i) {
      const size_t at = static_cast<size_t>(s.base_len + skip + i);
      const bool right = at < s.truth.size() && Chance(0.8);
      tokens.push_back(right ? s.truth[at] : Int(0, kVocab - 1));
    }
    return tokens;
  }
  void Commit() {
    Target& t = AnyTarget();
    TargetFrame frame;
    for (int32_t i = 0; i < Int(1, 4); ++i) {
      HashTarget::Session* s = Any(t, Index(100));
      if (s == nullptr) return;
      const int32_t count = Int(0, 4);
      frame.commits.push_back(t.target->Advance(*s, count, InFlight(*s, count), Int(0, 6),
                                                Chance(0.6) ? Int(0, 30) : 0));
    }
    Send(t, std::move(frame), Chance(0.05));
  }
  void Repeat() {
    Target& t = AnyTarget();
    if (!t.sent.empty()) t.target->Deliver(t.sent[Index(t.sent.size())]);
  }

  // A frame sent before, with one of its parts changed.
  void Mutate() {
    Target& t = AnyTarget();
    if (t.sent.empty()) return;
    TargetFrame frame = t.sent[Index(t.sent.size())];
    const auto odd = [&] { return Pick({-1, 0, 1, 5, kVocab, 1 << 30, INT32_MIN, INT32_MAX}); };
    for (DraftCommit& c : frame.commits) {
      if (Chance(0.1)) c.base_len += Int(-3, 3);
      if (Chance(0.3)) c.base_len = odd();
      if (Chance(0.2) && !c.new_tokens.empty()) c.new_tokens[Index(c.new_tokens.size())] = odd();
      if (Chance(0.1)) c.new_tokens.clear();
      if (Chance(0.2)) c.prefix_hash ^= 1;
      if (Chance(0.2)) c.in_flight.assign(static_cast<size_t>(Int(0, 300)), Int(-1, kVocab));
      if (Chance(0.2)) c.want_len = odd();
      if (Chance(0.2)) c.want_branches = odd();
      if (Chance(0.1)) c.id.epoch += static_cast<uint32_t>(odd());
      t.told[{c.id.session, c.base_len}].push_back(c.in_flight);
    }
    // Opens of sessions that are not the target's: a changed open would be a truth of its own.
    for (DraftOpen& o : frame.opens) {
      o.id.session += 100000;
      if (Chance(0.3)) o.prompt_len = odd();
      if (Chance(0.3)) o.max_len = odd();
      if (Chance(0.3)) o.sample = odd();
      if (Chance(0.3)) o.tokens[Index(o.tokens.size())] = odd();
      if (Chance(0.1)) o.tokens.clear();
      if (Chance(0.2)) o.sampling.max_tokens = odd();
      if (Chance(0.2)) o.sampling.temperature = Pick({-1.0f, 1e30f, 1e-30f});
    }
    t.target->Deliver(std::move(frame));
  }
  void Nonsense() {
    Target& t = AnyTarget();
    TargetFrame frame;
    const DraftSessionId id{static_cast<uint64_t>(Int(100000, 100015)),
                            static_cast<uint32_t>(Int(0, 2))};
    std::vector<TokenId> tokens(static_cast<size_t>(Int(0, 50)));
    for (TokenId& token : tokens) token = Int(0, kVocab - 1);
    switch (Int(0, 2)) {
      case 0:
        frame.opens.push_back({.id = id,
                               .sample = Int(0, 2),
                               .prompt_len = Int(0, 50),
                               .max_len = Int(0, 200),
                               .tokens = tokens});
        break;
      case 1:
        frame.commits.push_back({.id = id,
                                 .base_len = Int(0, 60),
                                 .new_tokens = tokens,
                                 .prefix_hash = HashTokens(tokens),
                                 .in_flight = {Int(0, kVocab)},
                                 .want_len = Int(0, 10),
                                 .want_branches = Int(0, 100)});
        break;
      default:
        frame.closes.push_back({id});
    }
    t.target->Deliver(std::move(frame));
  }

  void Settle() {
    for (int32_t i = 0; i < 5000; ++i) {
      const absl::StatusOr<bool> worked = engine_->Step();
      ASSERT_TRUE(worked.ok()) << worked.status();
      if (!*worked) return;
    }
    FAIL() << "the engine does not come to rest";
  }

  // Whatever has happened, a session opened anew is served.
  void EndWell() {
    for (auto& t : targets_) {
      for (auto& [id, s] : t->target->sessions()) {
        ++s.open.id.epoch;
        s.nacks.clear();
        t->target->Open(s);
        t->target->Commit(s, 0, {}, 2, 0);
        Settle();
        const std::vector<TokenId> expected =
            Continue(*drafter_, s.open, {s.base().begin(), s.base().end()},
                     std::min({2, options_.max_len, s.open.max_len - s.base_len,
                               runner_.max_context - s.base_len}));
        const bool fits = s.base_len + 2 < runner_.num_blocks * runner_.block_size;
        if (!s.nacks.empty() || expected.empty() || !fits) continue;
        ASSERT_FALSE(s.proposals.empty()) << "session " << id;
        EXPECT_EQ(s.proposals.back().branches[0].tokens, expected);
      }
    }
  }

  std::mt19937_64 random_;
  HashRunnerOptions runner_;
  DraftEngineOptions options_;
  ManualClock clock_;
  std::optional<HashModel> drafter_;
  std::unique_ptr<DraftEngine> engine_;
  std::vector<std::unique_ptr<Target>> targets_;
  uint64_t next_session_ = 1;
};

TEST(DraftEngineFuzzTest, NoFrameHarmsWhatItDoesNotName) {
  const char* replay = std::getenv("PACELINE_TEST_SEED");
  const uint64_t first = replay != nullptr ? std::strtoull(replay, nullptr, 10) : 1;
  const uint64_t last = replay != nullptr ? first : 120;
  for (uint64_t seed = first; seed <= last; ++seed) {
    Fuzz(seed).Run(600);
    ASSERT_FALSE(HasFailure()) << "replay with PACELINE_TEST_SEED=" << seed;
  }
}

TEST(DraftEngineFuzzTest, AThousandSessionsComeAndGo) {
  ManualClock clock;
  HashRunnerOptions runner;
  runner.num_blocks = 128;
  DraftEngine engine({}, std::make_unique<HashRunner>(runner), clock);
  {
    std::mt19937_64 random(5);
    HashTarget target(&engine, HashModel(HashModelOptions{}));
    std::vector<uint64_t> open;
    for (uint64_t id = 0; id < 1000; ++id) {
      SamplingParams sampling;
      sampling.seed = id;
      HashTarget::Session& s =
          target.NewSession(id, 1 + static_cast<int32_t>(random() % 90), sampling);
      target.Open(s);
      target.Commit(s, 1, {}, 3, static_cast<int32_t>(random() % 2) * 8);
      open.push_back(id);
      ASSERT_TRUE(engine.Step().ok());
      clock.Advance(std::chrono::milliseconds(1));
      while (open.size() > random() % 40) {
        const size_t i = random() % open.size();
        target.Close(target.session(open[i]));
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
    for (uint64_t id : open) target.Close(target.session(id));
    ASSERT_TRUE(engine.Step().ok());
    EXPECT_EQ(engine.counters().sessions, 0);
    EXPECT_EQ(engine.kv().active_blocks, 0);
    EXPECT_EQ(engine.counters().opens, 1000u);
  }
  engine.CheckQuiescent();
}

}  // namespace
}  // namespace paceline

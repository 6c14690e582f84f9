// The router core against workers that die, restart, hang, drain, refuse and lie, in virtual time.
// Workers speak the hash model, so a token lost, repeated or turned into prompt at a failover
// changes everything behind it. PACELINE_TEST_SEED replays, PACELINE_TEST_RUNS deepens.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "router/core/router_core.h"
#include "tests/sim/hash_model.h"
#include "tests/sim/virtual_time.h"

namespace paceline {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

struct SimOptions {
  uint64_t seed = 1;
  int workers = 3;
  int requests = 120;
  Duration span = seconds(6);  // requests arrive and faults happen within it
  int kills = 6, pauses = 2, drains = 2, lies = 4;
  int worker_capacity = 24;
  double cancel_share = 0.1, deadline_share = 0.05;
  RouterOptions router;
};

class Simulation {
 public:
  explicit Simulation(SimOptions options)
      : options_(options),
        rng_(options.seed),
        model_({.vocab_size = 64}),
        core_(options.router, nullptr),
        workers_(options.workers) {}

  void Run() {
    std::vector<WorkerAddress> addresses;
    for (int i = 0; i < options_.workers; ++i) addresses.push_back({absl::StrCat("w", i)});
    core_.Relist(addresses, Now());
    for (int i = 0; i < options_.workers; ++i) {
      At(Random(0, 300), [this, i] { Boot(i); });
    }
    for (int i = 0; i < options_.requests; ++i) PlanRequest(i + 1);
    const int span = static_cast<int>(options_.span / milliseconds(1));
    for (int i = 0; i < options_.kills; ++i) At(Random(0, span), [this] { Kill(AnyWorker()); });
    for (int i = 0; i < options_.pauses; ++i) At(Random(0, span), [this] { Pause(AnyWorker()); });
    for (int i = 0; i < options_.drains; ++i) At(Random(0, span), [this] { Drain(AnyWorker()); });
    for (int i = 0; i < options_.lies; ++i) {
      At(Random(0, span), [this] { workers_[AnyWorker()].lie = true; });
    }
    const TimePoint end = Now() + options_.span + seconds(120);
    while (time_.Next() != kNoDeadline && Now() < end) {
      Turn();
      if (clients_left_ == 0 && Now() > TimePoint{} + options_.span + seconds(2)) break;
    }
  }

  struct Client {
    ClientRequest request;
    std::vector<std::vector<TokenId>> got;
    std::vector<FinishReason> finish;
    bool cancelled = false, done = false;
    FinishAction last;
  };
  const std::map<RequestKey, Client>& clients() const { return clients_; }
  const HashModel& model() const { return model_; }
  const RouterCore& core() const { return core_; }
  int WorkerSessions() const {
    int n = 0;
    for (const SimWorker& w : workers_) n += static_cast<int>(w.sessions.size());
    return n;
  }
  int64_t lies_told = 0, kills_felt = 0;

 private:
  struct Session {
    GenerationRequest request;
    std::vector<std::vector<TokenId>> history;  // per sample: prompt and output
    std::vector<uint64_t> prefix;
    std::vector<bool> ended;
    int steps_to_first = 1;
  };
  struct SimWorker {
    int life = 0;  // messages of an earlier one are lost, or late
    bool up = false, paused = false, draining = false, lie = false;
    TimePoint line_free{};  // to the router: messages stay in order
    std::map<AttemptHandle, Session> sessions;
  };

  int Random(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }
  bool Chance(double p) { return std::uniform_real_distribution<>(0, 1)(rng_) < p; }
  int AnyWorker() { return Random(0, options_.workers - 1); }
  TimePoint Now() const { return time_.Now(); }
  void At(int ms, std::function<void()> what) { time_.In(milliseconds(ms), std::move(what)); }

  // One event or one wake of the router, whichever is earlier.
  void Turn() {
    const TimePoint wake = std::max(core_.NextWake(), Now());
    if (wake < time_.Next()) time_.At(wake, [this] { core_.Tick(Now()); });
    time_.Turn();
    Perform();
  }

  void Perform() {
    for (RouterAction& action : core_.TakeActions()) {
      std::visit([this](auto& a) { Do(std::move(a)); }, action);
    }
  }
  void Do(SubmitAction a) {
    ToWorker(a.worker, [this, a](SimWorker& w) { Submit(a, &w); });
  }
  void Do(CancelAction a) {
    ToWorker(a.worker, [this, a](SimWorker& w) {
      if (w.sessions.erase(a.handle)) Finish(a.worker, a.handle, absl::CancelledError());
    });
  }
  void Do(DeliverAction a) {
    Client& c = clients_.at(a.key);
    ASSERT_FALSE(c.done);
    auto& got = c.got[a.delta.sample];
    ASSERT_EQ(a.delta.first_index, static_cast<int32_t>(got.size()));
    ASSERT_EQ(c.finish[a.delta.sample], FinishReason::kNone);
    got.insert(got.end(), a.delta.tokens.begin(), a.delta.tokens.end());
    c.finish[a.delta.sample] = a.delta.finish;
  }
  void Do(FinishAction a) {
    Client& c = clients_.at(a.key);
    ASSERT_FALSE(c.done);
    c.done = true;
    --clients_left_;
    c.last = std::move(a);
  }

  void PlanRequest(RequestKey key) {
    ClientRequest r;
    r.model = "m";
    GenerationRequest& g = r.generation;
    g.request_id = absl::StrCat("r", key);
    for (int n = Random(1, 150); n > 0; --n) g.prompt.push_back(Random(0, 63));
    g.num_samples = Chance(0.2) ? Random(2, 3) : 1;
    g.priority = Random(0, 2);
    g.sampling.seed = rng_();
    g.sampling.temperature = Chance(0.3) ? 0 : 1;
    g.sampling.max_tokens = Random(1, 120);
    g.sampling.ignore_eos = Chance(0.5);
    g.sampling.repetition_penalty = Chance(0.3) ? 1.2f : 1.0f;
    g.sampling.frequency_penalty = Chance(0.3) ? 0.3f : 0.0f;
    if (Chance(0.3)) g.session_id = absl::StrCat("s", Random(0, 5));
    ++clients_left_;
    const int start = Random(0, static_cast<int>(options_.span / milliseconds(1)));
    const bool deadline = Chance(options_.deadline_share);
    const bool cancel = Chance(options_.cancel_share);
    At(start, [this, key, r, deadline]() mutable {
      if (deadline) r.generation.deadline = Now() + milliseconds(Random(1, 400));
      Client& c = clients_[key];
      c.request = r;
      c.got.resize(r.generation.num_samples);
      c.finish.resize(r.generation.num_samples, FinishReason::kNone);
      core_.Start(key, r, Now());
    });
    if (!cancel) return;
    At(start + Random(0, 300), [this, key] {
      if (clients_[key].done) return;
      clients_[key].cancelled = true;
      core_.CancelByClient(key, Now());
    });
  }

  // ---- The wire ----
  void ToWorker(WorkerId id, std::function<void(SimWorker&)> what) {
    const int life = workers_[id].life;
    time_.At(Now() + microseconds(300), [this, id, life, what] {
      SimWorker& w = workers_[id];
      if (w.up && w.life == life) what(w);
    });
  }
  // In order; a dead worker's last words arrive, or not, or even after its death was noticed.
  void ToRouter(WorkerId id, std::function<void()> what) {
    SimWorker& w = workers_[id];
    w.line_free = std::max(w.line_free, Now() + microseconds(Random(100, 900)));
    const int life = w.life;
    const bool outlives = Chance(0.5);
    time_.At(w.line_free, [this, id, life, outlives, what] {
      if (workers_[id].life == life || outlives) what();
    });
  }
  void Finish(WorkerId id, AttemptHandle handle, absl::Status status) {
    ToRouter(id, [this, id, handle, status] {
      core_.WorkerFinished(id, handle, status, GenerationUsage{}, Now());
    });
  }

  // ---- Workers ----
  void Boot(WorkerId id) {
    SimWorker& w = workers_[id];
    if (w.up) return;
    w.up = true;
    w.paused = w.draining = w.lie = false;
    ++w.life;
    w.line_free = Now();
    ToRouter(id, [this, id] { core_.WorkerConnected(id, Now()); });
    const int life = w.life;
    At(20, [this, id, life] { Report(id, life); });
    At(20, [this, id, life] { Step(id, life); });
  }
  void Kill(WorkerId id) {
    SimWorker& w = workers_[id];
    if (!w.up) return;
    kills_felt += static_cast<int64_t>(w.sessions.size());
    w.up = false;
    ++w.life;
    w.sessions.clear();
    time_.At(Now() + milliseconds(Random(1, 5)),
             [this, id] { core_.WorkerLost(id, "connection reset", Now()); });
    At(Random(50, 1500), [this, id] { Boot(id); });
  }
  void Pause(WorkerId id) {
    const int life = workers_[id].life;
    workers_[id].paused = true;
    At(Random(100, 9000), [this, id, life] {
      if (workers_[id].life == life) workers_[id].paused = false;
    });
  }
  // Some drains run into their time limit and hand over what still runs.
  void Drain(WorkerId id) {
    const int life = workers_[id].life;
    workers_[id].draining = true;
    core_.SetWorkerDrain(id, true, Now());
    At(Random(10, 500), [this, id, life] {
      SimWorker& w = workers_[id];
      if (w.up && w.life == life) {
        for (auto& [handle, session] : w.sessions) {
          Finish(id, handle, absl::UnavailableError("drained"));
        }
        w.sessions.clear();
        w.draining = false;
      }
      core_.SetWorkerDrain(id, false, Now());
    });
  }
  void Report(WorkerId id, int life) {
    SimWorker& w = workers_[id];
    if (!w.up || w.life != life) return;
    if (!w.paused) {
      WorkerSnapshot s;
      s.model = "m";
      s.fingerprint = "hash";
      s.max_context = 1000;
      s.vocab_size = 64;
      s.ready = true;
      s.draining = w.draining;
      s.running = static_cast<int32_t>(w.sessions.size());
      ToRouter(id, [this, id, s] { core_.WorkerReported(id, s, Now()); });
    }
    At(100, [this, id, life] { Report(id, life); });
  }
  void Submit(const SubmitAction& a, SimWorker* w) {
    if (static_cast<int>(w->sessions.size()) >= options_.worker_capacity) {
      return Finish(a.worker, a.handle, absl::ResourceExhaustedError("queue full"));
    }
    if (w->draining) return Finish(a.worker, a.handle, absl::UnavailableError("draining"));
    Session s;
    s.request = a.request;
    const GenerationRequest& g = s.request;
    for (int i = 0; i < g.num_samples; ++i) {
      s.history.push_back(g.prompt);
      s.ended.push_back(false);
      if (!g.resumed.empty()) {
        auto& h = s.history.back();
        h.insert(h.end(), g.resumed[i].emitted.begin(), g.resumed[i].emitted.end());
        s.ended.back() = g.resumed[i].finish != FinishReason::kNone;
      }
      uint64_t prefix = model_.Empty();
      for (TokenId t : s.history.back()) prefix = model_.Extend(prefix, t);
      s.prefix.push_back(prefix);
    }
    s.steps_to_first = 1 + static_cast<int>(s.history[0].size()) / 64;
    w->sessions[a.handle] = std::move(s);
  }
  void Step(WorkerId id, int life) {
    SimWorker& w = workers_[id];
    if (!w.up || w.life != life) return;
    if (!w.paused) {
      for (auto it = w.sessions.begin(); it != w.sessions.end();) {
        const bool done = Advance(id, it->first, &w, &it->second);
        it = done ? w.sessions.erase(it) : std::next(it);
      }
    }
    time_.At(Now() + milliseconds(4) + microseconds(200 * w.sessions.size()),
             [this, id, life] { Step(id, life); });
  }
  bool Advance(WorkerId id, AttemptHandle handle, SimWorker* w, Session* s) {
    if (--s->steps_to_first >= 0) return false;
    const GenerationRequest& g = s->request;
    const int32_t prompt_len = static_cast<int32_t>(g.prompt.size());
    for (int i = 0; i < g.num_samples; ++i) {
      if (s->ended[i]) continue;
      SampleDelta delta;
      delta.sample = i;
      auto& history = s->history[i];
      delta.first_index = static_cast<int32_t>(history.size()) - prompt_len;
      for (int n = Random(1, 5); n > 0 && !s->ended[i]; --n) {
        const TokenId t = model_.Sample(s->prefix[i], g.sampling, i, history, prompt_len).token;
        const int32_t index = static_cast<int32_t>(history.size()) - prompt_len;
        s->ended[i] = model_.Ends(t, index, g.sampling);
        if (s->ended[i]) {
          const bool length = index + 1 >= g.sampling.max_tokens;
          delta.finish = length ? FinishReason::kLength : FinishReason::kStop;
        }
        history.push_back(t);
        s->prefix[i] = model_.Extend(s->prefix[i], t);
        delta.tokens.push_back(t);
      }
      if (w->lie && delta.first_index > 0) {
        w->lie = false;
        ++lies_told;
        delta.first_index += Chance(0.5) ? 1 : -1;
      }
      ToRouter(id, [this, id, handle, delta] { core_.WorkerDelta(id, handle, delta, Now()); });
    }
    for (bool ended : s->ended) {
      if (!ended) return false;
    }
    Finish(id, handle, absl::OkStatus());
    return true;
  }

  SimOptions options_;
  std::mt19937_64 rng_;
  HashModel model_;
  RouterCore core_;
  VirtualTime time_;
  int clients_left_ = 0;
  std::vector<SimWorker> workers_;
  std::map<RequestKey, Client> clients_;
};

struct Outcome {
  int64_t ok = 0, tokens = 0, failovers = 0, lies = 0;
  std::map<std::string, int> errors;
};

void Check(const Simulation& sim, Outcome* outcome) {
  for (const auto& [key, client] : sim.clients()) {
    SCOPED_TRACE(absl::StrCat("request ", key));
    ASSERT_TRUE(client.done);
    const GenerationRequest& g = client.request.generation;
    const bool ok = !client.last.error.has_value();
    for (int i = 0; i < g.num_samples; ++i) {
      std::vector<TokenId> want = sim.model().Generate(g.prompt, g.sampling, i);
      if (ok) {
        EXPECT_NE(client.finish[i], FinishReason::kNone);
      } else {  // nothing wrong may have been sent before the error either
        ASSERT_LE(client.got[i].size(), want.size());
        want.resize(client.got[i].size());
      }
      ASSERT_EQ(client.got[i], want) << "sample " << i;
      outcome->tokens += static_cast<int64_t>(want.size());
    }
    outcome->ok += ok;
    outcome->failovers += client.last.failovers;
    if (!ok) ++outcome->errors[client.last.error->reason];
    const std::string reason = ok ? "" : client.last.error->reason;
    EXPECT_TRUE(reason != "CANCELLED" || client.cancelled);
    EXPECT_TRUE(reason != "DEADLINE" || g.deadline != kNoDeadline);
  }
  EXPECT_EQ(sim.core().num_requests(), 0u);
  EXPECT_EQ(sim.core().admission().in_flight(), 0);
  EXPECT_EQ(sim.core().admission().waiting(), 0);
  for (const Worker& w : sim.core().workers().all()) EXPECT_EQ(w.in_flight, 0);
  outcome->lies += sim.lies_told;
}

uint64_t BaseSeed() {
  const char* seed = std::getenv("PACELINE_TEST_SEED");
  return seed ? std::strtoull(seed, nullptr, 10) : 1;
}
int Runs(int normal) {
  const char* runs = std::getenv("PACELINE_TEST_RUNS");
  return runs ? std::atoi(runs) : normal;
}

TEST(RouterSimTest, NothingLostNothingTwiceNoErrorWhileAWorkerComesBack) {
  Outcome outcome;
  for (int run = 0; run < Runs(40); ++run) {
    SimOptions options;
    options.seed = BaseSeed() + run;
    options.workers = 1 + run % 4;
    options.router.max_attempts = 1000;
    options.router.failover_timeout = seconds(12);
    options.router.queue_timeout = seconds(100);
    SCOPED_TRACE(absl::StrCat("PACELINE_TEST_SEED=", options.seed));
    Simulation sim(options);
    sim.Run();
    Check(sim, &outcome);
    EXPECT_EQ(sim.WorkerSessions(), 0) << "a cancel was lost";
    if (HasFatalFailure()) return;
  }
  for (const auto& [reason, count] : outcome.errors) {
    EXPECT_TRUE(reason == "CANCELLED" || reason == "DEADLINE") << reason << " x" << count;
  }
  std::printf("ok %ld, tokens %ld, failovers %ld, lies %ld\n", outcome.ok, outcome.tokens,
              outcome.failovers, outcome.lies);
  EXPECT_GT(outcome.failovers, 0);
}

TEST(RouterSimTest, OverloadIsAnAnswer) {
  Outcome outcome;
  for (int run = 0; run < Runs(10); ++run) {
    SimOptions options;
    options.seed = BaseSeed() + run;
    options.workers = 2;
    options.requests = 300;
    options.span = seconds(1);
    options.worker_capacity = 4;
    options.router.admission = {.max_in_flight = 12, .max_queue = 20};
    options.router.queue_timeout = seconds(1);
    options.router.max_attempts = 1000;
    SCOPED_TRACE(absl::StrCat("PACELINE_TEST_SEED=", options.seed));
    Simulation sim(options);
    sim.Run();
    Check(sim, &outcome);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(outcome.errors["QUEUE_FULL"], 0);
  EXPECT_GT(outcome.ok, 0);
}

TEST(RouterSimTest, ErrorsAreTypedWhenNoWorkerComesBackInTime) {
  Outcome outcome;
  for (int run = 0; run < Runs(10); ++run) {
    SimOptions options;
    options.seed = BaseSeed() + run;
    options.workers = 1;
    options.requests = 60;
    options.kills = 12;
    options.pauses = 0;
    options.router.failover_timeout = milliseconds(200);
    options.router.max_attempts = 2;
    options.router.max_replay_tokens = 150;
    SCOPED_TRACE(absl::StrCat("PACELINE_TEST_SEED=", options.seed));
    Simulation sim(options);
    sim.Run();
    Check(sim, &outcome);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(outcome.errors["STREAM_LOST"], 0);
  EXPECT_GT(outcome.errors["NO_WORKER"] + outcome.errors["MODEL_LOADING"], 0);
}

}  // namespace
}  // namespace paceline

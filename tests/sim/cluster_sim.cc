#include "tests/sim/cluster_sim.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace paceline {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int32_t kVocab = 128;

void Add(const SpecCounters& from, SpecCounters* to) {
  to->drafts += from.drafts;
  to->drafted += from.drafted;
  to->accepted += from.accepted;
  to->steps_none += from.steps_none;
  to->steps_full += from.steps_full;
  to->steps_partial += from.steps_partial;
  to->steps_ngram += from.steps_ngram;
  to->outcome_hits += from.outcome_hits;
  to->outcome_misses += from.outcome_misses;
  to->wanted_remote += from.wanted_remote;
  to->quarantines += from.quarantines;
  to->silences += from.silences;
  to->moves += from.moves;
  to->reopens += from.reopens;
  to->proposals_received += from.proposals_received;
  for (size_t i = 0; i < to->drops.size(); ++i) to->drops[i] += from.drops[i];
}

}  // namespace

struct ClusterSim::Target {
  int life = 0;  // messages of an earlier one are lost, or late
  bool paused = false, draining = false;
  TimePoint line_free{};                             // to the router: messages stay in order
  std::vector<std::shared_ptr<SimDraftLink>> links;  // by drafter
  HashRunner* runner = nullptr;                      // the engine's
  DraftSpeculator* speculator = nullptr;             // the engine's
  std::unique_ptr<Engine> engine;                    // null: dead
};

ClusterSim::ClusterSim(ClusterSimOptions options)
    : options_(std::move(options)),
      rng_(options_.seed),
      model_({.seed = 7, .vocab_size = kVocab}),
      core_(options_.router, nullptr) {
  for (int i = 0; i < options_.targets; ++i) targets_.push_back(std::make_unique<Target>());
  for (int i = 0; i < options_.drafters; ++i) {
    drafters_.push_back(std::make_unique<SimDrafter>());
    drafters_.back()->name = absl::StrCat("d", i);
  }
}

ClusterSim::~ClusterSim() {
  for (auto& t : targets_) {
    t->links.clear();
    t->engine.reset();
  }
}

void ClusterSim::AtRandom(int count, const std::function<void()>& what) {
  for (int i = 0; i < count; ++i) {
    time_.In(milliseconds(Random(0, static_cast<int>(options_.span / milliseconds(1)))), what);
  }
}

bool ClusterSim::Run() {
  std::vector<WorkerAddress> addresses;
  for (int i = 0; i < options_.targets; ++i) addresses.push_back({absl::StrCat("t", i)});
  core_.Relist(addresses, time_.Now());
  for (int i = 0; i < options_.drafters; ++i) BootDrafter(i);
  for (int i = 0; i < options_.targets; ++i) BootTarget(i);
  for (int i = 0; i < options_.requests; ++i) PlanRequest(i + 1);
  PlanTargetFaults();
  if (options_.drafters > 0) PlanDrafterFaults();
  const TimePoint least = time_.Now() + options_.span + seconds(1);
  const TimePoint limit = time_.Now() + options_.span + seconds(200);
  while (time_.Now() < limit) {
    if (clients_left_ == 0 && time_.Now() > least) return true;
    CHECK(time_.Turn());
  }
  return false;
}

// --- Faults ---

template <typename Process>
void ClusterSim::Pause(Process* process) {
  process->paused = true;
  time_.In(options_.pause, [process] { process->paused = false; });
}

void ClusterSim::PlanTargetFaults() {
  const auto any = [this] { return Random(0, options_.targets - 1); };
  AtRandom(options_.target_kills, [=, this] { KillTarget(any()); });
  AtRandom(options_.target_pauses, [=, this] { Pause(targets_[any()].get()); });
  AtRandom(options_.target_drains, [=, this] {
    const int id = any();
    core_.SetWorkerDrain(id, true, time_.Now());
    Perform();
    time_.In(milliseconds(300), [this, id] {
      core_.SetWorkerDrain(id, false, time_.Now());
      Perform();
    });
  });
}

void ClusterSim::PlanDrafterFaults() {
  const auto any = [this] { return Random(0, options_.drafters - 1); };
  AtRandom(options_.drafter_kills, [=, this] { KillDrafter(any()); });
  AtRandom(options_.drafter_pauses, [=, this] { Pause(drafters_[any()].get()); });
  AtRandom(options_.drafter_drains, [=, this] {
    const int id = any();
    ForLinksOf(id, [](SimDraftLink& link) { link.SetDraining(true); });
    time_.In(milliseconds(400),
             [this, id] { ForLinksOf(id, [](SimDraftLink& link) { link.SetDraining(false); }); });
  });
  AtRandom(options_.stream_breaks, [=, this] {
    Target* t = targets_[Random(0, options_.targets - 1)].get();
    if (t->engine == nullptr) return;
    const std::shared_ptr<SimDraftLink> link = t->links[any()];
    link->Break(/*drafter_lives=*/true);
    time_.In(milliseconds(Random(1, 50)), [link] { link->Connect(); });
  });
}

// --- Clients ---

void ClusterSim::PlanRequest(RequestKey key) {
  ClientRequest r;
  r.model = "m";
  GenerationRequest& g = r.generation;
  g.request_id = absl::StrCat("r", key);
  const int prompt = Random(1, 150);
  for (int i = 0; i < prompt; ++i) g.prompt.push_back(Random(1, kVocab - 1));
  g.sampling.seed = rng_();
  g.sampling.temperature = Chance(0.3) ? 0 : 1;
  g.sampling.max_tokens = Random(1, 100);
  g.sampling.ignore_eos = Chance(0.6);
  if (Chance(0.3)) g.sampling.top_k = Random(1, 20);
  if (Chance(0.3)) g.sampling.repetition_penalty = 1.2f;
  if (Chance(0.2)) g.sampling.frequency_penalty = 0.4f;
  if (Chance(0.2)) g.num_samples = Random(2, 4);
  if (Chance(0.2)) g.cache_salt = "salt";
  g.priority = Random(0, 2);
  const int mode = Random(0, 9);
  g.decoding = mode < 5    ? DecodingMode::kAuto
               : mode == 5 ? DecodingMode::kPlain
               : mode == 6 ? DecodingMode::kNgram
                           : DecodingMode::kDraft;
  if (options_.fixed_requests) {
    g.num_samples = 1;
    g.decoding = DecodingMode::kDraft;
    g.sampling = SamplingParams{.seed = g.sampling.seed, .max_tokens = 60, .ignore_eos = true};
  }
  ++clients_left_;
  const Duration start =
      milliseconds(Random(20, static_cast<int>(options_.span / milliseconds(1))));
  const bool cancel = Chance(options_.cancel_share);
  time_.In(start, [this, key, r] {
    Client& c = clients_[key];
    c.request = r;
    c.got.resize(r.generation.num_samples);
    core_.Start(key, r, time_.Now());
    Perform();
  });
  if (!cancel) return;
  time_.In(start + milliseconds(Random(0, 300)), [this, key] {
    if (clients_[key].done) return;
    clients_[key].cancelled = true;
    core_.CancelByClient(key, time_.Now());
    Perform();
  });
}

// --- Router ---

void ClusterSim::Perform() {
  for (RouterAction& action : core_.TakeActions()) {
    std::visit([this](auto& a) { Do(std::move(a)); }, action);
  }
  WakeRouter();
}

void ClusterSim::WakeRouter() {
  const TimePoint wake = core_.NextWake();
  if (wake >= router_wake_) return;
  router_wake_ = wake;
  time_.At(wake, [this, wake] {
    if (router_wake_ != wake) return;
    router_wake_ = kNoDeadline;
    core_.Tick(time_.Now());
    Perform();
  });
}

void ClusterSim::Do(SubmitAction action) {
  const int life = targets_[action.worker]->life;
  time_.In(microseconds(300), [this, life, a = std::move(action)] {
    Target& t = *targets_[a.worker];
    if (t.engine == nullptr || t.life != life) return;
    const absl::Status status = t.engine->Submit(a.handle, a.request);
    if (status.ok()) return;
    ToRouter(a.worker, [this, a, status] {
      core_.WorkerFinished(a.worker, a.handle, status, {}, time_.Now());
    });
  });
}

void ClusterSim::Do(CancelAction action) {
  const int life = targets_[action.worker]->life;
  time_.In(microseconds(300), [this, life, action] {
    Target& t = *targets_[action.worker];
    if (t.engine != nullptr && t.life == life) t.engine->Cancel(action.handle);
  });
}

void ClusterSim::Do(DeliverAction action) {
  Client& c = clients_.at(action.key);
  CHECK(!c.done);
  auto& got = c.got[action.delta.sample];
  CHECK_EQ(action.delta.first_index, static_cast<int32_t>(got.size()));
  got.insert(got.end(), action.delta.tokens.begin(), action.delta.tokens.end());
  if (!action.first) gaps_.push_back(time_.Now() - c.newest);
  c.newest = time_.Now();
}

void ClusterSim::Do(FinishAction action) {
  Client& c = clients_.at(action.key);
  CHECK(!c.done);
  c.done = true;
  --clients_left_;
  c.last = std::move(action);
}

// --- Targets ---

void ClusterSim::BootTarget(int id) {
  Target& t = *targets_[id];
  if (t.engine != nullptr) return;
  ++t.life;
  t.paused = t.draining = false;
  auto runner = std::make_unique<HashRunner>(HashRunnerOptions{
      .model = model_.options(), .num_blocks = options_.target_blocks, .max_slots = 32});
  t.runner = runner.get();
  DraftSpeculatorOptions spec;
  spec.vocab_size = kVocab;
  spec.strategy = options_.strategy;
  auto speculator = std::make_unique<DraftSpeculator>(spec);
  t.speculator = speculator.get();
  LinkTarget(&t, speculator.get());
  EngineOptions engine;
  engine.max_batch_rows = 256;
  engine.prefill_chunk = 64;
  engine.launch_ahead = options_.launch_ahead;
  t.engine =
      std::make_unique<Engine>(engine, std::move(runner), std::move(speculator), time_, nullptr,
                               [this, id](EngineOutput output) { Publish(id, std::move(output)); });
  ToRouter(id, [this, id] { core_.WorkerConnected(id, time_.Now()); });
  ReportTarget(id, t.life);
  StepTarget(id, t.life);
}

void ClusterSim::LinkTarget(Target* t, DraftSpeculator* speculator) {
  t->links.clear();
  for (auto& drafter : drafters_) {
    auto link = std::make_shared<SimDraftLink>(drafter.get(), &time_, &rng_, &options_.wire);
    link->SetMailbox(&speculator->mailbox(), speculator->AddLink(link));
    link->Connect();
    t->links.push_back(std::move(link));
  }
}

void ClusterSim::KillTarget(int id) {
  Target& t = *targets_[id];
  if (t.engine == nullptr) return;
  Add(t.speculator->counters(), &speculation_);
  ++t.life;
  for (auto& link : t.links) link->Break(/*drafter_lives=*/true);
  t.links.clear();
  t.engine.reset();
  time_.In(milliseconds(Random(1, 5)), [this, id] {
    core_.WorkerLost(id, "connection reset", time_.Now());
    Perform();
  });
  time_.In(milliseconds(Random(50, 800)), [this, id] { BootTarget(id); });
}

void ClusterSim::StepTarget(int id, int life) {
  Target& t = *targets_[id];
  if (t.engine == nullptr || t.life != life) return;
  Duration next = milliseconds(1);
  if (!t.paused) {
    const int64_t rows = t.runner->rows_run();
    const absl::StatusOr<bool> worked = t.engine->Step();
    CHECK(worked.ok()) << worked.status().ToString();
    const int64_t ran = t.runner->rows_run() - rows;
    next = ran > 0 ? options_.step_time + ran * options_.row_time : microseconds(200);
  }
  time_.In(next, [this, id, life] { StepTarget(id, life); });
}

void ClusterSim::ReportTarget(int id, int life) {
  Target& t = *targets_[id];
  if (t.engine == nullptr || t.life != life) return;
  if (!t.paused) {
    const EngineSnapshot from = t.engine->Snapshot();
    WorkerSnapshot s;
    s.model = "m";
    s.fingerprint = "hash";
    s.max_context = 4096;
    s.vocab_size = kVocab;
    s.ready = true;
    s.running = from.running;
    s.waiting = from.waiting;
    s.num_blocks = from.num_blocks;
    s.block_size = from.block_size;
    s.active_blocks = from.kv.active_blocks;
    s.cached_blocks = from.kv.cached_blocks;
    s.free_blocks = from.kv.free_blocks;
    ToRouter(id, [this, id, s] { core_.WorkerReported(id, s, time_.Now()); });
  }
  time_.In(milliseconds(50), [this, id, life] { ReportTarget(id, life); });
}

// In order; a dead worker's last words are lost or arrive all the same.
void ClusterSim::ToRouter(int id, std::function<void()> what) {
  Target& t = *targets_[id];
  t.line_free = std::max(t.line_free, time_.Now() + microseconds(Random(100, 900)));
  const bool outlives = Chance(0.5);
  time_.At(t.line_free, [this, id, life = t.life, outlives, what = std::move(what)] {
    if (targets_[id]->life != life && !outlives) return;
    what();
    Perform();
  });
}

void ClusterSim::Publish(int id, EngineOutput output) {
  ToRouter(id, [this, id, output = std::move(output)] {
    for (const EngineOutput::Delta& d : output.deltas) {
      core_.WorkerDelta(id, d.request, d.delta, time_.Now());
    }
    for (const EngineOutput::Finished& f : output.finished) {
      core_.WorkerFinished(id, f.request, f.status, f.usage, time_.Now());
    }
  });
}

// --- Draft workers ---

template <typename What>
void ClusterSim::ForLinksOf(int drafter, What what) {
  for (auto& t : targets_) {
    if (t->engine != nullptr) what(*t->links[drafter]);
  }
}

void ClusterSim::BootDrafter(int id) {
  SimDrafter& d = *drafters_[id];
  if (d.engine != nullptr) return;
  ++d.life;
  d.paused = false;
  HashModelOptions model = model_.options();
  model.agreement = options_.agreement;
  if (options_.wrong_weights) model.seed += 1;
  auto runner =
      std::make_unique<HashRunner>(HashRunnerOptions{.model = model,
                                                     .num_blocks = options_.drafter_blocks,
                                                     .max_slots = 256,
                                                     .clock = &d.clock,
                                                     .step_time = options_.draft_step_time,
                                                     .row_time = options_.draft_row_time});
  d.engine = std::make_unique<DraftEngine>(DraftEngineOptions{}, std::move(runner), d.clock);
  ForLinksOf(id, [](SimDraftLink& link) { link.Connect(); });
  StepDrafter(id, d.life);
}

void ClusterSim::KillDrafter(int id) {
  SimDrafter& d = *drafters_[id];
  if (d.engine == nullptr) return;
  ++d.life;
  d.engine.reset();
  time_.In(milliseconds(1), [this, id] {
    ForLinksOf(id, [](SimDraftLink& link) { link.Break(/*drafter_lives=*/false); });
  });
  time_.In(milliseconds(Random(20, 1000)), [this, id] { BootDrafter(id); });
}

void ClusterSim::StepDrafter(int id, int life) {
  SimDrafter& d = *drafters_[id];
  if (d.engine == nullptr || d.life != life) return;
  Duration next = microseconds(200);
  if (!d.paused) {
    d.clock.Set(time_.Now());
    const absl::StatusOr<bool> worked = d.engine->Step();
    CHECK(worked.ok()) << worked.status().ToString();
    if (*worked) next = std::max<Duration>(d.clock.Now() - time_.Now(), microseconds(10));
  }
  time_.In(next, [this, id, life] { StepDrafter(id, life); });
}

void ClusterSim::CheckQuiescent() {
  for (auto& t : targets_) {
    if (t->engine == nullptr) continue;
    while (*t->engine->Step()) {
    }
    CHECK_EQ(t->engine->Snapshot().kv.active_blocks, 0);
    Add(t->speculator->counters(), &speculation_);
    for (auto& link : t->links) link->Break(/*drafter_lives=*/true);
  }
  for (auto& d : drafters_) {
    if (d->engine != nullptr) d->engine->CheckQuiescent();
  }
}

}  // namespace paceline

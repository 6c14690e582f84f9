// A whole cluster in one thread and in virtual time: a router core, target workers (engines over
// hash runners, with remote speculation), draft workers, and wires between them that delay, lose,
// repeat, overtake and corrupt frames; processes that die, return, hang and drain.
#pragma once

#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "router/core/router_core.h"
#include "tests/sim/hash_runner.h"
#include "tests/sim/sim_draft_wire.h"
#include "tests/sim/virtual_time.h"
#include "worker/engine/engine.h"

namespace paceline {

struct ClusterSimOptions {
  uint64_t seed = 1;
  int targets = 2, drafters = 2;
  int requests = 60;
  Duration span = std::chrono::seconds(3);  // requests arrive and faults happen within it
  int32_t target_blocks = 200, drafter_blocks = 400;
  bool launch_ahead = false;
  DraftStrategy strategy = DraftStrategy::kEnumerate;
  double agreement = 0.8;  // of the drafters' model
  bool wrong_weights = false;
  SimWireOptions wire;
  int target_kills = 0, drafter_kills = 0, target_pauses = 0, drafter_pauses = 0;
  int target_drains = 0, drafter_drains = 0, stream_breaks = 0;
  Duration pause = std::chrono::seconds(2);
  double cancel_share = 0.05;
  bool fixed_requests = false;  // one sample, temperature 1, 60 tokens, speculation always on
  Duration step_time = std::chrono::milliseconds(4), row_time = std::chrono::microseconds(20);
  Duration draft_step_time = std::chrono::microseconds(400), draft_row_time{};
  RouterOptions router;
};

class ClusterSim {
 public:
  explicit ClusterSim(ClusterSimOptions options);
  ~ClusterSim();

  // Until every request has had its last word; false when that takes too long.
  bool Run();

  struct Client {
    ClientRequest request;
    std::vector<std::vector<TokenId>> got;  // per sample
    bool cancelled = false, done = false;
    FinishAction last;
    TimePoint newest{};
  };
  const std::map<RequestKey, Client>& clients() const { return clients_; }
  const HashModel& model() const { return model_; }
  const RouterCore& core() const { return core_; }
  const std::vector<Duration>& token_gaps() const { return gaps_; }
  // Of all lives of all targets.
  const SpecCounters& speculation() const { return speculation_; }

  // Behind Run, after the streams have ended: CHECKs that no block is in use anywhere.
  void CheckQuiescent();

 private:
  struct Target;

  int Random(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }
  bool Chance(double p) { return std::uniform_real_distribution<>(0, 1)(rng_) < p; }
  void AtRandom(int count, const std::function<void()>& what);
  void PlanTargetFaults();
  void PlanDrafterFaults();
  template <typename Process>
  void Pause(Process* process);

  void PlanRequest(RequestKey key);
  void Perform();
  void Do(SubmitAction action);
  void Do(CancelAction action);
  void Do(DeliverAction action);
  void Do(FinishAction action);
  void WakeRouter();

  void BootTarget(int id);
  void KillTarget(int id);
  void LinkTarget(Target* t, DraftSpeculator* speculator);
  void StepTarget(int id, int life);
  void ReportTarget(int id, int life);
  void ToRouter(int id, std::function<void()> what);
  void Publish(int id, EngineOutput output);

  void BootDrafter(int id);
  void KillDrafter(int id);
  void StepDrafter(int id, int life);
  template <typename What>
  void ForLinksOf(int drafter, What what);

  ClusterSimOptions options_;
  std::mt19937_64 rng_;
  VirtualTime time_;
  HashModel model_;
  RouterCore core_;
  TimePoint router_wake_ = kNoDeadline;
  std::vector<std::unique_ptr<Target>> targets_;
  std::vector<std::unique_ptr<SimDrafter>> drafters_;
  std::map<RequestKey, Client> clients_;
  int clients_left_ = 0;
  std::vector<Duration> gaps_;
  SpecCounters speculation_;
};

}  // namespace paceline

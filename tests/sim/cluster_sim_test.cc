// The whole cluster in virtual time: whatever happens to wires and processes, every request's ids
// are those that the model gives it alone. PACELINE_TEST_SEED replays, PACELINE_TEST_RUNS deepens.
#include "tests/sim/cluster_sim.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

uint64_t BaseSeed() {
  const char* seed = std::getenv("PACELINE_TEST_SEED");
  return seed ? std::strtoull(seed, nullptr, 10) : 1;
}

int Runs(int normal) {
  if (const char* runs = std::getenv("PACELINE_TEST_RUNS")) return std::atoi(runs);
  return std::getenv("PACELINE_SANITIZED") != nullptr ? 1 : normal;
}

// Fills in what lets a request outlive every fault of a simulation.
ClusterSimOptions Patient(ClusterSimOptions options) {
  options.router.max_attempts = 1000;
  options.router.failover_timeout = seconds(30);
  options.router.queue_timeout = seconds(100);
  return options;
}

void ExpectExact(const ClusterSim& sim) {
  for (const auto& [key, client] : sim.clients()) {
    SCOPED_TRACE(absl::StrCat("request ", key));
    ASSERT_TRUE(client.done);
    const GenerationRequest& g = client.request.generation;
    if (client.last.error.has_value()) {
      EXPECT_TRUE(client.cancelled) << client.last.error->ToString();
    }
    for (int i = 0; i < g.num_samples; ++i) {
      std::vector<TokenId> want = sim.model().Generate(g.prompt, g.sampling, i);
      if (client.last.error.has_value()) {
        ASSERT_LE(client.got[i].size(), want.size());
        want.resize(client.got[i].size());
      }
      ASSERT_EQ(client.got[i], want) << "sample " << i;
    }
  }
  EXPECT_EQ(sim.core().num_requests(), 0u);
}

struct Case {
  const char* name;
  ClusterSimOptions options;
  int runs = 2;
};

class ClusterSims : public ::testing::TestWithParam<Case> {};

TEST_P(ClusterSims, EveryTokenIsTheModelsOwn) {
  SpecCounters total;
  for (int run = 0; run < Runs(GetParam().runs); ++run) {
    ClusterSimOptions options = Patient(GetParam().options);
    options.seed = BaseSeed() + run;
    options.launch_ahead = options.seed % 2 == 0;
    SCOPED_TRACE(absl::StrCat("PACELINE_TEST_SEED=", options.seed));
    ClusterSim sim(options);
    ASSERT_TRUE(sim.Run());
    ExpectExact(sim);
    if (HasFatalFailure()) return;
    sim.CheckQuiescent();
    const SpecCounters& s = sim.speculation();
    std::printf(
        "drafted %lu, accepted %lu, steps full %lu partial %lu ngram %lu none %lu, hits %lu "
        "of %lu\n",
        s.drafted, s.accepted, s.steps_full, s.steps_partial, s.steps_ngram, s.steps_none,
        s.outcome_hits, s.outcome_hits + s.outcome_misses);
    total.drafted += s.drafted;
    total.accepted += s.accepted;
  }
  if (GetParam().options.drafters > 0 && !GetParam().options.wrong_weights) {
    EXPECT_GT(total.accepted, 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, ClusterSims,
    ::testing::Values(
        Case{"Calm", {}}, Case{"Chain", {.strategy = DraftStrategy::kChain}},
        Case{"Sync", {.strategy = DraftStrategy::kSync}}, Case{"NoDrafter", {.drafters = 0}},
        Case{"SmallPools", {.target_blocks = 40, .drafter_blocks = 40}},
        Case{"WrongWeights", {.wrong_weights = true}},
        Case{"BadWires",
             {.wire = {.jitter = milliseconds(8),
                       .lose = 0.05,
                       .repeat = 0.1,
                       .overtake = 0.2,
                       .corrupt = 0.1}}},
        Case{"DraftersDie",
             {.targets = 3, .drafter_kills = 12, .drafter_drains = 3, .stream_breaks = 12}},
        Case{"DraftersHang", {.drafter_pauses = 4}},
        Case{"TargetsDie", {.targets = 3, .target_kills = 8, .target_drains = 3}},
        Case{"AllAtOnce",
             {.targets = 3,
              .drafters = 3,
              .target_blocks = 80,
              .drafter_blocks = 80,
              .wire = {.jitter = milliseconds(5),
                       .lose = 0.02,
                       .repeat = 0.05,
                       .overtake = 0.1,
                       .corrupt = 0.03},
              .target_kills = 5,
              .drafter_kills = 6,
              .target_pauses = 1,
              .drafter_pauses = 2,
              .target_drains = 2,
              .drafter_drains = 2,
              .stream_breaks = 6}}),
    [](const auto& info) { return info.param.name; });

Duration Percentile(std::vector<Duration> gaps, double p) {
  std::ranges::sort(gaps);
  return gaps[static_cast<size_t>(p * static_cast<double>(gaps.size() - 1))];
}

// What a client sees between tokens while its drafters die, hang and babble, against no drafter.
TEST(ClusterSimTest, TroubleWithDraftersStretchesNoGap) {
  ClusterSimOptions plain = Patient({.targets = 1, .drafters = 0, .requests = 40});
  plain.cancel_share = 0;
  plain.fixed_requests = true;
  ClusterSimOptions trouble = plain;
  trouble.drafters = 2;
  trouble.drafter_kills = 8;
  trouble.drafter_pauses = 3;
  trouble.stream_breaks = 8;
  trouble.wire = {.jitter = milliseconds(5), .lose = 0.05, .corrupt = 0.05};
  ClusterSim calm(plain), faulty(trouble);
  ASSERT_TRUE(calm.Run());
  ASSERT_TRUE(faulty.Run());
  ExpectExact(faulty);
  const Duration before = Percentile(calm.token_gaps(), 0.99);
  const Duration during = Percentile(faulty.token_gaps(), 0.99);
  std::printf("gap p99: plain %.2f ms, during faults %.2f ms\n", ToSeconds(before) * 1e3,
              ToSeconds(during) * 1e3);
  EXPECT_LE(during, 2 * before);
}

// One of two drafters hangs for good behind a network that lives: its sessions go on at the other.
TEST(ClusterSimTest, SessionsLeaveADrafterThatHangs) {
  ClusterSimOptions options = Patient({.targets = 2, .drafters = 2, .requests = 60});
  options.fixed_requests = true;
  options.cancel_share = 0;
  ClusterSim calm(options);
  options.drafter_pauses = 1;
  options.pause = seconds(60);
  ClusterSim hung(options);
  ASSERT_TRUE(calm.Run());
  ASSERT_TRUE(hung.Run());
  ExpectExact(hung);
  calm.CheckQuiescent();
  hung.CheckQuiescent();
  EXPECT_EQ(calm.speculation().silences, 0u);
  EXPECT_GT(hung.speculation().silences, 0u);
  EXPECT_GT(hung.speculation().moves, 0u);
  std::printf("accepted %lu, with a drafter that hangs %lu\n", calm.speculation().accepted,
              hung.speculation().accepted);
  EXPECT_GT(hung.speculation().accepted, calm.speculation().accepted / 2);
}

}  // namespace
}  // namespace paceline

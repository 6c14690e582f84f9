// How many targets one draft worker serves: whole clusters in virtual time, with one drafter and
// ever more targets, each with the same load. Steps take the time of an 8 B target and of a 1 B
// drafter; flags set other times. What counts is the share of outcomes that were foreseen and of
// steps that found a proposal of full length, against those of one target.
//
//   draft_sharing_bench [STEP_US ROW_US DRAFT_STEP_US DRAFT_ROW_NS]
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "common/check.h"
#include "tests/sim/cluster_sim.h"

namespace paceline {
namespace {

constexpr int kRequestsPerTarget = 40;

double Ratio(uint64_t part, uint64_t all) {
  return static_cast<double>(part) / static_cast<double>(std::max<uint64_t>(1, all));
}

SpecCounters Run(ClusterSimOptions options, int targets) {
  options.targets = targets;
  options.requests = kRequestsPerTarget * targets;
  ClusterSim sim(options);
  CHECK(sim.Run()) << "requests did not end";
  sim.CheckQuiescent();
  return sim.speculation();
}

void Main(int argc, char** argv) {
  const auto micros = [&](int i, int64_t usual) {
    return std::chrono::microseconds(argc > i ? std::atoll(argv[i]) : usual);
  };
  ClusterSimOptions options;
  options.drafters = 1;
  options.drafter_blocks = 8000;
  options.target_blocks = 1000;
  options.fixed_requests = true;
  options.cancel_share = 0;
  options.agreement = 0.7;
  options.step_time = micros(1, 10000);
  options.row_time = micros(2, 20);
  options.draft_step_time = micros(3, 1500);
  options.draft_row_time = std::chrono::nanoseconds(argc > 4 ? std::atoll(argv[4]) : 2000);
  options.router.queue_timeout = std::chrono::seconds(100);
  std::printf("| targets | outcomes foreseen | full-length proposals | accepted per step |\n");
  std::printf("|---|---|---|---|\n");
  for (int targets : {1, 2, 4, 6, 8, 12, 16}) {
    const SpecCounters n = Run(options, targets);
    const uint64_t steps = n.steps_full + n.steps_partial + n.steps_ngram + n.steps_none;
    std::printf("| %d | %.3f | %.3f | %.2f |\n", targets,
                Ratio(n.outcome_hits, n.outcome_hits + n.outcome_misses),
                Ratio(n.steps_full, n.wanted_remote), Ratio(n.accepted, steps));
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) { paceline::Main(argc, argv); }

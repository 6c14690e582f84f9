// The same requests under several modes, in rounds: figures side by side, and whether all modes
// gave the same tokens, as they must.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "cli/bench/bench_mode.h"
#include "cli/bench/distribution.h"
#include "cli/bench/request_outcome.h"
#include "cli/bench/run_summary.h"
#include "cli/bench/spec_activity.h"

namespace paceline {

// Accelerators (or whatever is paid for) that serve: a mode that asks for drafts pays for both.
struct DeviceCount {
  int32_t targets = 0, drafts = 0;  // 0 targets: not told
};

// Two runs that gave a request different tokens.
struct Divergence {
  int64_t request = 0;
  BenchMode mode = BenchMode::kPlain, reference_mode = BenchMode::kPlain;
  int32_t round = 0, reference_round = 0;  // from 0
  int64_t position = 0;                    // of the first token that differs, in the output
};

struct ModeFigures {
  BenchMode mode = BenchMode::kPlain;
  RunSummary summary;  // all rounds pooled
  // Over the rounds; the ratios are those of each round to the reference mode in the same round, so
  // that a drift of the machine cancels.
  Spread output_throughput, user_throughput, output_ratio, user_ratio;
  double device_throughput = 0;          // output tokens/s per device; 0 where they were not told
  std::optional<SpecActivity> activity;  // absent where nothing was scraped
};

class Comparison {
 public:
  explicit Comparison(std::vector<BenchMode> modes, ServiceLimits limits = {},
                      DeviceCount devices = {});

  // The modes in the order in which a round runs them: each round begins with another.
  std::vector<BenchMode> RoundOrder(int32_t round) const;
  // Once per mode and round, in any order.
  void AddRun(BenchMode mode, int32_t round, std::vector<RequestOutcome> outcomes,
              std::optional<SpecActivity> activity);

  const ServiceLimits& limits() const { return limits_; }
  const std::vector<BenchMode>& modes() const { return modes_; }
  // What ratios refer to: plain, or the first mode where plain is not among them.
  BenchMode reference() const;
  int64_t run_count() const;
  // In the order of modes(). Rounds that lack a run are left out of that mode's figures.
  std::vector<ModeFigures> Figures() const;
  const std::vector<Divergence>& divergences() const { return divergences_; }
  // Outputs that were compared with those of an earlier run. Failed requests are not.
  int64_t compared() const { return compared_; }

 private:
  struct Run {
    std::vector<RequestOutcome> outcomes;
    RunSummary summary;
    std::optional<SpecActivity> activity;
  };
  struct Reference {
    BenchMode mode;
    int32_t round;
    std::vector<int32_t> token_ids;
  };
  void CompareTokens(BenchMode mode, int32_t round, const RequestOutcome& outcome);
  ModeFigures FiguresOf(BenchMode mode) const;

  std::vector<BenchMode> modes_;
  const ServiceLimits limits_;
  const DeviceCount devices_;
  std::map<BenchMode, std::map<int32_t, Run>> runs_;
  std::map<int64_t, Reference> references_;  // by request
  std::vector<Divergence> divergences_;
  int64_t compared_ = 0;
};

}  // namespace paceline

// Metrics that every worker process has, whatever its role.
#pragma once

#include <string>

#include "common/clock.h"
#include "common/rpc/metric_set.h"
#include "worker/runner/runner.h"

namespace paceline {

enum class StartupPhase { kLoad, kWarmup, kGraphs, kReady };

class ProcessMetrics {
 public:
  ProcessMetrics(MetricSet* set, const std::string& role);

  // Seconds that a phase of the start took; kReady: from start to ready.
  void SetStartup(StartupPhase phase, Duration took);
  void SetReady(bool ready) { ready_->Set(ready ? 1 : 0); }

 private:
  std::vector<prometheus::Gauge*> startup_;  // by phase
  prometheus::Gauge* ready_;
};

}  // namespace paceline

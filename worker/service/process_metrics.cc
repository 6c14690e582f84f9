#include "worker/service/process_metrics.h"

namespace paceline {

ProcessMetrics::ProcessMetrics(MetricSet* set, const std::string& role)
    : startup_(set->NewGauges("paceline_worker_startup_phase_seconds",
                              "Duration of each phase of the start", "phase",
                              {"load", "warmup", "graphs", "ready"})),
      ready_(set->NewGauge("paceline_worker_ready", "1 while requests are taken")) {
  set->NewGauge("paceline_worker_build_info", "Always 1",
                {{"version", PACELINE_VERSION}, {"role", role}})
      ->Set(1);
}

void ProcessMetrics::SetStartup(StartupPhase phase, Duration took) {
  startup_[static_cast<size_t>(phase)]->Set(ToSeconds(took));
}

}  // namespace paceline

// A router's metrics: what the core and the public API tell while requests go by, and what the
// cluster looks like at each scrape. Threads: RouterProbe's calls, the loop's; RequestProbe's and
// Collect, any.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <prometheus/collectable.h>

#include "common/rpc/metric_set.h"
#include "router/core/router_probe.h"
#include "router/core/worker_set.h"
#include "router/service/request_probe.h"

namespace paceline {

// The router and its cluster at one moment.
struct RouterSnapshot {
  struct Worker {
    std::string address;
    bool target = true;
    WorkerState state = WorkerState::kUnreachable;
    CircuitState circuit = CircuitState::kClosed;
  };
  int64_t in_flight = 0;  // requests admitted and not ended
  int64_t queued = 0;     // of those, waiting for a worker
  std::vector<Worker> workers;
  double listed_unix = 0;  // last listing of the workers that succeeded
};

class RouterMetrics final : public RouterProbe,
                            public RequestProbe,
                            public prometheus::Collectable {
 public:
  // `models`: names that are label values from the start. `discovery`: how workers are listed.
  RouterMetrics(const std::vector<std::string>& models, const std::string& discovery);

  // Read at every scrape.
  void SetSnapshotSource(std::function<RouterSnapshot()> source);

  void Placed(const PlacementScore& score, const std::string& model) override;
  void QueueWait(const std::string& model, int32_t priority, Duration waited) override;
  void Rejected(const std::string& model, const ServingError& error) override;
  void AttemptEnded(AttemptResult result) override;
  void FailedOver(FailoverPhase phase, bool resumed, int64_t replayed_tokens) override;
  void FailoverGap(Duration gap) override;
  void Cancelled(const std::string& stage, bool by_deadline) override;

  void RequestEnded(const RequestEnd& end) override;
  void FirstToken(const std::string& model, Duration since_receipt) override;
  void NextTokens(const std::string& model, Duration since_last, int32_t tokens) override;
  void Overhead(OverheadStage stage, Duration spent) override;
  void RequestOverhead(Duration spent) override;

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  using CounterFamily = prometheus::Family<prometheus::Counter>;
  using GaugeFamily = prometheus::Family<prometheus::Gauge>;
  using WorkerKey = std::pair<std::string, std::string>;  // address, pool

  std::string ModelLabel(const std::string& model);
  void ShowWorkers(const std::vector<RouterSnapshot::Worker>& workers) const;

  MetricSet set_{{}};
  CounterFamily *requests_, *failovers_, *cancelled_;
  GaugeFamily *workers_, *circuits_;
  prometheus::Gauge *in_flight_, *queue_depth_, *listed_;
  prometheus::Histogram *queue_wait_, *first_token_, *inter_token_, *per_output_token_, *duration_,
      *prompt_tokens_, *output_tokens_, *failover_gap_, *matched_prefix_, *request_overhead_;
  prometheus::Counter* replayed_;
  std::map<std::string, prometheus::Counter*> rejected_;  // by reason
  std::vector<prometheus::Counter*> attempts_;            // at targets, by AttemptResult
  std::vector<prometheus::Counter*> decisions_;           // by branch
  std::vector<prometheus::Histogram*> overhead_;          // by stage

  std::mutex models_mutex_;
  std::set<std::string> models_;  // label values; bounded

  // Of scrapes. Held while the source waits for the loop, so nothing that the loop calls takes it.
  mutable std::mutex scrape_mutex_;
  std::function<RouterSnapshot()> source_;
  mutable std::map<WorkerKey, prometheus::Gauge*> shown_circuits_;
};

}  // namespace paceline

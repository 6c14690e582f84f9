// A draft worker's metrics. Threads: Proposed, any; Collect, any.
#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include <prometheus/collectable.h>

#include "common/rpc/metric_set.h"
#include "worker/draft/draft_engine.h"
#include "worker/service/draft_probe.h"
#include "worker/service/process_metrics.h"

namespace paceline {

class DraftMetrics final : public DraftProbe, public prometheus::Collectable {
 public:
  explicit DraftMetrics(const std::string& model);

  ProcessMetrics& process() { return process_; }
  // Read at every scrape, once set; the engine outlives the scrapes.
  void SetEngine(const DraftEngine* engine);

  void Proposed(Duration since_commit, int32_t length, int32_t wanted) override;

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  void ReadEngine() const;

  MetricSet set_;
  ProcessMetrics process_;
  prometheus::Gauge *sessions_, *queue_depth_, *kv_usage_;
  std::vector<prometheus::Gauge*> kv_blocks_;  // active, cached, free
  prometheus::Histogram *batch_size_, *propose_, *proposed_tokens_;
  std::vector<prometheus::Histogram*> exit_depth_;  // by reason
  mutable std::vector<FollowedCounter> proposals_;  // used, stale, cancelled, late
  mutable FollowedCounter discarded_, outcomes_spared_, chains_instead_;

  mutable std::mutex mutex_;  // engine_, and what follows it
  const DraftEngine* engine_ = nullptr;
  mutable uint64_t last_steps_ = 0;
};

}  // namespace paceline

// A registry with the few shapes of metric that a process has. A family exists, with all its closed
// label sets at 0, from the moment it is made. Threads: making, one; the metrics themselves, any.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "common/rpc/metric_buckets.h"

namespace paceline {

// A counter that follows a sum kept elsewhere. Guarded by its owner.
class FollowedCounter {
 public:
  explicit FollowedCounter(prometheus::Counter* counter) : counter_(counter) {}
  void Follow(uint64_t sum) {
    if (sum <= last_) return;
    counter_->Increment(static_cast<double>(sum - last_));
    last_ = sum;
  }

 private:
  prometheus::Counter* counter_;
  uint64_t last_ = 0;
};

class MetricSet {
 public:
  // `labels` go to every metric.
  explicit MetricSet(prometheus::Labels labels) : labels_(std::move(labels)) {}

  prometheus::Gauge* NewGauge(const std::string& name, const std::string& help,
                              const prometheus::Labels& labels = {}) {
    return &prometheus::BuildGauge().Name(name).Help(help).Labels(labels_).Register(registry_).Add(
        labels);
  }
  prometheus::Counter* NewCounter(const std::string& name, const std::string& help) {
    return NewCounters(name, help, "", {""})[0];
  }
  prometheus::Histogram* NewHistogram(const std::string& name, const std::string& help,
                                      const MetricBuckets& buckets) {
    return NewHistograms(name, help, buckets, "", {""})[0];
  }
  // One per value of `label`, in order.
  std::vector<prometheus::Counter*> NewCounters(const std::string& name, const std::string& help,
                                                const std::string& label,
                                                const std::vector<std::string>& values);
  std::vector<prometheus::Gauge*> NewGauges(const std::string& name, const std::string& help,
                                            const std::string& label,
                                            const std::vector<std::string>& values);
  std::vector<prometheus::Histogram*> NewHistograms(const std::string& name,
                                                    const std::string& help,
                                                    const MetricBuckets& buckets,
                                                    const std::string& label,
                                                    const std::vector<std::string>& values);

  // For several labels. Without a first series it is not shown.
  prometheus::Family<prometheus::Counter>* NewCounterFamily(const std::string& name,
                                                            const std::string& help) {
    return &prometheus::BuildCounter().Name(name).Help(help).Labels(labels_).Register(registry_);
  }
  prometheus::Family<prometheus::Gauge>* NewGaugeFamily(const std::string& name,
                                                        const std::string& help) {
    return &prometheus::BuildGauge().Name(name).Help(help).Labels(labels_).Register(registry_);
  }

  std::vector<prometheus::MetricFamily> Collect() const { return registry_.Collect(); }

 private:
  const prometheus::Labels labels_;
  prometheus::Registry registry_;
};

}  // namespace paceline

#include "common/rpc/metric_set.h"

namespace paceline {
namespace {

prometheus::Labels LabelsOf(const std::string& label, const std::string& value) {
  return label.empty() ? prometheus::Labels{} : prometheus::Labels{{label, value}};
}

}  // namespace

std::vector<prometheus::Counter*> MetricSet::NewCounters(const std::string& name,
                                                         const std::string& help,
                                                         const std::string& label,
                                                         const std::vector<std::string>& values) {
  auto& family =
      prometheus::BuildCounter().Name(name).Help(help).Labels(labels_).Register(registry_);
  std::vector<prometheus::Counter*> metrics;
  for (const std::string& value : values) metrics.push_back(&family.Add(LabelsOf(label, value)));
  return metrics;
}

std::vector<prometheus::Gauge*> MetricSet::NewGauges(const std::string& name,
                                                     const std::string& help,
                                                     const std::string& label,
                                                     const std::vector<std::string>& values) {
  auto& family = prometheus::BuildGauge().Name(name).Help(help).Labels(labels_).Register(registry_);
  std::vector<prometheus::Gauge*> metrics;
  for (const std::string& value : values) metrics.push_back(&family.Add(LabelsOf(label, value)));
  return metrics;
}

std::vector<prometheus::Histogram*> MetricSet::NewHistograms(
    const std::string& name, const std::string& help, const MetricBuckets& buckets,
    const std::string& label, const std::vector<std::string>& values) {
  auto& family =
      prometheus::BuildHistogram().Name(name).Help(help).Labels(labels_).Register(registry_);
  std::vector<prometheus::Histogram*> metrics;
  for (const std::string& value : values) {
    metrics.push_back(&family.Add(LabelsOf(label, value), buckets));
  }
  return metrics;
}

}  // namespace paceline

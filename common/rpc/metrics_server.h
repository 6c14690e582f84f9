// The HTTP side of a process: /metrics for Prometheus, /livez (the process runs) and /readyz (it
// takes requests; 503 otherwise).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <prometheus/collectable.h>

#include "absl/status/statusor.h"

namespace paceline {

class MetricsServer {
 public:
  // `address` as host:port, port 0 = a free one. `metrics` and `ready` are called on the server's
  // threads until it is destroyed. UNAVAILABLE: the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(
      const std::string& address, std::shared_ptr<prometheus::Collectable> metrics,
      std::function<bool()> ready);
  ~MetricsServer();

  // host:port with the real port.
  const std::string& address() const;

 private:
  class Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline

// Where the workers are. Always re-listed as a whole, never watched: a lost event cannot leave a
// ghost behind. Implementations may block (file, DNS); the router calls them off its event path.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace paceline {

struct WorkerAddress {
  std::string address;  // host:port, the worker's identity for session affinity
  friend auto operator<=>(const WorkerAddress&, const WorkerAddress&) = default;
};

class Discovery {
 public:
  virtual ~Discovery() = default;
  // All workers as of now. An error keeps the last list.
  virtual absl::StatusOr<std::vector<WorkerAddress>> List() = 0;
};

class StaticDiscovery final : public Discovery {
 public:
  explicit StaticDiscovery(std::vector<WorkerAddress> workers) : workers_(std::move(workers)) {}
  absl::StatusOr<std::vector<WorkerAddress>> List() override { return workers_; }

 private:
  std::vector<WorkerAddress> workers_;
};

}  // namespace paceline

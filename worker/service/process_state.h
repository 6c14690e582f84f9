// What a worker process says of itself besides its engine's numbers: identity, readiness, drain.
// Thread-safe.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "paceline/worker/v1/worker.pb.h"
#include "worker/runner/runner.h"

namespace paceline {

class ProcessState {
 public:
  // Draws the incarnation. `role` is "target" or "draft".
  ProcessState(const std::string& role, const std::string& model);

  // The model is in memory.
  void SetLoaded(const RunnerInfo& runner, const std::string& tokenizer_fingerprint);
  // Requests are taken from now on.
  void SetReady() { ready_ = true; }
  void SetDraining() { draining_ = true; }

  bool ready() const { return ready_; }
  bool draining() const { return draining_; }
  bool serving() const { return ready_ && !draining_; }
  worker::v1::WorkerInfo info() const;

 private:
  std::atomic<bool> ready_ = false;
  std::atomic<bool> draining_ = false;
  mutable std::mutex mutex_;
  worker::v1::WorkerInfo info_;
};

// What a call hears before the model is loaded.
absl::Status ModelLoadingError(const std::string& model);

}  // namespace paceline

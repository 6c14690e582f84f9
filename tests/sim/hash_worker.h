// A target worker on a free port without the process: the real service before a real engine with a
// hash model. The engine runs by itself, or step by step as the test says. (Names of worker/service
// stay inside: the router has some of its own.)
#pragma once

#include <memory>
#include <string>

#include "tests/sim/hash_model.h"
#include "worker/engine/engine.h"

namespace paceline::testing {

class HashWorker {
 public:
  explicit HashWorker(const std::string& address = "127.0.0.1:0");
  ~HashWorker();  // Kill

  // The connections break; what was not sent is lost.
  void Kill();
  // From now on the engine runs by itself.
  void Run();
  void Step();

  static const HashModel& Model();
  const std::string& address() const;
  size_t num_requests() const;
  EngineSnapshot Snapshot() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline::testing

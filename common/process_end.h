// What ends a process: a signal, or the end of its work. Signals are blocked in every thread and
// read by one. Thread-safe.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "common/clock.h"

namespace paceline {

class ProcessEnd {
 public:
  // Before any other thread starts. Never destroyed: its thread ends with the process.
  ProcessEnd();

  // From now on a first signal drains; before, it ends the process at once.
  void SetReady() { ready_ = true; }
  // What the process is there for has ended by itself.
  void WorkEnded(const absl::Status& status);
  // By RPC: stop taking work, stay.
  void AskDrain();

  enum class Event { kDrain, kSignal, kFault };
  // Blocks for the next one; a fault comes first, with *fault.
  Event Next(absl::Status* fault);
  // Polls `done` until it holds, a time has passed, or the work has ended.
  template <typename Done>
  bool WaitUntil(Done done, Duration limit) {
    const TimePoint end = SteadyClock::Get().Now() + limit;
    std::unique_lock lock(mutex_);
    while (!done()) {
      if (work_ended_ || SteadyClock::Get().Now() >= end) return false;
      changed_.wait_for(lock, std::chrono::milliseconds(10));
    }
    return true;
  }

 private:
  void ReadSignals();

  sigset_t signals_;
  std::atomic<bool> ready_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  int signals_seen_ = 0;
  bool work_ended_ = false;
  bool drain_asked_ = false;
  absl::Status fault_;
};

// What main does once it has read its flags: starts the logs of `component` and carries out `run`.
// Returns the exit status. What is wrong with `usage`, or went wrong in `run`, is said on standard
// error; with `usage` wrong nothing is run.
int RunProcess(const absl::Status& usage, const std::string& component,
               const std::string& log_level, const std::function<absl::Status(ProcessEnd*)>& run);

}  // namespace paceline

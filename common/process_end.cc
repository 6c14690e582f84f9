#include "common/process_end.h"

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "common/flags.h"
#include "common/log.h"

namespace paceline {

ProcessEnd::ProcessEnd() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGTERM);
  sigaddset(&signals_, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  std::thread([this] { ReadSignals(); }).detach();
}

void ProcessEnd::WorkEnded(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  work_ended_ = true;
  fault_ = status;
  changed_.notify_all();
}

void ProcessEnd::AskDrain() {
  std::lock_guard lock(mutex_);
  drain_asked_ = true;
  changed_.notify_all();
}

ProcessEnd::Event ProcessEnd::Next(absl::Status* fault) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return signals_seen_ > 0 || work_ended_ || drain_asked_; });
  *fault = fault_;
  if (work_ended_) return Event::kFault;
  drain_asked_ = false;
  return signals_seen_ > 0 ? Event::kSignal : Event::kDrain;
}

void ProcessEnd::ReadSignals() {
  while (true) {
    int signal = 0;
    if (sigwait(&signals_, &signal) != 0) continue;
    std::lock_guard lock(mutex_);
    if (++signals_seen_ > 1) std::_Exit(kExitFailure);
    if (!ready_) std::_Exit(0);
    changed_.notify_all();
  }
}

int RunProcess(const absl::Status& usage, const std::string& component,
               const std::string& log_level, const std::function<absl::Status(ProcessEnd*)>& run) {
  const auto say = [](const absl::Status& status) {
    std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  };
  if (!usage.ok()) {
    say(usage);
    return kExitUsage;
  }
  InitLogging(component, log_level);
  const absl::Status status = run(new ProcessEnd);
  if (status.ok()) return 0;
  say(status);
  return kExitFailure;
}

}  // namespace paceline

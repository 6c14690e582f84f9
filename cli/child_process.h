// A process that `paceline up` starts and ends. Its standard output is read line by line for the
// addresses it announces; its standard error is ours.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"

namespace paceline {

class ChildProcess {
 public:
  // argv[0] is the program's path. The child gets SIGTERM when this process dies, however it dies.
  static absl::StatusOr<ChildProcess> Start(std::vector<std::string> argv);

  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;
  // Kills and reaps a child that still runs.
  ~ChildProcess();

  pid_t pid() const { return pid_; }

  // The rest of the first line that starts with `prefix`. DEADLINE_EXCEEDED after `limit`, and
  // UNAVAILABLE when the child ends first.
  absl::StatusOr<std::string> WaitForLine(const std::string& prefix, Duration limit);

  // True once the child has ended; reaps it.
  bool Ended();
  int exit_status() const { return exit_status_; }  // as of waitpid; valid once Ended

  void Signal(int signal);
  // Waits up to `limit` for the end; false when it still runs.
  bool Join(Duration limit);

 private:
  ChildProcess(pid_t pid, int out, std::string name)
      : pid_(pid), out_(out), name_(std::move(name)) {}

  pid_t pid_ = -1;
  int out_ = -1;
  std::string name_;
  std::string unread_;
  std::vector<std::string> lines_;  // read and not yet matched
  bool ended_ = false;
  int exit_status_ = 0;
};

}  // namespace paceline

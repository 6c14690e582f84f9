#include "cli/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

[[noreturn]] void RunChild(const std::vector<std::string>& argv, int out, pid_t parent) {
  // Its own process group: a Ctrl-C at the terminal reaches only `paceline up`, which then ends its
  // children in order.
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(127);
  dup2(out, STDOUT_FILENO);
  std::vector<char*> args;
  for (const std::string& a : argv) args.push_back(const_cast<char*>(a.c_str()));
  args.push_back(nullptr);
  execv(args[0], args.data());
  dprintf(STDERR_FILENO, "error: cannot run %s: %s\n", args[0], std::strerror(errno));
  _exit(127);
}

}  // namespace

absl::StatusOr<ChildProcess> ChildProcess::Start(std::vector<std::string> argv) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) {
    return absl::InternalError(absl::StrCat("pipe: ", std::strerror(errno)));
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  if (pid == 0) RunChild(argv, fds[1], parent);
  close(fds[1]);
  return ChildProcess(pid, fds[0], argv[0]);
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      out_(std::exchange(other.out_, -1)),
      name_(std::move(other.name_)),
      unread_(std::move(other.unread_)),
      lines_(std::move(other.lines_)),
      ended_(other.ended_),
      exit_status_(other.exit_status_) {}

ChildProcess::~ChildProcess() {
  if (pid_ > 0 && !Ended()) {
    Signal(SIGKILL);
    Join(std::chrono::seconds(5));
  }
  if (out_ >= 0) close(out_);
}

absl::StatusOr<std::string> ChildProcess::WaitForLine(const std::string& prefix, Duration limit) {
  const TimePoint end = SteadyClock::Get().Now() + limit;
  for (;;) {
    for (auto it = lines_.begin(); it != lines_.end(); ++it) {
      if (it->rfind(prefix, 0) != 0) continue;
      std::string rest = it->substr(prefix.size());
      lines_.erase(it);
      return rest;
    }
    const Duration left = end - SteadyClock::Get().Now();
    if (left <= Duration::zero()) {
      return absl::DeadlineExceededError(
          absl::StrCat(name_, " did not print '", prefix, "' within ", ToSeconds(limit), " s"));
    }
    pollfd fd{out_, POLLIN, 0};
    if (poll(&fd, 1, static_cast<int>(left / std::chrono::milliseconds(1)) + 1) <= 0) continue;
    char buffer[4096];
    const ssize_t n = read(out_, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::UnavailableError(absl::StrCat(name_, " ended before it was ready"));
    unread_.append(buffer, n);
    for (size_t eol; (eol = unread_.find('\n')) != std::string::npos;) {
      lines_.push_back(unread_.substr(0, eol));
      unread_.erase(0, eol + 1);
    }
  }
}

bool ChildProcess::Ended() {
  if (ended_ || pid_ <= 0) return true;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) != pid_) return false;
  ended_ = true;
  exit_status_ = status;
  return true;
}

void ChildProcess::Signal(int signal) {
  if (pid_ > 0 && !ended_) kill(pid_, signal);
}

bool ChildProcess::Join(Duration limit) {
  const TimePoint end = SteadyClock::Get().Now() + limit;
  while (!Ended()) {
    if (SteadyClock::Get().Now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

}  // namespace paceline

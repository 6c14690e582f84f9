#include "cli/bench/http_get.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

constexpr size_t kMaxBytes = 64 << 20;

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  Socket(const Socket&) = delete;
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

// True once fd is ready; false when the time is over.
bool AwaitReady(int fd, int16_t events, TimePoint until) {
  while (true) {
    const Duration left = until - SteadyClock::Get().Now();
    if (left <= Duration::zero()) return false;
    pollfd entry = {fd, events, 0};
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count() + 1;
    const int ready = poll(&entry, 1, static_cast<int>(std::min<int64_t>(ms, 60'000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

absl::Status ConnectTo(int fd, const addrinfo& to, TimePoint until) {
  if (connect(fd, to.ai_addr, to.ai_addrlen) == 0) return absl::OkStatus();
  if (errno != EINPROGRESS) return absl::UnavailableError(std::strerror(errno));
  if (!AwaitReady(fd, POLLOUT, until)) return absl::UnavailableError("no answer");
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error != 0) return absl::UnavailableError(std::strerror(error));
  return absl::OkStatus();
}

absl::Status SendAll(int fd, const std::string& text, TimePoint until) {
  for (size_t sent = 0; sent < text.size();) {
    if (!AwaitReady(fd, POLLOUT, until)) return absl::UnavailableError("no answer");
    const ssize_t n = send(fd, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
      return absl::UnavailableError(std::strerror(errno));
    }
    if (n > 0) sent += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReceiveAll(int fd, TimePoint until) {
  std::string text;
  char buffer[16384];
  while (true) {
    if (!AwaitReady(fd, POLLIN, until)) return absl::UnavailableError("no answer");
    const ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    if (n == 0) return text;
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
      return absl::UnavailableError(std::strerror(errno));
    }
    if (n > 0) text.append(buffer, static_cast<size_t>(n));
    if (text.size() > kMaxBytes) return absl::UnavailableError("the answer is beyond 64 MiB");
  }
}

absl::StatusOr<std::string> Exchange(const addrinfo& to, const std::string& request,
                                     TimePoint until) {
  const Socket socket(
      ::socket(to.ai_family, to.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, to.ai_protocol));
  if (socket.fd() < 0) return absl::UnavailableError(std::strerror(errno));
  RETURN_IF_ERROR(ConnectTo(socket.fd(), to, until));
  RETURN_IF_ERROR(SendAll(socket.fd(), request, until));
  return ReceiveAll(socket.fd(), until);
}

absl::StatusOr<std::string> BodyOf(const std::string& answer) {
  const std::string status = answer.substr(0, answer.find("\r\n"));
  if (status.rfind("HTTP/1.", 0) != 0 ||
      status.substr(std::min<size_t>(8, status.size()), 4) != " 200") {
    return absl::UnavailableError(absl::StrCat("answered '", status.substr(0, 100), "'"));
  }
  const size_t blank = answer.find("\r\n\r\n");
  if (blank == std::string::npos) return absl::UnavailableError("answered without a body");
  return answer.substr(blank + 4);
}

}  // namespace

absl::StatusOr<std::string> HttpGet(const std::string& address, const std::string& path,
                                    Duration limit) {
  const TimePoint until = SteadyClock::Get().Now() + limit;
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) {
    return absl::InvalidArgumentError(absl::StrCat("'", address, "' is not host:port"));
  }
  std::string host = address.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int error = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &list);
  if (error != 0) return absl::UnavailableError(absl::StrCat(address, ": ", gai_strerror(error)));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(list, freeaddrinfo);

  const std::string request =
      absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: ", address, "\r\nAccept: text/plain\r\n\r\n");
  absl::Status last;
  for (const addrinfo* to = list; to != nullptr; to = to->ai_next) {
    absl::StatusOr<std::string> body = Exchange(*to, request, until);
    if (body.ok()) body = BodyOf(*body);
    if (body.ok()) return body;
    last = body.status();
  }
  return absl::UnavailableError(absl::StrCat("http://", address, path, ": ", last.message()));
}

}  // namespace paceline

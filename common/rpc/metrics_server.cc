#include "common/rpc/metrics_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include <CivetServer.h>
#include <prometheus/text_serializer.h>

#include "absl/strings/str_cat.h"
#include "common/rpc/channel.h"

namespace paceline {
namespace {

void Answer(mg_connection* connection, const char* status, const char* type,
            const std::string& body) {
  const std::string head = absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Type: ", type,
                                        "\r\nContent-Length: ", body.size(), "\r\n\r\n");
  mg_write(connection, head.data(), head.size());
  mg_write(connection, body.data(), body.size());
}

class MetricsPage final : public CivetHandler {
 public:
  explicit MetricsPage(std::shared_ptr<prometheus::Collectable> metrics)
      : metrics_(std::move(metrics)) {}
  bool handleGet(CivetServer*, mg_connection* connection) override {
    const std::string body = prometheus::TextSerializer().Serialize(metrics_->Collect());
    Answer(connection, "200 OK", "text/plain; version=0.0.4; charset=utf-8", body);
    return true;
  }

 private:
  std::shared_ptr<prometheus::Collectable> metrics_;
};

class ProbePage final : public CivetHandler {
 public:
  explicit ProbePage(std::function<bool()> good) : good_(std::move(good)) {}
  bool handleGet(CivetServer*, mg_connection* connection) override {
    const bool good = good_();
    Answer(connection, good ? "200 OK" : "503 Service Unavailable", "text/plain",
           good ? "ok\n" : "not ready\n");
    return true;
  }

 private:
  std::function<bool()> good_;
};

std::vector<std::string> Options(const std::string& address) {
  return {"listening_ports", address, "num_threads", "2", "request_timeout_ms", "10000"};
}

// Opens a connection and closes it; nothing where that fails. IPv4.
void Knock(const std::string& address, int port) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  if (inet_pton(AF_INET, address.substr(0, address.rfind(':')).c_str(), &to.sin_addr) != 1) return;
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0) return;
  (void)!connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to));
  close(fd);
}

}  // namespace

class MetricsServer::Impl {
 public:
  Impl(const std::string& address, std::shared_ptr<prometheus::Collectable> metrics,
       std::function<bool()> ready)
      : metrics_(std::move(metrics)),
        live_([] { return true; }),
        ready_(std::move(ready)),
        server_(Options(address)) {
    server_.addHandler("/metrics", metrics_);
    server_.addHandler("/livez", live_);
    server_.addHandler("/readyz", ready_);
    const std::vector<int> ports = server_.getListeningPorts();
    port_ = ports.empty() ? 0 : ports[0];
    address_ = WithPort(address, port_);
  }
  // The server's thread sleeps for up to 2 s in its poll; connections wake it.
  ~Impl() {
    std::atomic<bool> closed = false;
    std::thread knocker([&] {
      while (!closed) {
        Knock(address_, port_);
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    });
    server_.close();
    closed = true;
    knocker.join();
  }
  const std::string& address() const { return address_; }

 private:
  MetricsPage metrics_;
  ProbePage live_, ready_;
  std::string address_;
  int port_ = 0;
  CivetServer server_;  // last: its threads end before the pages go
};

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const std::string& address, std::shared_ptr<prometheus::Collectable> metrics,
    std::function<bool()> ready) {
  try {
    return std::unique_ptr<MetricsServer>(
        new MetricsServer(std::make_unique<Impl>(address, std::move(metrics), std::move(ready))));
  } catch (const CivetException&) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address,
                                               " (--metrics-listen): no such address of this "
                                               "machine, or in use"));
  }
}

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MetricsServer::~MetricsServer() = default;

const std::string& MetricsServer::address() const { return impl_->address(); }

}  // namespace paceline

// A gRPC server of a process: one port, the given services, health and reflection. Health is
// NOT_SERVING until SetServing.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <grpcpp/server.h>

#include "absl/status/statusor.h"
#include "common/clock.h"

namespace paceline {

class RpcServer {
 public:
  // A service and the name that health checks ask for.
  struct Service {
    std::string name;
    grpc::Service* service = nullptr;
  };

  // `address` as host:port, port 0 = a free one. The services outlive the server. UNAVAILABLE: the
  // address cannot be bound, which `flag` gave.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const std::string& address,
                                                          const std::vector<Service>& services,
                                                          const std::string& flag = "--listen");
  ~RpcServer();

  // host:port with the real port.
  const std::string& address() const { return address_; }
  // Of the empty name and of every service.
  void SetServing(bool serving);
  // Calls still open after `grace` are cancelled. Returns when all have ended.
  void Shutdown(Duration grace);

 private:
  RpcServer() = default;

  std::string address_;
  std::vector<std::string> names_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace paceline

#include "common/rpc/rpc_server.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>

#include "absl/strings/str_cat.h"
#include "common/rpc/channel.h"

namespace paceline {

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const std::string& address,
                                                            const std::vector<Service>& services,
                                                            const std::string& flag) {
  std::unique_ptr<RpcServer> self(new RpcServer);
  grpc::ServerBuilder builder;
  ConfigureServer(&builder, /*reflection=*/true);
  int port = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  for (const Service& service : services) {
    builder.RegisterService(service.service);
    self->names_.push_back(service.name);
  }
  self->server_ = builder.BuildAndStart();
  if (self->server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address, " (", flag,
                                               "): no such address of this machine, or in use"));
  }
  self->address_ = WithPort(address, port);
  self->SetServing(false);
  return self;
}

RpcServer::~RpcServer() { Shutdown(Duration::zero()); }

void RpcServer::SetServing(bool serving) {
  auto* health = server_->GetHealthCheckService();
  health->SetServingStatus("", serving);
  for (const std::string& name : names_) health->SetServingStatus(name, serving);
}

void RpcServer::Shutdown(Duration grace) {
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now() +
                    std::chrono::duration_cast<std::chrono::system_clock::duration>(grace));
  server_->Wait();
  server_.reset();
}

}  // namespace paceline

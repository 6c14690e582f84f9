#include "common/rpc/channel.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "paceline/worker/v1/worker.grpc.pb.h"

namespace paceline {
namespace {

// A call that never leaves the process: `done` runs in its callback.
void CallInVain(worker::v1::WorkerService::Stub* stub, std::function<void()> done) {
  struct Call {
    grpc::ClientContext context;
    worker::v1::GetInfoRequest request;
    worker::v1::GetInfoResponse response;
  };
  auto* call = new Call;
  call->context.TryCancel();
  stub->async()->GetInfo(&call->context, &call->request, &call->response,
                         [call, done = std::move(done)](const grpc::Status&) {
                           delete call;
                           done();
                         });
}

// Once per process, before gRPC is used: gRPC 1.51 runs all callbacks on a few threads around one
// queue, which it tears down with the last channel or server that uses it, in a race with those
// threads (an abort in about one of ten processes that close and open channels). One channel that
// is never destroyed keeps the queue, and with a first call makes it.
worker::v1::WorkerService::Stub* PrepareGrpc() {
  static auto* const kept = [] {
    // Debian builds Abseil with its search for lock cycles, in every lock that gRPC takes.
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
    auto* stub = worker::v1::WorkerService::NewStub(
                     grpc::CreateChannel("127.0.0.1:1", grpc::InsecureChannelCredentials()))
                     .release();
    CallInVain(stub, [] {});
    return stub;
  }();
  return kept;
}

}  // namespace

void ConfigureServer(grpc::ServerBuilder* builder, bool reflection) {
  PrepareGrpc();
  grpc::EnableDefaultHealthCheckService(true);
  if (reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  builder->SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder->SetMaxSendMessageSize(-1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  // Two processes on one port would share its connections by chance.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

void RunOnCallbackThread(std::function<void()> task) { CallInVain(PrepareGrpc(), std::move(task)); }

std::shared_ptr<grpc::Channel> NewChannel(const std::string& address) {
  PrepareGrpc();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 15'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

std::string WithPort(const std::string& address, int port) {
  const size_t colon = address.rfind(':');
  return absl::StrCat(address.substr(0, colon), ":", port);
}

}  // namespace paceline

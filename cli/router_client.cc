#include "cli/router_client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <cstdio>

#include "common/flags.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace paceline {
namespace {

constexpr int kConnectLimitMs = 5000;

const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  return code >= 0 && code <= 16 ? kNames[code] : "UNKNOWN";
}

std::string Reason(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  if (!details.ParseFromString(status.error_details())) return "";
  for (const auto& any : details.details()) {
    if (any.UnpackTo(&info)) return info.reason();
  }
  return "";
}

}  // namespace

std::shared_ptr<grpc::Channel> ConnectRouter(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(16 << 20);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectLimitMs);  // the attempt's limit too
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

int ReportFailure(const std::string& router, const grpc::Status& status) {
  const std::string reason = Reason(status);
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE && reason.empty()) {  // gRPC's own
    std::fprintf(stderr, "error: no answer from the router at %s: %s\n", router.c_str(),
                 status.error_message().c_str());
    return kExitFailure;
  }
  std::fprintf(stderr, "error: %s: %s%s\n", CodeName(status.error_code()),
               status.error_message().c_str(),
               reason.empty() ? "" : (" (reason " + reason + ")").c_str());
  return kExitFailure;
}

}  // namespace paceline

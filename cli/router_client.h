// How the command line reaches a router, and how it tells of failures.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

namespace paceline {

std::shared_ptr<grpc::Channel> ConnectRouter(const std::string& address);

// Prints "error: CODE: message (reason REASON)" on standard error and returns kExitFailure.
int ReportFailure(const grpc::Status& status);

}  // namespace paceline

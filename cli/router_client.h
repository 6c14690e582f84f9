// How the command line reaches a router, and how it tells of failures.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

namespace paceline {

// An attempt to connect ends after 5 s where nobody answers.
std::shared_ptr<grpc::Channel> ConnectRouter(const std::string& address);

// Prints "error: CODE: message (reason REASON)" on standard error, or that the router does not
// answer, and returns kExitFailure.
int ReportFailure(const std::string& router, const grpc::Status& status);

}  // namespace paceline

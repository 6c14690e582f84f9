// Errors on the wire. An absl::Status carries google.rpc details as payloads (type URL -> bytes of
// the detail message), so that nothing is lost between a worker's engine and a client: absl::Status
// <-> google.rpc.Status (inside messages) <-> grpc::Status (ends of calls, whose details travel as
// grpc-status-details-bin).
#pragma once

#include <map>
#include <string>

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "common/clock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace paceline {

inline constexpr char kErrorDomain[] = "paceline.dev";

// Unknown codes become UNKNOWN; malformed details are kept as they are.
google::rpc::Status ToRpcStatus(const absl::Status& status);
absl::Status FromRpcStatus(const google::rpc::Status& status);
grpc::Status ToGrpcStatus(const google::rpc::Status& status);
grpc::Status ToGrpcStatus(const absl::Status& status);
// Details that are no google.rpc.Status are dropped.
absl::Status FromGrpcStatus(const grpc::Status& status);

// Builds a google.rpc.Status with typed details; each kind at most once.
class ErrorBuilder {
 public:
  ErrorBuilder(absl::StatusCode code, const std::string& message);
  // ErrorInfo: UPPER_SNAKE, at most 63 characters; what varies in the message goes to metadata.
  ErrorBuilder& Reason(const std::string& reason,
                       const std::map<std::string, std::string>& metadata = {});
  // BadRequest; may be called more than once.
  ErrorBuilder& Field(const std::string& field, const std::string& description);
  // ResourceInfo.
  ErrorBuilder& Resource(const std::string& type, const std::string& name);
  // QuotaFailure.
  ErrorBuilder& Quota(const std::string& subject, const std::string& description);
  // PreconditionFailure.
  ErrorBuilder& Precondition(const std::string& type, const std::string& subject,
                             const std::string& description);
  // RetryInfo.
  ErrorBuilder& RetryAfter(Duration delay);
  // DebugInfo.
  ErrorBuilder& Debug(const std::string& detail);

  google::rpc::Status Build() const;
  absl::Status ToAbsl() const { return FromRpcStatus(Build()); }
  grpc::Status ToGrpc() const { return ToGrpcStatus(Build()); }

 private:
  google::rpc::Status status_;
  google::rpc::BadRequest bad_request_;
};

// The first detail of type Detail. False when there is none, or it is malformed.
template <typename Detail>
bool FindDetail(const google::rpc::Status& status, Detail* detail) {
  for (const auto& any : status.details()) {
    if (any.Is<Detail>()) return any.UnpackTo(detail);
  }
  return false;
}

// ErrorInfo.reason, or empty.
std::string ErrorReason(const absl::Status& status);
std::string ErrorReason(const grpc::Status& status);

}  // namespace paceline

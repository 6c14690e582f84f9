#include "common/rpc/error.h"

#include "common/rpc/duration.h"

namespace paceline {
namespace {

absl::StatusCode CodeOf(int code) {
  if (code < 0 || code > static_cast<int>(absl::StatusCode::kUnauthenticated)) {
    return absl::StatusCode::kUnknown;
  }
  return static_cast<absl::StatusCode>(code);
}

}  // namespace

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status rpc;
  rpc.set_code(static_cast<int>(status.code()));
  rpc.set_message(std::string(status.message()));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& bytes) {
    auto* any = rpc.add_details();
    any->set_type_url(std::string(url));
    any->set_value(std::string(bytes));
  });
  return rpc;
}

absl::Status FromRpcStatus(const google::rpc::Status& rpc) {
  absl::Status status(CodeOf(rpc.code()), rpc.message());
  if (status.ok()) return status;
  for (const auto& any : rpc.details()) {
    status.SetPayload(any.type_url(), absl::Cord(any.value()));
  }
  return status;
}

grpc::Status ToGrpcStatus(const google::rpc::Status& rpc) {
  const absl::StatusCode code = CodeOf(rpc.code());
  if (code == absl::StatusCode::kOk) return grpc::Status::OK;
  const std::string details = rpc.details_size() > 0 ? rpc.SerializeAsString() : std::string();
  return grpc::Status(static_cast<grpc::StatusCode>(code), rpc.message(), details);
}

grpc::Status ToGrpcStatus(const absl::Status& status) { return ToGrpcStatus(ToRpcStatus(status)); }

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  google::rpc::Status rpc;
  // Code and message are the call's own, whatever the details claim.
  if (!rpc.ParseFromString(status.error_details())) rpc.Clear();
  rpc.set_code(static_cast<int>(status.error_code()));
  rpc.set_message(status.error_message());
  return FromRpcStatus(rpc);
}

ErrorBuilder::ErrorBuilder(absl::StatusCode code, const std::string& message) {
  status_.set_code(static_cast<int>(code));
  status_.set_message(message);
}

ErrorBuilder& ErrorBuilder::Reason(const std::string& reason,
                                   const std::map<std::string, std::string>& metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain(kErrorDomain);
  for (const auto& [key, value] : metadata) (*info.mutable_metadata())[key] = value;
  status_.add_details()->PackFrom(info);
  return *this;
}

ErrorBuilder& ErrorBuilder::Field(const std::string& field, const std::string& description) {
  auto* violation = bad_request_.add_field_violations();
  violation->set_field(field);
  violation->set_description(description);
  return *this;
}

ErrorBuilder& ErrorBuilder::Resource(const std::string& type, const std::string& name) {
  google::rpc::ResourceInfo info;
  info.set_resource_type(type);
  info.set_resource_name(name);
  status_.add_details()->PackFrom(info);
  return *this;
}

ErrorBuilder& ErrorBuilder::Quota(const std::string& subject, const std::string& description) {
  google::rpc::QuotaFailure failure;
  auto* violation = failure.add_violations();
  violation->set_subject(subject);
  violation->set_description(description);
  status_.add_details()->PackFrom(failure);
  return *this;
}

ErrorBuilder& ErrorBuilder::Precondition(const std::string& type, const std::string& subject,
                                         const std::string& description) {
  google::rpc::PreconditionFailure failure;
  auto* violation = failure.add_violations();
  violation->set_type(type);
  violation->set_subject(subject);
  violation->set_description(description);
  status_.add_details()->PackFrom(failure);
  return *this;
}

ErrorBuilder& ErrorBuilder::RetryAfter(Duration delay) {
  google::rpc::RetryInfo info;
  ToProto(delay, info.mutable_retry_delay());
  status_.add_details()->PackFrom(info);
  return *this;
}

ErrorBuilder& ErrorBuilder::Debug(const std::string& detail) {
  google::rpc::DebugInfo info;
  info.set_detail(detail);
  status_.add_details()->PackFrom(info);
  return *this;
}

google::rpc::Status ErrorBuilder::Build() const {
  google::rpc::Status status = status_;
  if (bad_request_.field_violations_size() > 0) status.add_details()->PackFrom(bad_request_);
  return status;
}

std::string ErrorReason(const absl::Status& status) {
  google::rpc::ErrorInfo info;
  return FindDetail(ToRpcStatus(status), &info) ? info.reason() : std::string();
}

std::string ErrorReason(const grpc::Status& status) { return ErrorReason(FromGrpcStatus(status)); }

}  // namespace paceline

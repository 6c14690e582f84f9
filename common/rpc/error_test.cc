#include "common/rpc/error.h"

#include <gtest/gtest.h>

#include "common/rpc/duration.h"

namespace paceline {
namespace {

ErrorBuilder FullError() {
  return ErrorBuilder(absl::StatusCode::kResourceExhausted, "7 wait; the limit is 7")
      .Reason("QUEUE_FULL", {{"limit", "7"}})
      .Field("priority", "too low")
      .Field("model", "busy")
      .Resource("paceline.v1.Model", "llama")
      .Quota("router queue", "7 of 7")
      .Precondition("KV", "pool", "too small")
      .RetryAfter(std::chrono::milliseconds(1500))
      .Debug("stack");
}

void ExpectFull(const google::rpc::Status& status) {
  EXPECT_EQ(status.code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(status.message(), "7 wait; the limit is 7");
  EXPECT_EQ(status.details_size(), 7);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(FindDetail(status, &info));
  EXPECT_EQ(info.reason(), "QUEUE_FULL");
  EXPECT_EQ(info.domain(), "paceline.dev");
  EXPECT_EQ(info.metadata().at("limit"), "7");
  google::rpc::BadRequest bad;
  ASSERT_TRUE(FindDetail(status, &bad));
  ASSERT_EQ(bad.field_violations_size(), 2);
  EXPECT_EQ(bad.field_violations(1).field(), "model");
  google::rpc::ResourceInfo resource;
  ASSERT_TRUE(FindDetail(status, &resource));
  EXPECT_EQ(resource.resource_name(), "llama");
  google::rpc::QuotaFailure quota;
  ASSERT_TRUE(FindDetail(status, &quota));
  EXPECT_EQ(quota.violations(0).subject(), "router queue");
  google::rpc::PreconditionFailure precondition;
  ASSERT_TRUE(FindDetail(status, &precondition));
  EXPECT_EQ(precondition.violations(0).type(), "KV");
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(FindDetail(status, &retry));
  EXPECT_EQ(*FromProto(retry.retry_delay()), std::chrono::milliseconds(1500));
  google::rpc::DebugInfo debug;
  ASSERT_TRUE(FindDetail(status, &debug));
  EXPECT_EQ(debug.detail(), "stack");
}

TEST(ErrorTest, DetailsSurviveEveryForm) {
  const google::rpc::Status built = FullError().Build();
  ExpectFull(built);
  ExpectFull(ToRpcStatus(FromRpcStatus(built)));
  ExpectFull(ToRpcStatus(FromGrpcStatus(ToGrpcStatus(built))));
  ExpectFull(ToRpcStatus(FromGrpcStatus(ToGrpcStatus(FullError().ToAbsl()))));
  EXPECT_EQ(ErrorReason(FullError().ToGrpc()), "QUEUE_FULL");
}

TEST(ErrorTest, EveryCodeGoesThereAndBack) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "why");
    EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)), status);
    EXPECT_EQ(FromRpcStatus(ToRpcStatus(status)), status);
    EXPECT_EQ(ErrorReason(status), "");
  }
}

TEST(ErrorTest, UnknownCodesAreUnknown) {
  google::rpc::Status status;
  for (int code : {-1, 17, 1 << 30}) {
    status.set_code(code);
    EXPECT_EQ(FromRpcStatus(status).code(), absl::StatusCode::kUnknown);
    EXPECT_EQ(ToGrpcStatus(status).error_code(), grpc::StatusCode::UNKNOWN);
  }
}

TEST(ErrorTest, RubbishDetailsAreDropped) {
  const grpc::Status status(grpc::StatusCode::INTERNAL, "why", "\xff\xff\xff rubbish");
  EXPECT_EQ(FromGrpcStatus(status), absl::InternalError("why"));
}

TEST(ErrorTest, DetailsDoNotOverruleTheCall) {
  const std::string details = FullError().Build().SerializeAsString();
  const absl::Status status =
      FromGrpcStatus(grpc::Status(grpc::StatusCode::ABORTED, "the call's own", details));
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(status.message(), "the call's own");
  EXPECT_EQ(ErrorReason(status), "QUEUE_FULL");
}

TEST(ErrorTest, MalformedDetailIsNotFound) {
  google::rpc::Status status;
  auto* any = status.add_details();
  any->set_type_url("type.googleapis.com/google.rpc.ErrorInfo");
  any->set_value("\xff\xff\xff");
  google::rpc::ErrorInfo info;
  EXPECT_FALSE(FindDetail(status, &info));
}

}  // namespace
}  // namespace paceline

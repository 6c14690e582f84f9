#include "router/core/serving_error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace paceline {
namespace {

using absl::StatusCode;

// One row of the public table.
struct Row {
  ServingError error;
  StatusCode code;
  const char* reason;
  bool bad_request = false, resource = false, quota = false, precondition = false;
  bool retry_info = false, pushback = false;
  std::vector<std::string> metadata = {};
};

TEST(ServingErrorTest, EveryRowOfTheTable) {
  using E = ServingError;
  const Row rows[] = {
      {.error = E::InvalidField("top_p", "2 > 1"),
       .code = StatusCode::kInvalidArgument,
       .reason = "INVALID_FIELD",
       .bad_request = true},
      {.error = E::ContextLengthExceeded(1024, 1030),
       .code = StatusCode::kInvalidArgument,
       .reason = "CONTEXT_LENGTH_EXCEEDED",
       .bad_request = true,
       .metadata = {"limit", "got"}},
      {.error = E::ModelNotFound("m"),
       .code = StatusCode::kNotFound,
       .reason = "MODEL_NOT_FOUND",
       .resource = true},
      {.error = E::ModelLoading("m"),
       .code = StatusCode::kUnavailable,
       .reason = "MODEL_LOADING",
       .retry_info = true,
       .pushback = true},
      {.error = E::QueueFull(9, 8, "--max-queue"),
       .code = StatusCode::kResourceExhausted,
       .reason = "QUEUE_FULL",
       .quota = true,
       .retry_info = true,
       .pushback = true},
      {.error = E::QuotaExceeded("c", "too many"),
       .code = StatusCode::kResourceExhausted,
       .reason = "QUOTA_EXCEEDED",
       .quota = true,
       .retry_info = true},
      {.error = E::KvCapacityTooSmall("m", "needs 9 blocks"),
       .code = StatusCode::kFailedPrecondition,
       .reason = "KV_CAPACITY_TOO_SMALL",
       .precondition = true},
      {.error = E::NoWorker("m"),
       .code = StatusCode::kUnavailable,
       .reason = "NO_WORKER",
       .retry_info = true},
      {.error = E::Draining(),
       .code = StatusCode::kUnavailable,
       .reason = "DRAINING",
       .pushback = true},
      {.error = E::WorkerLost(3, "gone"),
       .code = StatusCode::kUnavailable,
       .reason = "WORKER_LOST",
       .metadata = {"attempts"}},
      {.error = E::StreamLost(17, "gone"),
       .code = StatusCode::kUnavailable,
       .reason = "STREAM_LOST",
       .metadata = {"tokens_sent"}},
      {.error = E::Deadline("queued"),
       .code = StatusCode::kDeadlineExceeded,
       .reason = "DEADLINE",
       .metadata = {"stage"}},
      {.error = E::Cancelled(), .code = StatusCode::kCancelled, .reason = "CANCELLED"},
      {.error = E::DuplicateRequestId("r"),
       .code = StatusCode::kAlreadyExists,
       .reason = "DUPLICATE_REQUEST_ID"},
      {.error = E::CredentialsMissing(),
       .code = StatusCode::kUnauthenticated,
       .reason = "CREDENTIALS_MISSING"},
      {.error = E::CredentialsInvalid(),
       .code = StatusCode::kUnauthenticated,
       .reason = "CREDENTIALS_INVALID"},
      {.error = E::NotAllowed("drain"),
       .code = StatusCode::kPermissionDenied,
       .reason = "NOT_ALLOWED"},
      {.error = E::SessionNotFound("s"),
       .code = StatusCode::kNotFound,
       .reason = "SESSION_NOT_FOUND",
       .resource = true},
      {.error = E::ResumeTokenInvalid("old"),
       .code = StatusCode::kInvalidArgument,
       .reason = "RESUME_TOKEN_INVALID",
       .bad_request = true},
      {.error = E::EngineFault("cuda"), .code = StatusCode::kInternal, .reason = "ENGINE_FAULT"},
      {.error = E::NotImplemented("beam"),
       .code = StatusCode::kUnimplemented,
       .reason = "NOT_IMPLEMENTED"},
      {.error = E::ClientTooSlow(10, 5),
       .code = StatusCode::kResourceExhausted,
       .reason = "CLIENT_TOO_SLOW",
       .quota = true},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.reason);
    EXPECT_EQ(row.error.code, row.code);
    EXPECT_EQ(row.error.reason, row.reason);
    EXPECT_THAT(row.error.reason, testing::MatchesRegex("[A-Z][A-Z0-9_]+"));
    EXPECT_LE(row.error.reason.size(), 63u);
    EXPECT_FALSE(row.error.message.empty());
    EXPECT_EQ(!row.error.fields.empty(), row.bad_request);
    EXPECT_EQ(row.error.resource.has_value(), row.resource);
    EXPECT_EQ(row.error.quota.has_value(), row.quota);
    EXPECT_EQ(row.error.precondition.has_value(), row.precondition);
    EXPECT_EQ(row.error.retry_after.has_value(), row.retry_info);
    EXPECT_EQ(row.error.retry_pushback.has_value(), row.pushback);
    for (const std::string& key : row.metadata) {
      ASSERT_TRUE(row.error.metadata.count(key)) << key;
      // What varies in the message is in the metadata too.
      EXPECT_THAT(row.error.message, testing::HasSubstr(row.error.metadata.at(key)));
    }
    EXPECT_THAT(row.error.ToString(), testing::HasSubstr(row.reason));
  }
}

TEST(ServingErrorTest, DrainPushesBackAtOnce) {
  EXPECT_EQ(*ServingError::Draining().retry_pushback, Duration::zero());
}

TEST(ServingErrorTest, FaultKeepsItsCauseOutOfTheMessage) {
  const ServingError e = ServingError::EngineFault("secret path");
  EXPECT_THAT(e.message, testing::Not(testing::HasSubstr("secret")));
  EXPECT_EQ(e.debug, "secret path");
}

}  // namespace
}  // namespace paceline

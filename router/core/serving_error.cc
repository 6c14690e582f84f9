#include "router/core/serving_error.h"

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

using absl::StatusCode;

ServingError Make(StatusCode code, const std::string& reason, const std::string& message) {
  ServingError e;
  e.code = code;
  e.reason = reason;
  e.message = message;
  return e;
}

// What a client should wait before it tries again.
constexpr Duration kLoadingRetry = std::chrono::seconds(5);
constexpr Duration kOverloadRetry = std::chrono::seconds(1);
constexpr Duration kNoWorkerRetry = std::chrono::seconds(1);

void RetryAfter(Duration d, ServingError* e) {
  e->retry_after = d;
  e->retry_pushback = d;
}

}  // namespace

ServingError ServingError::InvalidField(const std::string& field, const std::string& description) {
  auto e = Make(StatusCode::kInvalidArgument, "INVALID_FIELD",
                absl::StrCat("invalid ", field, ": ", description));
  e.metadata["field"] = field;
  e.fields.push_back({field, description});
  return e;
}

ServingError ServingError::ContextLengthExceeded(int64_t limit, int64_t got) {
  const std::string what =
      absl::StrCat("prompt and max_tokens need ", got, " tokens; the model's context has ", limit);
  auto e = Make(StatusCode::kInvalidArgument, "CONTEXT_LENGTH_EXCEEDED", what);
  e.metadata["limit"] = absl::StrCat(limit);
  e.metadata["got"] = absl::StrCat(got);
  e.fields.push_back({"max_tokens", what});
  return e;
}

ServingError ServingError::ModelNotFound(const std::string& model) {
  auto e = Make(StatusCode::kNotFound, "MODEL_NOT_FOUND",
                absl::StrCat("no worker serves the model \"", model, "\""));
  e.metadata["model"] = model;
  e.resource = Resource{"paceline.v1.Model", model};
  return e;
}

ServingError ServingError::ModelLoading(const std::string& model) {
  auto e = Make(StatusCode::kUnavailable, "MODEL_LOADING",
                absl::StrCat("every worker of the model \"", model, "\" is still loading it"));
  e.metadata["model"] = model;
  RetryAfter(kLoadingRetry, &e);
  return e;
}

ServingError ServingError::QueueFull(int64_t depth, int64_t limit, const std::string& flag) {
  const std::string what =
      absl::StrCat(depth, " requests wait at this router; the limit is ", limit, " (", flag, ")");
  auto e = Make(StatusCode::kResourceExhausted, "QUEUE_FULL", what);
  e.metadata["depth"] = absl::StrCat(depth);
  e.metadata["limit"] = absl::StrCat(limit);
  e.quota = Violation{"", "router queue", what};
  RetryAfter(kOverloadRetry, &e);
  return e;
}

ServingError ServingError::QuotaExceeded(const std::string& client,
                                         const std::string& description) {
  auto e = Make(StatusCode::kResourceExhausted, "QUOTA_EXCEEDED",
                absl::StrCat("quota of ", client, " exceeded: ", description));
  e.metadata["client"] = client;
  e.quota = Violation{"", client, description};
  e.retry_after = kOverloadRetry;
  return e;
}

ServingError ServingError::KvCapacityTooSmall(const std::string& model,
                                              const std::string& description) {
  auto e = Make(StatusCode::kFailedPrecondition, "KV_CAPACITY_TOO_SMALL", description);
  e.metadata["model"] = model;
  e.precondition = Violation{"KV_CAPACITY", model, description};
  return e;
}

ServingError ServingError::NoWorker(const std::string& model) {
  auto e = Make(StatusCode::kUnavailable, "NO_WORKER",
                absl::StrCat("no healthy worker for the model \"", model, "\""));
  e.metadata["model"] = model;
  e.retry_after = kNoWorkerRetry;
  return e;
}

ServingError ServingError::Draining() {
  auto e = Make(StatusCode::kUnavailable, "DRAINING", "this router drains; call another replica");
  e.retry_pushback = Duration::zero();
  return e;
}

ServingError ServingError::WorkerLost(int64_t attempts, const std::string& last_cause) {
  auto e = Make(StatusCode::kUnavailable, "WORKER_LOST",
                absl::StrCat("gave up before the first token, after ", attempts,
                             " attempts; the last failed: ", last_cause));
  e.metadata["attempts"] = absl::StrCat(attempts);
  return e;
}

ServingError ServingError::StreamLost(int64_t tokens_sent, const std::string& last_cause) {
  auto e = Make(StatusCode::kUnavailable, "STREAM_LOST",
                absl::StrCat("the stream was lost after ", tokens_sent,
                             " tokens and no worker could take it over: ", last_cause));
  e.metadata["tokens_sent"] = absl::StrCat(tokens_sent);
  return e;
}

ServingError ServingError::Deadline(const std::string& stage) {
  auto e = Make(StatusCode::kDeadlineExceeded, "DEADLINE",
                absl::StrCat("the deadline passed while the request was in stage ", stage));
  e.metadata["stage"] = stage;
  return e;
}

ServingError ServingError::Cancelled() {
  return Make(StatusCode::kCancelled, "CANCELLED", "the client cancelled the request");
}

ServingError ServingError::DuplicateRequestId(const std::string& request_id) {
  auto e = Make(StatusCode::kAlreadyExists, "DUPLICATE_REQUEST_ID",
                absl::StrCat("a request with id \"", request_id, "\" is in flight"));
  e.metadata["request_id"] = request_id;
  return e;
}

ServingError ServingError::CredentialsMissing() {
  return Make(StatusCode::kUnauthenticated, "CREDENTIALS_MISSING", "no credentials were sent");
}

ServingError ServingError::CredentialsInvalid() {
  return Make(StatusCode::kUnauthenticated, "CREDENTIALS_INVALID", "the credentials are not valid");
}

ServingError ServingError::NotAllowed(const std::string& what) {
  auto e = Make(StatusCode::kPermissionDenied, "NOT_ALLOWED", absl::StrCat("not allowed: ", what));
  e.metadata["what"] = what;
  return e;
}

ServingError ServingError::SessionNotFound(const std::string& session_id) {
  auto e = Make(StatusCode::kNotFound, "SESSION_NOT_FOUND",
                absl::StrCat("no worker knows the session \"", session_id, "\""));
  e.metadata["session"] = session_id;
  e.resource = Resource{"paceline.v1.Session", session_id};
  return e;
}

ServingError ServingError::ResumeTokenInvalid(const std::string& description) {
  auto e = Make(StatusCode::kInvalidArgument, "RESUME_TOKEN_INVALID",
                absl::StrCat("the resume token cannot be used: ", description));
  e.fields.push_back({"resume_token", description});
  return e;
}

ServingError ServingError::EngineFault(const std::string& cause) {
  auto e = Make(StatusCode::kInternal, "ENGINE_FAULT", "a fault inside the serving engine");
  e.debug = cause;
  return e;
}

ServingError ServingError::NotImplemented(const std::string& what) {
  auto e = Make(StatusCode::kUnimplemented, "NOT_IMPLEMENTED",
                absl::StrCat(what, " is not part of this build"));
  e.metadata["what"] = what;
  return e;
}

ServingError ServingError::ClientTooSlow(int64_t buffered_tokens, int64_t limit) {
  const std::string what = absl::StrCat("the client reads too slowly: ", buffered_tokens,
                                        " tokens wait for it; the limit is ", limit);
  auto e = Make(StatusCode::kResourceExhausted, "CLIENT_TOO_SLOW", what);
  e.metadata["limit"] = absl::StrCat(limit);
  e.quota = Violation{"", "client outbox", what};
  return e;
}

std::string ServingError::ToString() const {
  return absl::StrCat(absl::StatusCodeToString(code), " ", reason, ": ", message);
}

}  // namespace paceline

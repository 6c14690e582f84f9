// What a client hears when a request fails: the one table of the public API's errors as values.
// Each row has a named constructor, so that code, reason and details cannot drift apart; the
// service turns the value into google.rpc.Status. A draft worker's failure is never one of these.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"

namespace paceline {

struct ServingError {
  struct FieldViolation {  // BadRequest
    std::string field, description;
  };
  struct Resource {  // ResourceInfo
    std::string type, name;
  };
  struct Violation {  // QuotaFailure (type unused) and PreconditionFailure
    std::string type, subject, description;
  };

  absl::StatusCode code = absl::StatusCode::kUnknown;
  std::string reason;   // ErrorInfo.reason: UPPER_SNAKE, at most 63 characters
  std::string message;  // in words, for people
  std::map<std::string, std::string> metadata;  // ErrorInfo.metadata: what varies in the message
  std::vector<FieldViolation> fields;
  std::optional<Resource> resource;
  std::optional<Violation> quota;
  std::optional<Violation> precondition;
  std::optional<Duration> retry_after;     // RetryInfo
  std::optional<Duration> retry_pushback;  // grpc-retry-pushback-ms; 0 = at once, elsewhere
  std::string debug;                       // DebugInfo, only where that is switched on

  static ServingError InvalidField(const std::string& field, const std::string& description);
  static ServingError ContextLengthExceeded(int64_t limit, int64_t got);
  static ServingError ModelNotFound(const std::string& model);
  static ServingError ModelLoading(const std::string& model);
  static ServingError QueueFull(int64_t depth, int64_t limit, const std::string& flag);
  static ServingError QuotaExceeded(const std::string& client, const std::string& description);
  static ServingError KvCapacityTooSmall(const std::string& model, const std::string& description);
  static ServingError NoWorker(const std::string& model);
  static ServingError Draining();
  static ServingError WorkerLost(int64_t attempts, const std::string& last_cause);
  static ServingError StreamLost(int64_t tokens_sent, const std::string& last_cause);
  static ServingError Deadline(const std::string& stage);  // queued, prefill, decode
  static ServingError Cancelled();
  static ServingError DuplicateRequestId(const std::string& request_id);
  static ServingError CredentialsMissing();
  static ServingError CredentialsInvalid();
  static ServingError NotAllowed(const std::string& what);
  static ServingError SessionNotFound(const std::string& session_id);
  static ServingError ResumeTokenInvalid(const std::string& description);
  static ServingError EngineFault(const std::string& cause);
  static ServingError NotImplemented(const std::string& what);
  // Not of the table: the client reads slower than its outbox may grow.
  static ServingError ClientTooSlow(int64_t buffered_tokens, int64_t limit);

  // For logs: "UNAVAILABLE NO_WORKER: ...".
  std::string ToString() const;
};

}  // namespace paceline

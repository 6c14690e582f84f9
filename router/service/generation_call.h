// One call that generates: from its spec to the core and back to the client. How the client gets it
// (a stream, one message) is the subclasses' matter.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "paceline/v1/inference.pb.h"
#include "router/service/api_context.h"
#include "router/service/generation_parser.h"
#include "router/service/resume_parser.h"

namespace paceline {

// Begin comes first, on gRPC's thread; the request's message lives until End. What follows comes
// from a text thread or the loop's turns, one at a time; OnCancel from anywhere. Held by its
// reactor and, while the core knows the request, by the loop.
class GenerationCall : public RequestSink, public std::enable_shared_from_this<GenerationCall> {
 public:
  GenerationCall(const ApiContext* api, grpc::CallbackServerContext* context, std::string method)
      : api_(api), context_(context), method_(std::move(method)) {}

  void Begin(const v1::GenerationSpec* spec);
  void Begin(const v1::ResumeGenerateTextRequest* request);

  // The client is gone, or its deadline has passed.
  void OnCancel();

  void OnDeliver(DeliverAction action) final;
  void OnFinish(FinishAction action) final;

 protected:
  // Start, deltas, summary, in this order; then End. False: over the bound, and no delta follows.
  virtual void SendStart(v1::GenerationStart start) = 0;
  virtual bool SendDelta(v1::SampleDelta delta, int64_t cost) = 0;
  virtual void SendSummary(v1::GenerationSummary summary) = 0;
  // Nothing follows. `drop`: what the client has not read yet is of no use.
  virtual void End(const grpc::Status& status, bool drop) = 0;
  // Why SendDelta refused one.
  virtual ServingError Overrun() const = 0;

  const ApiContext* const api_;
  grpc::CallbackServerContext* const context_;

 private:
  struct SampleTimes {
    TimePoint first{}, last{};
    int32_t tokens = 0;
  };

  void Prepare(size_t text_bytes);
  std::optional<ServingError> FillIn();
  void StartAtCore();
  void SendHead(const std::string& fingerprint);
  void NoteTokens(int32_t sample, int32_t count, TimePoint now);
  void Fail(ServingError error);
  void NoteEnd(absl::StatusCode code, const GenerationUsage& usage);

  const std::string method_;
  const v1::GenerationSpec* spec_ = nullptr;
  const v1::ResumeGenerateTextRequest* resume_ = nullptr;
  TimePoint received_{}, deadline_{};
  ParsedGeneration parsed_;
  std::vector<OpenEnd> ends_;  // of samples that had ended before a resume
  v1::GenerationStart start_;  // all but the fingerprint and the resume token
  uint64_t request_hash_ = 0;
  bool head_sent_ = false;
  bool overrun_ = false;  // a delta was refused: nothing may follow it, lest there be a gap
  std::vector<SampleTimes> times_;
  std::vector<FinishReason> finishes_;

  std::mutex mutex_;
  bool cancelled_ = false;
  std::optional<RequestKey> key_;
};

// The RPC's deadline on the process's own clock, `margin` (at most a tenth of what is left) early.
TimePoint DeadlineOf(const grpc::ServerContextBase& context, TimePoint now, Duration margin);

}  // namespace paceline

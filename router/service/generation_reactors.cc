#include "router/service/generation_reactors.h"

#include <grpcpp/alarm.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/rpc/outbox.h"
#include "router/service/generation_events.h"

namespace paceline {
namespace {

// `Response` has the three events of a stream.
template <typename Response>
class StreamCall final : public GenerationCall {
 public:
  class Reactor final : public grpc::ServerWriteReactor<Response> {
   public:
    explicit Reactor(std::shared_ptr<StreamCall> call) : call_(std::move(call)) {}
    void OnWriteDone(bool ok) override { call_->outbox_.WriteDone(ok); }
    void OnCancel() override { call_->OnCancel(); }
    void OnDone() override {
      call_->ForgetGrace();
      delete this;
    }

   private:
    const std::shared_ptr<StreamCall> call_;
  };

  StreamCall(const ApiContext* api, grpc::CallbackServerContext* context, std::string method)
      : GenerationCall(api, context, std::move(method)),
        outbox_({.write = [this](const Response* m) { reactor_->StartWrite(m); },
                 .finish = [this](const grpc::Status& s) { reactor_->Finish(s); },
                 .merge = Merge},
                api->options.max_outbox_tokens) {}

  template <typename Request>
  static Reactor* New(const ApiContext* api, grpc::CallbackServerContext* context,
                      const char* method, const Request* request) {
    auto call = std::make_shared<StreamCall>(api, context, method);
    Reactor* reactor = call->reactor_ = new Reactor(std::shared_ptr<StreamCall>(call));
    call->Begin(request);
    return reactor;
  }

 protected:
  void SendStart(v1::GenerationStart start) override {
    Response event;
    *event.mutable_start() = std::move(start);
    outbox_.Push(std::move(event), 0);
  }
  bool SendDelta(v1::SampleDelta delta, int64_t cost) override {
    Response event;
    *event.mutable_delta() = std::move(delta);
    return outbox_.Push(std::move(event), cost);
  }
  void SendSummary(v1::GenerationSummary summary) override {
    Response event;
    *event.mutable_summary() = std::move(summary);
    outbox_.Push(std::move(event), 0);
  }
  void End(const grpc::Status& status, bool drop) override {
    if (!drop) return outbox_.Finish(status);
    if (status.error_code() != grpc::StatusCode::CANCELLED) SetGrace();
    outbox_.Abort(status);
  }
  ServingError Overrun() const override {
    return ServingError::ClientTooSlow(outbox_.waiting_cost(), api_->options.max_outbox_tokens);
  }

 private:
  static bool Merge(Response* last, Response* next) {
    return last->has_delta() && next->has_delta() &&
           MergeDeltas(last->mutable_delta(), next->mutable_delta());
  }
  // The status goes behind the write in flight, which waits for the client; not forever.
  void SetGrace() {
    const auto end = std::chrono::system_clock::now() +
                     std::chrono::duration_cast<std::chrono::system_clock::duration>(
                         api_->options.slow_client_grace);
    std::lock_guard lock(grace_mutex_);
    if (done_) return;
    grace_.Set(end, [weak = this->weak_from_this(), this](bool expired) {
      const auto self = weak.lock();
      if (!self || !expired) return;
      std::lock_guard lock(grace_mutex_);
      if (!done_) context_->TryCancel();
    });
  }
  void ForgetGrace() {
    std::lock_guard lock(grace_mutex_);
    done_ = true;
    grace_.Cancel();
  }

  Reactor* reactor_ = nullptr;
  Outbox<Response> outbox_;
  std::mutex grace_mutex_;
  grpc::Alarm grace_;
  bool done_ = false;  // gRPC is done with the call; the context is gone
};

class UnaryCall final : public GenerationCall {
 public:
  class Reactor final : public grpc::ServerUnaryReactor {
   public:
    explicit Reactor(std::shared_ptr<UnaryCall> call) : call_(std::move(call)) {}
    void OnCancel() override { call_->OnCancel(); }
    void OnDone() override { delete this; }

   private:
    const std::shared_ptr<UnaryCall> call_;
  };

  UnaryCall(const ApiContext* api, grpc::CallbackServerContext* context,
            v1::GenerateTextResponse* response)
      : GenerationCall(api, context, "GenerateText"), response_(response) {}

  static Reactor* New(const ApiContext* api, grpc::CallbackServerContext* context,
                      const v1::GenerateTextRequest* request, v1::GenerateTextResponse* response) {
    auto call = std::make_shared<UnaryCall>(api, context, response);
    Reactor* reactor = call->reactor_ = new Reactor(std::shared_ptr<UnaryCall>(call));
    call->Begin(&request->generation());
    return reactor;
  }

 protected:
  void SendStart(v1::GenerationStart start) override {
    *response_->mutable_start() = std::move(start);
  }
  bool SendDelta(v1::SampleDelta delta, int64_t) override {
    bytes_ += static_cast<int64_t>(delta.ByteSizeLong());
    if (bytes_ > api_->options.max_answer_bytes) return false;
    while (response_->samples_size() <= delta.sample()) response_->add_samples();
    AppendDelta(std::move(delta), response_->mutable_samples(delta.sample()));
    return true;
  }
  void SendSummary(v1::GenerationSummary summary) override {
    *response_->mutable_summary() = std::move(summary);
  }
  void End(const grpc::Status& status, bool) override { reactor_->Finish(status); }
  ServingError Overrun() const override {
    return ServingError::InvalidField(
        "generation.sampling",
        absl::StrCat("the answer grows beyond ", api_->options.max_answer_bytes,
                     " bytes, too long for one message; use StreamGenerateText"));
  }

 private:
  v1::GenerateTextResponse* const response_;
  Reactor* reactor_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace

grpc::ServerWriteReactor<v1::StreamGenerateTextResponse>* NewStreamReactor(
    const ApiContext* api, grpc::CallbackServerContext* context,
    const v1::StreamGenerateTextRequest* request) {
  return StreamCall<v1::StreamGenerateTextResponse>::New(api, context, "StreamGenerateText",
                                                         &request->generation());
}

grpc::ServerWriteReactor<v1::ResumeGenerateTextResponse>* NewResumeReactor(
    const ApiContext* api, grpc::CallbackServerContext* context,
    const v1::ResumeGenerateTextRequest* request) {
  return StreamCall<v1::ResumeGenerateTextResponse>::New(api, context, "ResumeGenerateText",
                                                         request);
}

grpc::ServerUnaryReactor* NewUnaryReactor(const ApiContext* api,
                                          grpc::CallbackServerContext* context,
                                          const v1::GenerateTextRequest* request,
                                          v1::GenerateTextResponse* response) {
  return UnaryCall::New(api, context, request, response);
}

}  // namespace paceline

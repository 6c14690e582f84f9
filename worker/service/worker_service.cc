#include "worker/service/worker_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/rpc/duration.h"
#include "common/rpc/error.h"
#include "common/rpc/generation_proto.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

using worker::v1::OpenStreamRequest;
using worker::v1::OpenStreamResponse;

// Bytes per frame that its own fields do not count.
constexpr int64_t kFrameOverhead = 16;

bool Merge(OpenStreamResponse* last, OpenStreamResponse* next) {
  last->MergeFrom(*next);
  return true;
}

const grpc::Status& StoppingStatus() {
  static const grpc::Status status(grpc::StatusCode::UNAVAILABLE, "the worker is stopping");
  return status;
}

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const grpc::Status& status) {
  auto* reactor = context->DefaultReactor();
  reactor->Finish(status);
  return reactor;
}

}  // namespace

// The reactor of one router's stream. It only reads; writes go through the outbox.
class WorkerServiceImpl::RouterStream final
    : public grpc::ServerBidiReactor<OpenStreamRequest, OpenStreamResponse> {
 public:
  RouterStream(WorkerServiceImpl* service, std::shared_ptr<RouterStreamState> state,
               std::string peer)
      : service_(service), state_(std::move(state)), peer_(std::move(peer)) {
    state_->outbox = std::make_unique<RouterOutbox>(
        RouterOutbox::Hooks{.write = [this](const OpenStreamResponse* m) { StartWrite(m); },
                            .finish = [this](const grpc::Status& s) { Finish(s); },
                            .merge = Merge},
        service_->options_.max_outbox_bytes);
    spdlog::info("router stream opened peer={}", peer_);
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(grpc::Status::OK);
    service_->Handle(state_, request_);
    StartRead(&request_);
  }
  void OnWriteDone(bool ok) override { state_->outbox->WriteDone(ok); }
  void OnCancel() override { End(grpc::Status::CANCELLED); }
  void OnDone() override {
    service_->Disconnect(state_);
    spdlog::info("router stream closed peer={}", peer_);
    delete this;
  }

 private:
  void End(const grpc::Status& status) {
    service_->Disconnect(state_);
    state_->outbox->Abort(status);
  }

  WorkerServiceImpl* const service_;
  const std::shared_ptr<RouterStreamState> state_;
  const std::string peer_;
  OpenStreamRequest request_;
};

WorkerServiceImpl::WorkerServiceImpl(ProcessState* state, StatusFeed* feed,
                                     std::function<void()> on_drain, WorkerServiceOptions options)
    : state_(state), feed_(feed), on_drain_(std::move(on_drain)), options_(options) {}

EngineSink WorkerServiceImpl::Sink() {
  return [this](EngineOutput output) {
    for (RequestTable::Frame& frame : table_.Split(output)) {
      Send(frame.stream, std::move(frame.response), frame.cost);
    }
  };
}

void WorkerServiceImpl::Serve(Engine* engine) { engine_ = engine; }

void WorkerServiceImpl::Stop() {
  std::vector<std::weak_ptr<RouterStreamState>> streams;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    streams = streams_;
  }
  for (const auto& weak : streams) {
    if (const auto stream = weak.lock()) stream->outbox->Finish(StoppingStatus());
  }
}

size_t WorkerServiceImpl::num_streams() const {
  std::lock_guard lock(mutex_);
  return std::count_if(streams_.begin(), streams_.end(),
                       [](const auto& stream) { return !stream.expired(); });
}

void WorkerServiceImpl::Send(const std::shared_ptr<RouterStreamState>& stream,
                             OpenStreamResponse response, int64_t cost) {
  if (stream->outbox->Push(std::move(response), cost + kFrameOverhead)) return;
  // Gone already (then this changes nothing), or it does not read.
  stream->outbox->Abort(grpc::Status(
      grpc::StatusCode::RESOURCE_EXHAUSTED,
      absl::StrCat("the router left over ", options_.max_outbox_bytes, " bytes unread")));
}

void WorkerServiceImpl::Disconnect(const std::shared_ptr<RouterStreamState>& stream) {
  Engine* engine = engine_;
  for (const RequestHandle handle : table_.RemoveStream(stream)) engine->Cancel(handle);
}

absl::Status WorkerServiceImpl::Submit(const std::shared_ptr<RouterStreamState>& stream,
                                       const worker::v1::Submit& submit) {
  Engine* engine = engine_;
  if (engine == nullptr) return FromGrpcStatus(WhyNoEngine());
  ASSIGN_OR_RETURN(GenerationRequest request, FromProto(submit, SteadyClock::Get().Now()));
  if (request.decoding == DecodingMode::kAuto) request.decoding = options_.auto_decoding;
  const auto handle = table_.Add(stream, submit.handle());
  if (!handle.has_value()) return absl::CancelledError("the stream has ended");
  const absl::Status status = engine->Submit(*handle, std::move(request));
  if (!status.ok()) {
    table_.Remove(*handle);
  } else if (!table_.Find(*stream, submit.handle()).has_value()) {
    engine->Cancel(*handle);  // the stream went meanwhile, and its own cancel came too early
  }
  return status;
}

void WorkerServiceImpl::Handle(const std::shared_ptr<RouterStreamState>& stream,
                               const OpenStreamRequest& request) {
  OpenStreamResponse refused;
  for (const auto& submit : request.submits()) {
    if (table_.Find(*stream, submit.handle()).has_value()) {
      // Whatever were said about this handle would be taken for the other request's end.
      return stream->outbox->Abort(
          grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                       absl::StrCat("handle ", submit.handle(), " is in flight on this stream")));
    }
    const absl::Status status = Submit(stream, submit);
    if (status.ok()) continue;
    spdlog::info("request refused request_id={} code={} cause=\"{}\"",
                 absl::CHexEscape(submit.request_id().substr(0, kMaxWireIdBytes)),
                 absl::StatusCodeToString(status.code()), std::string(status.message()));
    GenerationUsage usage;
    usage.prompt_tokens = submit.prompt_size();
    ToProto(submit.handle(), status, usage, refused.add_finished());
  }
  for (const auto& cancel : request.cancels()) {
    const auto handle = table_.Find(*stream, cancel.handle());
    if (!handle.has_value()) continue;  // has finished meanwhile
    engine_.load()->Cancel(*handle, cancel.deadline() ? absl::StatusCode::kDeadlineExceeded
                                                      : absl::StatusCode::kCancelled);
  }
  if (refused.finished_size() == 0) return;
  const auto cost = static_cast<int64_t>(refused.ByteSizeLong());
  Send(stream, std::move(refused), cost);
}

grpc::Status WorkerServiceImpl::WhyNoEngine() const {
  const auto info = state_->info();
  if (info.role() != "target") {
    return grpc::Status(grpc::StatusCode::UNIMPLEMENTED,
                        absl::StrCat("a ", info.role(), " worker takes no requests"));
  }
  return ToGrpcStatus(ModelLoadingError(info.model()));
}

grpc::ServerBidiReactor<OpenStreamRequest, OpenStreamResponse>* WorkerServiceImpl::OpenStream(
    grpc::CallbackServerContext* context) {
  auto state = std::make_shared<RouterStreamState>();
  auto* stream = new RouterStream(this, state, context->peer());
  std::lock_guard lock(mutex_);
  std::erase_if(streams_, [](const auto& s) { return s.expired(); });
  if (state_->info().role() != "target") {
    state->outbox->Finish(WhyNoEngine());
  } else if (stopped_) {
    state->outbox->Finish(StoppingStatus());
  } else {
    streams_.push_back(state);
  }
  return stream;
}

grpc::ServerWriteReactor<worker::v1::WatchStatusResponse>* WorkerServiceImpl::WatchStatus(
    grpc::CallbackServerContext*, const worker::v1::WatchStatusRequest*) {
  return feed_->Watch();
}

grpc::ServerUnaryReactor* WorkerServiceImpl::GetInfo(grpc::CallbackServerContext* context,
                                                     const worker::v1::GetInfoRequest*,
                                                     worker::v1::GetInfoResponse* response) {
  *response->mutable_info() = state_->info();
  return Answer(context, state_->ready()
                             ? grpc::Status::OK
                             : ToGrpcStatus(ModelLoadingError(response->info().model())));
}

grpc::ServerUnaryReactor* WorkerServiceImpl::ListSessions(
    grpc::CallbackServerContext* context, const worker::v1::ListSessionsRequest*,
    worker::v1::ListSessionsResponse* response) {
  Engine* engine = engine_;
  if (engine == nullptr) return Answer(context, WhyNoEngine());
  const TimePoint now = SteadyClock::Get().Now();
  for (const auto& session : engine->Sessions()) {
    auto* proto = response->add_sessions();
    proto->set_session_id(session.session_id);
    proto->set_blocks(session.blocks);
    ToProto(std::max(Duration::zero(), session.expires - now), proto->mutable_time_left());
  }
  return Answer(context, grpc::Status::OK);
}

grpc::ServerUnaryReactor* WorkerServiceImpl::DeleteSession(
    grpc::CallbackServerContext* context, const worker::v1::DeleteSessionRequest* request,
    worker::v1::DeleteSessionResponse*) {
  Engine* engine = engine_;
  if (engine == nullptr) return Answer(context, WhyNoEngine());
  if (request->session_id().empty()) {
    return Answer(context, ErrorBuilder(absl::StatusCode::kInvalidArgument, "session_id is empty")
                               .Reason("INVALID_FIELD", {{"field", "session_id"}})
                               .Field("session_id", "it must name a session")
                               .ToGrpc());
  }
  engine->DropSession(request->session_id());
  return Answer(context, grpc::Status::OK);
}

grpc::ServerUnaryReactor* WorkerServiceImpl::Drain(grpc::CallbackServerContext* context,
                                                   const worker::v1::DrainRequest*,
                                                   worker::v1::DrainResponse*) {
  spdlog::info("drain asked for peer={}", context->peer());
  state_->SetDraining();
  on_drain_();
  return Answer(context, grpc::Status::OK);
}

}  // namespace paceline

#include "worker/service/draft_service.h"

#include <algorithm>
#include <optional>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/rpc/draft_proto.h"
#include "common/rpc/error.h"
#include "common/rpc/outbox.h"
#include "worker/service/draft_pairing.h"

namespace paceline {
namespace {

using draft::v1::OpenStreamRequest;
using draft::v1::OpenStreamResponse;

// Sessions of one stream whose commits are timed.
constexpr size_t kMaxTimedSessions = 4096;

// Lists add up; of load and pong the newest counts.
bool Merge(OpenStreamResponse* last, OpenStreamResponse* next) {
  if (next->has_load()) last->clear_load();
  last->MergeFrom(*next);
  return true;
}

const grpc::Status& StoppingStatus() {
  static const grpc::Status status(grpc::StatusCode::UNAVAILABLE, "the draft worker is stopping");
  return status;
}

int32_t LongestBranch(const DraftProposal& proposal) {
  size_t longest = 0;
  for (const DraftBranch& b : proposal.branches) longest = std::max(longest, b.tokens.size());
  return static_cast<int32_t>(longest);
}

}  // namespace

// One target's stream. The reactor keeps it alive until gRPC is done with it; the engine's sink
// until it is detached.
class DraftServiceImpl::TargetStream final : public std::enable_shared_from_this<TargetStream> {
 public:
  class Reactor final : public grpc::ServerBidiReactor<OpenStreamRequest, OpenStreamResponse> {
   public:
    explicit Reactor(std::shared_ptr<TargetStream> stream) : stream_(std::move(stream)) {
      StartRead(&request_);
    }
    void OnReadDone(bool ok) override {
      if (!ok) return stream_->End(grpc::Status::OK);
      stream_->Handle(request_);
      StartRead(&request_);
    }
    void OnWriteDone(bool ok) override { stream_->outbox_.WriteDone(ok); }
    void OnCancel() override { stream_->End(grpc::Status::CANCELLED); }
    void OnDone() override {
      stream_->Detach();
      delete this;
    }

   private:
    const std::shared_ptr<TargetStream> stream_;
    OpenStreamRequest request_;
  };

  TargetStream(DraftServiceImpl* service, std::string peer)
      : service_(service),
        peer_(std::move(peer)),
        outbox_({.write = [this](const OpenStreamResponse* m) { reactor_->StartWrite(m); },
                 .finish = [this](const grpc::Status& s) { reactor_->Finish(s); },
                 .merge = Merge},
                service->options_.max_outbox_bytes) {}

  Reactor* MakeReactor() {
    reactor_ = new Reactor(shared_from_this());
    return reactor_;
  }

  void End(const grpc::Status& status) {
    Detach();
    outbox_.Abort(status);
  }
  void Finish(const grpc::Status& status) { outbox_.Finish(status); }

  void Send(OpenStreamResponse response) {
    response.set_draining(service_->state_->draining());
    const auto cost = static_cast<int64_t>(response.ByteSizeLong());
    if (outbox_.Push(std::move(response), cost)) return;
    outbox_.Abort(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                               absl::StrCat("the target left over ",
                                            service_->options_.max_outbox_bytes, " bytes unread")));
  }

 private:
  void Handle(const OpenStreamRequest& request);
  void Greet(const OpenStreamRequest& request);
  void Publish(const DraftFrame& frame);
  void NoteCommits(const TargetFrame& frame);
  void Detach();

  struct Asked {
    TimePoint at{};
    int32_t wanted = 0;
  };

  DraftServiceImpl* const service_;
  const std::string peer_;
  Reactor* reactor_ = nullptr;
  Outbox<OpenStreamResponse> outbox_;
  bool greeted_ = false;  // the reader's

  std::mutex mutex_;
  std::optional<DraftEngine::TargetId> target_;
  bool detached_ = false;
  std::unordered_map<uint64_t, Asked> asked_;
};

void DraftServiceImpl::TargetStream::Handle(const OpenStreamRequest& request) {
  if (!greeted_) return Greet(request);
  if (request.has_hello()) {
    return End(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "a second hello on one stream"));
  }
  OpenStreamResponse response;
  std::vector<DraftNack> refused;
  TargetFrame frame = FromProto(request, &refused);
  if (!refused.empty()) {
    ToProto(DraftFrame{.nacks = std::move(refused)}, &response);
    response.clear_load();
  }
  std::optional<DraftEngine::TargetId> target;
  {
    std::lock_guard lock(mutex_);
    target = target_;
    NoteCommits(frame);
  }
  if (target.has_value() && !frame.empty()) {
    service_->engine_.load()->Deliver(*target, std::move(frame));
  }
  response.set_pong(request.ping());
  if (response.pong() != 0 || response.nacks_size() > 0) Send(std::move(response));
}

void DraftServiceImpl::TargetStream::Greet(const OpenStreamRequest& request) {
  const grpc::Status status = service_->CheckHello(request);
  if (!status.ok()) {
    spdlog::warn("target refused peer={} status=\"{}\"", peer_, status.error_message());
    return End(status);
  }
  greeted_ = true;
  OpenStreamResponse response;
  *response.mutable_hello() = MakeHello(service_->state_->info());
  response.set_pong(request.ping());
  Send(std::move(response));
  const auto target = service_->engine_.load()->AttachTarget(
      [stream = shared_from_this()](DraftFrame frame) { stream->Publish(frame); });
  std::unique_lock lock(mutex_);
  if (!detached_) {
    target_ = target;
    spdlog::info("target attached peer={} incarnation={:x}", peer_, request.hello().incarnation());
    return;
  }
  lock.unlock();
  service_->engine_.load()->DetachTarget(target);
}

void DraftServiceImpl::TargetStream::NoteCommits(const TargetFrame& frame) {
  const TimePoint now = SteadyClock::Get().Now();
  for (const DraftCommit& commit : frame.commits) {
    const bool room = asked_.size() < kMaxTimedSessions;
    if (commit.want_len > 0 && (room || asked_.contains(commit.id.session))) {
      asked_[commit.id.session] = {now, commit.want_len};
    }
  }
  for (const DraftClose& close : frame.closes) asked_.erase(close.id.session);
}

void DraftServiceImpl::TargetStream::Publish(const DraftFrame& frame) {
  OpenStreamResponse response;
  ToProto(frame, &response);
  Send(std::move(response));
  if (service_->probe_ == nullptr || frame.proposals.empty()) return;
  const TimePoint now = SteadyClock::Get().Now();
  std::lock_guard lock(mutex_);
  for (const DraftProposal& proposal : frame.proposals) {
    const auto it = asked_.find(proposal.id.session);
    if (it == asked_.end()) continue;
    service_->probe_->Proposed(now - it->second.at, LongestBranch(proposal), it->second.wanted);
  }
}

void DraftServiceImpl::TargetStream::Detach() {
  std::unique_lock lock(mutex_);
  detached_ = true;
  if (!target_.has_value()) return;
  const auto target = *target_;
  target_.reset();
  lock.unlock();
  // Waits until the sink is not being called, which never blocks.
  service_->engine_.load()->DetachTarget(target);
  spdlog::info("target detached peer={}", peer_);
}

DraftServiceImpl::DraftServiceImpl(ProcessState* state, DraftProbe* probe,
                                   DraftServiceOptions options)
    : state_(state), probe_(probe), options_(options) {}

void DraftServiceImpl::Serve(DraftEngine* engine) { engine_ = engine; }

std::vector<std::shared_ptr<DraftServiceImpl::TargetStream>> DraftServiceImpl::Streams() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<TargetStream>> streams;
  for (const auto& weak : streams_) {
    if (auto stream = weak.lock()) streams.push_back(std::move(stream));
  }
  return streams;
}

size_t DraftServiceImpl::num_streams() const { return Streams().size(); }

void DraftServiceImpl::AnnounceDrain() {
  for (const auto& stream : Streams()) stream->Send({});
}

void DraftServiceImpl::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  for (const auto& stream : Streams()) stream->Finish(StoppingStatus());
}

grpc::Status DraftServiceImpl::CheckHello(const OpenStreamRequest& first) const {
  const auto info = state_->info();
  if (engine_ == nullptr) return ToGrpcStatus(ModelLoadingError(info.model()));
  if (!first.has_hello()) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the first frame has no hello");
  }
  return CheckPairing(MakeHello(info), first.hello());
}

grpc::ServerUnaryReactor* DraftServiceImpl::GetInfo(grpc::CallbackServerContext* context,
                                                    const draft::v1::GetInfoRequest*,
                                                    draft::v1::GetInfoResponse* response) {
  *response->mutable_info() = state_->info();
  auto* reactor = context->DefaultReactor();
  reactor->Finish(state_->ready() ? grpc::Status::OK
                                  : ToGrpcStatus(ModelLoadingError(response->info().model())));
  return reactor;
}

grpc::ServerBidiReactor<OpenStreamRequest, OpenStreamResponse>* DraftServiceImpl::OpenStream(
    grpc::CallbackServerContext* context) {
  auto stream = std::make_shared<TargetStream>(this, context->peer());
  auto* reactor = stream->MakeReactor();
  std::lock_guard lock(mutex_);
  std::erase_if(streams_, [](const auto& s) { return s.expired(); });
  if (stopped_) {
    stream->Finish(StoppingStatus());
  } else {
    streams_.push_back(stream);
  }
  return reactor;
}

}  // namespace paceline

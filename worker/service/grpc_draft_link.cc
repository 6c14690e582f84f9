#include "worker/service/grpc_draft_link.h"

#include <algorithm>
#include <random>
#include <utility>

#include "common/log.h"
#include "common/rpc/channel.h"
#include "common/rpc/draft_proto.h"
#include "common/rpc/outbox.h"
#include "worker/service/draft_pairing.h"

namespace paceline {
namespace {

using draft::v1::OpenStreamRequest;
using draft::v1::OpenStreamResponse;

bool Merge(OpenStreamRequest* last, OpenStreamRequest* next) {
  if (last->has_hello()) return false;
  last->MergeFrom(*next);
  return true;
}

// Half to all of it, so that targets that lost one drafter together do not return together.
Duration Jitter(Duration d) {
  thread_local std::minstd_rand random{std::random_device{}()};
  return d / 2 + Duration(random() % std::max<int64_t>(1, d.count() / 2));
}

}  // namespace

// One stream. Lives until gRPC is done with it; the hold lets threads outside of reactions write.
class GrpcDraftLink::Stream final
    : public grpc::ClientBidiReactor<OpenStreamRequest, OpenStreamResponse> {
 public:
  Stream(GrpcDraftLink* link, uint64_t incarnation)
      : link_(link),
        incarnation_(incarnation),
        outbox_({.write = [this](const OpenStreamRequest* m) { StartWrite(m); },
                 .finish = [this](const grpc::Status&) { RemoveHold(); },
                 .merge = Merge},
                link->options_.max_outbox_bytes) {}

  void Start(const OpenStreamRequest& first) {
    context_.set_wait_for_ready(false);
    link_->stub_->async()->OpenStream(&context_, this);
    AddHold();
    StartRead(&frame_);
    outbox_.Push(first, 0);
    StartCall();
    std::unique_lock lock(mutex_);
    started_ = true;
    const bool cancelled = !why_.ok();
    lock.unlock();
    if (cancelled) GiveUp();
  }
  bool Send(OpenStreamRequest request) {
    const auto cost = static_cast<int64_t>(request.ByteSizeLong());
    return outbox_.Push(std::move(request), cost);
  }
  // Gives up at once; Ended follows. What is cancelled from one thread before another has started
  // it has no call and no hold yet, so that an early cancel is left to Start.
  void Cancel(const grpc::Status& why) {
    std::unique_lock lock(mutex_);
    if (why_.ok()) why_ = why;
    const bool started = started_;
    lock.unlock();
    if (started) GiveUp();
  }
  uint64_t incarnation() const { return incarnation_; }

  void OnReadDone(bool ok) override {
    if (!ok) return outbox_.Abort(grpc::Status::CANCELLED);
    link_->Heard(this, &frame_);
    frame_.Clear();
    StartRead(&frame_);
  }
  void OnWriteDone(bool ok) override { outbox_.WriteDone(ok); }
  void OnDone(const grpc::Status& status) override {
    grpc::Status why;
    {
      std::lock_guard lock(mutex_);
      why = why_;
    }
    link_->Ended(this, why.ok() ? status : why);  // destroys this
  }

 private:
  void GiveUp() {
    context_.TryCancel();
    outbox_.Abort(grpc::Status::CANCELLED);
  }

  GrpcDraftLink* const link_;
  const uint64_t incarnation_;
  grpc::ClientContext context_;
  OpenStreamResponse frame_;
  Outbox<OpenStreamRequest> outbox_;
  std::mutex mutex_;
  bool started_ = false;  // under mutex_
  grpc::Status why_;      // ours, where it was we who gave up; under mutex_
};

GrpcDraftLink::GrpcDraftLink(std::string address, draft::v1::Hello hello, Deliver deliver,
                             RoundTrip round_trip, GrpcDraftLinkOptions options)
    : address_(std::move(address)),
      hello_(std::move(hello)),
      deliver_(std::move(deliver)),
      round_trip_(std::move(round_trip)),
      options_(options),
      stub_(draft::v1::DraftService::NewStub(NewChannel(address_))),
      backoff_(options.first_backoff) {}

GrpcDraftLink::~GrpcDraftLink() { Close(); }

DraftLinkStatus GrpcDraftLink::status() const {
  std::lock_guard lock(mutex_);
  return {state_, incarnation_};
}

std::string GrpcDraftLink::last_error() const {
  std::lock_guard lock(mutex_);
  return last_error_;
}

bool GrpcDraftLink::Send(uint64_t incarnation, TargetFrame frame) {
  std::shared_ptr<Stream> stream;
  {
    std::lock_guard lock(mutex_);
    if (state_ == DraftLinkState::kDown || incarnation != incarnation_) return false;
    stream = stream_;
  }
  OpenStreamRequest request;
  ToProto(frame, &request);
  return stream->Send(std::move(request));
}

void GrpcDraftLink::Open(TimePoint now) {
  OpenStreamRequest first;
  *first.mutable_hello() = hello_;
  std::shared_ptr<Stream> stream;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    stream = stream_ = std::make_shared<Stream>(this, ++incarnation_);
    opened_ = last_heard_ = now;
    ping_out_ = false;
  }
  stream->Start(first);
}

void GrpcDraftLink::Heard(Stream* stream, OpenStreamResponse* frame) {
  const TimePoint now = SteadyClock::Get().Now();
  bool greeting = false, deliver = false;
  Duration round_trip{};
  grpc::Status refusal;
  {
    std::lock_guard lock(mutex_);
    if (closed_ || stream_.get() != stream) return;
    last_heard_ = now;
    greeting = state_ == DraftLinkState::kDown && frame->has_hello();
    if (greeting) refusal = CheckPairing(hello_, frame->hello());
    if (greeting && refusal.ok()) backoff_ = options_.first_backoff;
    if (refusal.ok() && (greeting || state_ != DraftLinkState::kDown)) {
      state_ = frame->draining() ? DraftLinkState::kDraining : DraftLinkState::kUp;
      deliver = frame->proposals_size() > 0 || frame->nacks_size() > 0 || frame->has_load();
    }
    if (ping_out_ && frame->pong() == ping_) {
      round_trip = now - pinged_;
      ping_out_ = false;
    }
  }
  if (!refusal.ok()) return stream->Cancel(refusal);
  if (greeting) spdlog::info("draft link up address={}", address_);
  if (round_trip_ && round_trip > Duration::zero()) round_trip_(round_trip);
  if (deliver) deliver_(stream->incarnation(), FromProto(*frame));
}

void GrpcDraftLink::Ended(Stream* stream, const grpc::Status& status) {
  std::shared_ptr<Stream> last;  // destroyed behind the lock
  std::unique_lock lock(mutex_);
  const std::string error =
      status.ok() ? std::string("the draft worker closed the stream") : status.error_message();
  // Said once, not at every try.
  if (!closed_ && (state_ != DraftLinkState::kDown || error != last_error_)) {
    spdlog::warn("draft link down address={} cause=\"{}\"", address_, error);
  }
  last_error_ = error;
  state_ = DraftLinkState::kDown;
  // A refusal by name does not heal in milliseconds.
  if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
    backoff_ = options_.last_backoff;
  }
  reopen_at_ = SteadyClock::Get().Now() + Jitter(backoff_);
  backoff_ = std::min(backoff_ * 2, options_.last_backoff);
  last = std::move(stream_);
  ended_.notify_all();
  lock.unlock();
}

void GrpcDraftLink::Beat(const std::shared_ptr<Stream>& stream, TimePoint now) {
  OpenStreamRequest request;
  {
    std::lock_guard lock(mutex_);
    pinged_ = now;
    ping_out_ = true;
    request.set_ping(++ping_);
  }
  stream->Send(std::move(request));
}

void GrpcDraftLink::Tick(TimePoint now) {
  std::shared_ptr<Stream> silent, idle;
  bool open = false;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    if (stream_ == nullptr) {
      open = now >= reopen_at_;
    } else if (state_ == DraftLinkState::kDown) {
      if (now - opened_ > options_.greeting) silent = stream_;
    } else if (now - last_heard_ > options_.silence) {
      silent = stream_;
      state_ = DraftLinkState::kDown;
    } else if (!ping_out_ && now - pinged_ >= options_.heartbeat) {
      // Beside other traffic too: a drafter answers pings at once, and may be silent on commits.
      idle = stream_;
    }
  }
  if (open) Open(now);
  if (idle != nullptr) Beat(idle, now);
  if (silent != nullptr) {
    silent->Cancel(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the draft worker is silent"));
  }
}

void GrpcDraftLink::Close() {
  std::shared_ptr<Stream> stream;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    state_ = DraftLinkState::kDown;
    stream = stream_;
  }
  if (stream != nullptr) stream->Cancel(grpc::Status(grpc::StatusCode::CANCELLED, "closed"));
  stream.reset();
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return stream_ == nullptr; });
}

}  // namespace paceline

#include "router/service/worker_link.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include <grpcpp/support/client_callback.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/rpc/channel.h"
#include "common/rpc/generation_proto.h"
#include "common/rpc/outbox.h"
#include "router/service/worker_report.h"

namespace paceline {
namespace {

using worker::v1::OpenStreamRequest;
using worker::v1::OpenStreamResponse;
using worker::v1::WatchStatusRequest;
using worker::v1::WatchStatusResponse;

bool Merge(OpenStreamRequest* last, OpenStreamRequest* next) {
  // A frame's submits are handled before its cancels; handles are never used twice.
  last->MergeFrom(*next);
  return true;
}

// Half to all of it, so that routers that lost one worker together do not return together.
Duration Jitter(Duration d) {
  thread_local std::minstd_rand random{std::random_device{}()};
  return d / 2 + Duration(random() % std::max<int64_t>(1, d.count() / 2));
}

std::string CauseOf(const grpc::Status& status) {
  if (status.ok()) return "the worker closed the connection";
  return absl::StrCat("the connection to the worker broke: ",
                      absl::CHexEscape(status.error_message().substr(0, 256)));
}

}  // namespace

// The two calls of one session. Lives until gRPC is done with both.
class WorkerLink::Session {
 public:
  Session(WorkerLink* link, bool requests)
      : link_(link), calls_(requests ? 2 : 1), watch_(this), stream_(this) {}

  // Before anybody may cancel.
  void Prepare() {
    watch_.Prepare();
    if (has_stream()) stream_.Prepare();
  }
  void Start() {
    watch_.StartCall();
    if (has_stream()) stream_.StartCall();
    std::unique_lock lock(mutex_);
    started_ = true;
    const bool cancelled = cancelled_;
    lock.unlock();
    if (cancelled) CancelCalls();
  }
  bool has_stream() const { return link_->loop_ != nullptr; }
  bool Send(OpenStreamRequest request) {
    const auto cost = static_cast<int64_t>(request.ByteSizeLong());
    return stream_.outbox.Push(std::move(request), cost);
  }
  // Gives up both calls at once; Ended follows. A call that is cancelled from one thread while it
  // is started from another may never end (gRPC 1.51), so that an early cancel is left to Start.
  void Cancel() {
    std::unique_lock lock(mutex_);
    cancelled_ = true;
    const bool started = started_;
    lock.unlock();
    if (started) CancelCalls();
  }

 private:
  void CancelCalls() {
    watch_.context.TryCancel();
    if (!has_stream()) return;
    stream_.context.TryCancel();
    stream_.outbox.Abort(grpc::Status::CANCELLED);
  }

  struct Watch final : grpc::ClientReadReactor<WatchStatusResponse> {
    explicit Watch(Session* s) : session(s) {}
    void Prepare() {
      session->link_->stub_->async()->WatchStatus(&context, &request, this);
      StartRead(&report);
    }
    void OnReadDone(bool ok) override {
      if (!ok) return;
      session->link_->Reported(session, &report);
      report.Clear();
      StartRead(&report);
    }
    void OnDone(const grpc::Status& status) override { session->CallDone(CauseOf(status)); }

    Session* const session;
    grpc::ClientContext context;
    WatchStatusRequest request;
    WatchStatusResponse report;
  };

  // The hold lets the loop write outside of reactions.
  struct Stream final : grpc::ClientBidiReactor<OpenStreamRequest, OpenStreamResponse> {
    explicit Stream(Session* s)
        : session(s),
          outbox({.write = [this](const OpenStreamRequest* m) { StartWrite(m); },
                  .finish = [this](const grpc::Status&) { RemoveHold(); },
                  .merge = Merge},
                 s->link_->options_.max_outbox_bytes) {}
    void Prepare() {
      session->link_->stub_->async()->OpenStream(&context, this);
      AddHold();
      StartRead(&frame);
    }
    void OnReadDone(bool ok) override {
      if (!ok) return outbox.Abort(grpc::Status::CANCELLED);
      session->link_->Received(session, frame);
      frame.Clear();
      StartRead(&frame);
    }
    void OnWriteDone(bool ok) override { outbox.WriteDone(ok); }
    void OnDone(const grpc::Status& status) override { session->CallDone(CauseOf(status)); }

    Session* const session;
    grpc::ClientContext context;
    OpenStreamResponse frame;
    Outbox<OpenStreamRequest> outbox;
  };

  void CallDone(const std::string& cause) {
    link_->Lose(this, cause);
    if (--calls_ == 0) link_->Ended(this);  // destroys this
  }

  WorkerLink* const link_;
  std::atomic<int> calls_;
  std::mutex mutex_;
  bool started_ = false;    // under mutex_
  bool cancelled_ = false;  // under mutex_
  Watch watch_;
  Stream stream_;
};

WorkerLink::WorkerLink(std::string address, RouterLoop* loop, WorkerId worker,
                       std::function<void()> changed, WorkerLinkOptions options)
    : address_(std::move(address)),
      loop_(loop),
      worker_(worker),
      changed_(std::move(changed)),
      options_(options),
      channel_(NewChannel(address_)),
      stub_(worker::v1::WorkerService::NewStub(channel_)),
      backoff_(options.first_backoff) {}

WorkerLink::~WorkerLink() { CHECK(session_ == nullptr) << "the link is open"; }

// ---- In the loop's turns ----

void WorkerLink::Submit(AttemptHandle handle, const GenerationRequest& request) {
  ToProto(handle, request, SteadyClock::Get().Now(), pending_.add_submits());
}

void WorkerLink::Cancel(AttemptHandle handle) { pending_.add_cancels()->set_handle(handle); }

void WorkerLink::Flush() {
  OpenStreamRequest frame;
  frame.Swap(&pending_);
  const std::shared_ptr<Session> session = current_;
  if (session == nullptr || session->Send(std::move(frame))) return;
  Lose(session.get(), "the worker does not read its requests");  // or it is lost already
}

// ---- What a session brings; gRPC's threads ----

void WorkerLink::Reported(Session* session, WatchStatusResponse* report) {
  const TimePoint now = SteadyClock::Get().Now();
  const std::string fault = CheckReport(*report, loop_ != nullptr ? "target" : "draft");
  if (!fault.empty()) return Lose(session, fault);
  WorkerSnapshot snapshot = loop_ != nullptr ? ToSnapshot(*report) : WorkerSnapshot{};
  report->clear_prefix_chunks();
  std::unique_lock lock(mutex_);
  if (session_.get() != session || lost_) return;
  const bool first = !std::exchange(connected_, true);
  tried_ = true;
  reported_ = now;
  report_.Swap(report);
  if (first) {
    last_cause_.clear();
    spdlog::info("worker connected address={} role={} model={}", address_, report_.info().role(),
                 absl::CHexEscape(report_.info().model()));
  }
  if (loop_ == nullptr) return;
  // Queued under the lock, so that nothing gets behind the session's loss.
  loop_->Queue([self = shared_from_this(), opened = first ? session_ : nullptr,
                snapshot = std::move(snapshot)](RouterCore& core, TimePoint at) mutable {
    if (opened != nullptr) {
      self->current_ = std::move(opened);
      core.WorkerConnected(self->worker_, at);
    }
    core.WorkerReported(self->worker_, std::move(snapshot), at);
  });
  lock.unlock();
  loop_->RunQueued();
}

void WorkerLink::Received(Session* session, const OpenStreamResponse& frame) {
  struct Finish {
    AttemptHandle handle;
    absl::Status status;
    GenerationUsage usage;
  };
  const TimePoint read = SteadyClock::Get().Now();
  std::vector<std::pair<AttemptHandle, SampleDelta>> deltas;
  std::vector<Finish> finished;
  deltas.reserve(frame.deltas_size());
  for (const auto& proto : frame.deltas()) {
    auto delta = FromProto(proto);
    if (!delta.ok()) return Lose(session, std::string(delta.status().message()));
    deltas.emplace_back(proto.handle(), *std::move(delta));
  }
  // Every delta costs a write. First tokens go before others' next ones, which come again a step
  // later.
  std::stable_partition(deltas.begin(), deltas.end(),
                        [](const auto& d) { return d.second.first_index == 0; });
  for (const auto& proto : frame.finished()) {
    Finish f{proto.handle(), {}, {}};
    auto usage = FromProto(proto, &f.status);
    if (!usage.ok()) return Lose(session, std::string(usage.status().message()));
    f.usage = *usage;
    finished.push_back(std::move(f));
  }
  std::unique_lock lock(mutex_);
  if (session_.get() != session || lost_) return;
  // Before the first report the core does not take the worker for connected, and has sent it
  // nothing.
  if (!connected_) return;
  loop_->QueueFrame(read,
                    [worker = worker_, deltas = std::move(deltas), finished = std::move(finished)](
                        RouterCore& core, TimePoint now) mutable {
                      for (auto& [handle, delta] : deltas)
                        core.WorkerDelta(worker, handle, std::move(delta), now);
                      for (const Finish& f : finished)
                        core.WorkerFinished(worker, f.handle, f.status, f.usage, now);
                    });
  lock.unlock();
  loop_->RunQueued();
}

void WorkerLink::Lose(Session* session, const std::string& cause) {
  std::shared_ptr<Session> held;
  {
    std::lock_guard lock(mutex_);
    if (!NoteLost(session, cause)) return;
    held = session_;
  }
  if (loop_ != nullptr) loop_->RunQueued();
  held->Cancel();
}

// False: it is over already. Under the lock.
bool WorkerLink::NoteLost(Session* session, const std::string& cause) {
  if (session_.get() != session || std::exchange(lost_, true)) return false;
  if (!closed_ && (connected_ || cause != last_cause_)) {
    spdlog::warn("worker lost address={} cause=\"{}\"", address_, cause);
  }
  last_cause_ = cause;
  tried_ = true;
  if (!std::exchange(connected_, false)) return true;
  // A worker that comes and goes is not asked ever faster.
  if (SteadyClock::Get().Now() - opened_ > options_.last_backoff) backoff_ = options_.first_backoff;
  if (loop_ == nullptr) return true;
  loop_->Queue([self = shared_from_this(), cause](RouterCore& core, TimePoint now) {
    self->current_.reset();
    core.WorkerLost(self->worker_, cause, now);
  });
  return true;
}

void WorkerLink::Ended(Session*) {
  std::shared_ptr<Session> last;  // destroyed behind the lock
  std::unique_lock lock(mutex_);
  reopen_at_ = SteadyClock::Get().Now() + Jitter(backoff_);
  backoff_ = std::min(backoff_ * 2, options_.last_backoff);
  last = std::move(session_);
  const auto changed = closed_ ? std::function<void()>() : changed_;
  ended_.notify_all();
  lock.unlock();  // Close may destroy this from here on
  if (changed) changed();
}

// ---- Time ----

void WorkerLink::Open(TimePoint now) {
  grpc::experimental::ChannelResetConnectionBackoff(channel_.get());  // ours is the one
  auto session = std::make_shared<Session>(this, loop_ != nullptr);
  session->Prepare();
  {
    std::lock_guard lock(mutex_);
    session_ = session;
    lost_ = connected_ = false;
    opened_ = now;
  }
  session->Start();
}

TimePoint WorkerLink::Tick(TimePoint now) {
  std::shared_ptr<Session> mute;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return kNoDeadline;
    if (session_ == nullptr) {
      if (now < reopen_at_) return reopen_at_;
    } else if (connected_ || lost_) {
      return kNoDeadline;
    } else if (now < opened_ + options_.greeting) {
      return opened_ + options_.greeting;
    }
    mute = session_;
  }
  if (mute != nullptr) {
    Lose(mute.get(), "the worker does not report");
    return kNoDeadline;
  }
  Open(now);
  return now + options_.greeting;
}

bool WorkerLink::tried() const {
  std::lock_guard lock(mutex_);
  return tried_;
}

ClusterDirectory::Member WorkerLink::Member(TimePoint now) const {
  std::lock_guard lock(mutex_);
  ClusterDirectory::Member member;
  member.address = address_;
  member.role = loop_ != nullptr ? "target" : "draft";
  member.report_age = reported_ == TimePoint{} ? Duration::zero() : now - reported_;
  member.reached = connected_ && member.report_age < options_.silence;
  member.report = report_;
  return member;
}

void WorkerLink::Close() {
  std::shared_ptr<Session> session;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    session = session_;
  }
  if (session != nullptr) Lose(session.get(), "the router closed the link");
  session.reset();
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return session_ == nullptr; });
}

}  // namespace paceline

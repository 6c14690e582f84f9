// The link to one worker: its reports (WatchStatus) and, to a target, the stream of requests
// (OpenStream), both over one connection and opened anew with jittered backoff, for ever. The two
// stand and fall together: a *session*. What a session brings is posted to the router's loop in
// order: connected, reports and frames, lost; nothing of an earlier session comes behind its loss.
// A worker is a stranger: whatever makes no sense in what it sends costs its session, never more.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include <grpcpp/channel.h>

#include "common/clock.h"
#include "paceline/worker/v1/worker.grpc.pb.h"
#include "router/service/cluster_directory.h"
#include "router/service/router_loop.h"

namespace paceline {

struct WorkerLinkOptions {
  Duration greeting = std::chrono::seconds(3);  // open to the first report
  Duration silence = std::chrono::seconds(5);   // reports come every second; then: not reached
  Duration first_backoff = std::chrono::milliseconds(20);
  Duration last_backoff = std::chrono::seconds(1);
  int64_t max_outbox_bytes = 64 << 20;  // a worker that leaves more unread loses its session
};

// Held by shared_ptr.
class WorkerLink final : public WorkerPort, public std::enable_shared_from_this<WorkerLink> {
 public:
  // A target's requests go through `loop`, which knows it as `worker`; null: a draft worker, whose
  // reports are kept and nothing else. `changed` is called, from any thread and perhaps a moment
  // behind Close, when Tick has something to do sooner than it said. Nothing happens before the
  // first Tick.
  WorkerLink(std::string address, RouterLoop* loop, WorkerId worker, std::function<void()> changed,
             WorkerLinkOptions options = {});
  ~WorkerLink() override;  // behind Close

  const std::string& address() const { return address_; }

  // In the loop's turns. What belongs to a session that is over is dropped: the loop is about to
  // hear of its loss.
  void Submit(AttemptHandle handle, const GenerationRequest& request) override;
  void Cancel(AttemptHandle handle) override;
  void Flush() override;

  // Opens and gives up sessions. Returns when to call it next. Tick and Close: one thread.
  TimePoint Tick(TimePoint now);
  // A first session has brought a report or has ended without one.
  bool tried() const;
  ClusterDirectory::Member Member(TimePoint now) const;
  worker::v1::WorkerService::Stub* stub() const { return stub_.get(); }

  // Ends the session, posting its loss, and waits for gRPC to let go of it. No Tick follows.
  void Close();

 private:
  class Session;

  void Reported(Session* session, worker::v1::WatchStatusResponse* report);
  void Received(Session* session, const worker::v1::OpenStreamResponse& frame);
  void Lose(Session* session, const std::string& cause);
  bool NoteLost(Session* session, const std::string& cause);
  void Ended(Session* session);
  void Open(TimePoint now);

  const std::string address_;
  RouterLoop* const loop_;
  const WorkerId worker_;
  const std::function<void()> changed_;
  const WorkerLinkOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<worker::v1::WorkerService::Stub> stub_;

  mutable std::mutex mutex_;
  std::condition_variable ended_;
  std::shared_ptr<Session> session_;  // from Open until gRPC has let go of it
  bool lost_ = false;                 // nothing more is taken from session_
  bool connected_ = false;            // session_ has brought a report, and is not lost
  bool closed_ = false;
  bool tried_ = false;
  std::string last_cause_;  // said once, not at every try
  worker::v1::WatchStatusResponse report_;
  TimePoint opened_{}, reported_{}, reopen_at_{};
  Duration backoff_{};

  // In the loop's turns.
  std::shared_ptr<Session> current_;  // the one that the core takes for connected
  worker::v1::OpenStreamRequest pending_;
};

}  // namespace paceline

// The turns of the RouterCore. Whatever happens (clients, workers, time) is queued and applied in
// order, by one thread at a time: whoever posts while nobody has the turn takes it and works off
// the queue, so that an event costs no switch of threads; after a bounded while it hands over to
// the loop's own thread, which also keeps the time. What the core wants done is carried out in the
// turn: submits and cancels go to worker ports, deltas and last words to request sinks. No I/O and
// no text work beyond SampleText happens there. Thread-safe: all public functions may be called
// from any thread, also in a turn, and never wait for one but where they say so. Since a post may
// take the turn, it must not be made under a lock that a port or a sink takes: see Queue.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "common/clock.h"
#include "router/core/router_core.h"
#include "router/service/request_probe.h"

namespace paceline {

// One client's call, as the loop sees it. Called in a turn; must not block, and must not call the
// loop back synchronously for an answer. After OnFinish nothing follows.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  virtual void OnDeliver(DeliverAction action) = 0;
  virtual void OnFinish(FinishAction action) = 0;
};

// The way to one worker. Called in a turn; must not block. Submits and cancels gathered
// since the last Flush go out as one frame.
class WorkerPort {
 public:
  virtual ~WorkerPort() = default;
  virtual void Submit(AttemptHandle handle, const GenerationRequest& request) = 0;
  virtual void Cancel(AttemptHandle handle) = 0;
  virtual void Flush() = 0;
};

class RouterLoop {
 public:
  // The probes may be null and outlive the loop; they are called in a turn. Of
  // `requests` the loop tells OverheadStage::kRoute and kForward, and RequestOverhead.
  RouterLoop(RouterOptions options, RouterProbe* probe, const Clock& clock,
             RequestProbe* requests = nullptr);
  ~RouterLoop();  // Stop
  RouterLoop(const RouterLoop&) = delete;
  RouterLoop& operator=(const RouterLoop&) = delete;

  // Clients. The sink hears exactly one OnFinish (after Stop: DRAINING, before Start returns). Keys
  // are the loop's, never reused.
  RequestKey Start(ClientRequest request, std::shared_ptr<RequestSink> sink);
  void CancelByClient(RequestKey key);
  void Abort(RequestKey key, ServingError error);
  // Every request held now.
  void AbortAll(ServingError error);

  // Workers. The whole list as discovered; `ports` makes the port of a worker that is new. The port
  // of a worker that is no longer listed is dropped, in a turn, behind its last request.
  using PortFactory =
      std::function<std::shared_ptr<WorkerPort>(WorkerId worker, const WorkerAddress& address)>;
  void Relist(std::vector<WorkerAddress> addresses, PortFactory ports);

  // Anything that happens to the core: what worker streams and reports bring. Applied in order of
  // Post; the core's actions are carried out before the next event. After Stop it is dropped.
  using Event = std::function<void(RouterCore& core, TimePoint now)>;
  void Post(Event event);
  // Post in two steps, for who must queue under a lock: RunQueued follows outside of it.
  void Queue(Event event);
  // As Queue, for a worker's frame that was read at `read`.
  void QueueFrame(TimePoint read, Event event);
  void RunQueued();

  // Runs `read` in a turn and waits for it. Not in a turn.
  void Read(const std::function<void(const RouterCore& core, TimePoint now)>& read);

  // Refuses new requests from now on.
  void StartDrain();
  // True once no request is left, or false after `limit`.
  bool AwaitIdle(Duration limit);
  // Called in a turn, first with Serving() as it is, then whenever it changes. Set once.
  void OnServingChanged(std::function<void(bool serving)> callback);

  // Ends the thread. Requests still held end with DRAINING first.
  void Stop();

 private:
  struct Call {
    std::shared_ptr<RequestSink> sink;
    TimePoint received{}, started{};
    std::optional<Duration> way_in{};  // receipt to submit; until the first tokens are on their way
  };

  void Run();
  void AwaitTurn(std::unique_lock<std::mutex>* lock);
  void TakeTurn(std::unique_lock<std::mutex>* lock, int max_batches);
  void RunBatch(std::vector<Event>* batch);
  void Apply(const Event& event);
  void CarryOut(std::vector<RouterAction> actions);
  WorkerPort* PortOf(WorkerId worker);
  void Deliver(DeliverAction action);
  void FlushPorts();
  void DropLeftPorts(TimePoint now);
  void EndAll(const ServingError& error, RouterCore* core, TimePoint now);

  const Clock& clock_;
  RequestProbe* const requests_;
  std::mutex mutex_;
  std::condition_variable thread_wanted_, quiet_;
  std::vector<Event> events_;
  bool stopped_ = false;           // no event is taken any more
  bool ended_ = false;             // the thread is past its last event
  bool in_turn_ = false;           // a thread works on events
  bool handed_over_ = false;       // the turn is the loop's thread's, which is to go on with it
  bool held_ = false;              // there were requests behind the last batch
  TimePoint wake_ = kNoDeadline;   // when the core wants to be woken, as of the last batch
  TimePoint armed_ = kNoDeadline;  // until when the thread sleeps unless it is woken
  RequestKey next_key_ = 1;

  // Whoever has the turn.
  std::vector<Event> batch_;
  RouterCore core_;
  std::unordered_map<RequestKey, Call> calls_;
  std::unordered_map<WorkerId, std::shared_ptr<WorkerPort>> ports_;
  std::vector<WorkerPort*> dirty_ports_;
  std::vector<WorkerId> leaving_;   // no longer listed, and with a port
  std::vector<RequestKey> routed_;  // starts that became submits in this batch
  RequestKey starting_ = 0;         // the event being applied is the Start of this request
  TimePoint frame_read_{};          // or it is a worker's frame, read then
  std::function<void(bool)> on_serving_;
  bool serving_ = false;
  std::thread thread_;
  std::once_flag joined_;
};

}  // namespace paceline

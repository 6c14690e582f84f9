// The thread that owns the RouterCore. Whatever happens (clients, workers, time) is posted to it
// and applied in order; what the core wants done is carried out on it: submits and cancels go to
// worker ports, deltas and last words to request sinks. No I/O and no text work beyond SampleText
// happens here. Thread-safe: all public functions may be called from any thread and never block on
// the core.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "common/clock.h"
#include "router/core/router_core.h"

namespace paceline {

// One client's call, as the loop sees it. Called on the loop's thread; must not block, and must not
// call the loop back synchronously for an answer. After OnFinish nothing follows.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  virtual void OnDeliver(DeliverAction action) = 0;
  virtual void OnFinish(FinishAction action) = 0;
};

// The way to one worker. Called on the loop's thread; must not block. Submits and cancels gathered
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
  // `probe` may be null and outlives the loop; it is called on the loop's thread.
  RouterLoop(RouterOptions options, RouterProbe* probe, const Clock& clock);
  ~RouterLoop();  // Stop
  RouterLoop(const RouterLoop&) = delete;
  RouterLoop& operator=(const RouterLoop&) = delete;

  // Clients. The sink hears exactly one OnFinish. Keys are the loop's, never reused.
  RequestKey Start(ClientRequest request, std::shared_ptr<RequestSink> sink);
  void CancelByClient(RequestKey key);
  void Abort(RequestKey key, ServingError error);

  // Workers. The whole list as discovered; `ports` makes the port of a worker that is new. Ports of
  // workers that are gone from the core are dropped on the loop's thread.
  using PortFactory =
      std::function<std::shared_ptr<WorkerPort>(WorkerId worker, const WorkerAddress& address)>;
  void Relist(std::vector<WorkerAddress> addresses, PortFactory ports);

  // Anything that happens to the core: what worker streams and reports bring. Applied in order of
  // Post; the core's actions are carried out before the next event.
  using Event = std::function<void(RouterCore& core, TimePoint now)>;
  void Post(Event event);

  // Runs `read` on the loop's thread and waits for it. Not from the loop's thread.
  void Read(const std::function<void(const RouterCore& core, TimePoint now)>& read);

  // Refuses new requests from now on.
  void StartDrain();
  // True once no request is left, or false after `limit`.
  bool AwaitIdle(Duration limit);
  // Called on the loop's thread when Serving() changes; set once, before the first Relist.
  void OnServingChanged(std::function<void(bool serving)> callback);

  // Ends the thread. Requests still held end with DRAINING first.
  void Stop();

 private:
  void Run();
  void CarryOut(std::vector<RouterAction> actions);

  const Clock& clock_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::vector<Event> events_;
  bool stopped_ = false;
  RequestKey next_key_ = 1;

  // The loop's thread.
  RouterCore core_;
  std::unordered_map<RequestKey, std::shared_ptr<RequestSink>> sinks_;
  std::unordered_map<WorkerId, std::shared_ptr<WorkerPort>> ports_;
  std::vector<WorkerPort*> dirty_ports_;
  std::function<void(bool)> on_serving_;
  bool serving_ = false;
  std::thread thread_;
};

}  // namespace paceline

#include "router/service/router_loop.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace paceline {

RouterLoop::RouterLoop(RouterOptions options, RouterProbe* probe, const Clock& clock,
                       RequestProbe* requests)
    : clock_(clock), requests_(requests), core_(options, probe), thread_([this] { Run(); }) {}

RouterLoop::~RouterLoop() { Stop(); }

// ---- From any thread ----

void RouterLoop::Post(Event event) {
  std::lock_guard lock(mutex_);
  if (stopped_) return;
  events_.push_back(std::move(event));
  if (events_.size() == 1) work_.notify_one();
}

void RouterLoop::PostFrame(TimePoint read, Event event) {
  Post([this, read, event = std::move(event)](RouterCore& core, TimePoint now) {
    frame_read_ = read;
    event(core, now);
  });
}

RequestKey RouterLoop::Start(ClientRequest request, std::shared_ptr<RequestSink> sink) {
  const TimePoint started = clock_.Now();
  std::unique_lock lock(mutex_);
  const RequestKey key = next_key_++;
  if (stopped_) {
    lock.unlock();
    FinishAction finish;
    finish.key = key;
    finish.error = ServingError::Draining();
    sink->OnFinish(std::move(finish));
    return key;
  }
  events_.push_back([this, key, started, request = std::move(request), sink = std::move(sink)](
                        RouterCore& core, TimePoint now) mutable {
    starting_ = key;
    started_ = started;
    sinks_.emplace(key, std::move(sink));
    core.Start(key, std::move(request), now);
  });
  if (events_.size() == 1) work_.notify_one();
  return key;
}

void RouterLoop::CancelByClient(RequestKey key) {
  Post([key](RouterCore& core, TimePoint now) { core.CancelByClient(key, now); });
}

void RouterLoop::Abort(RequestKey key, ServingError error) {
  Post([key, error = std::move(error)](RouterCore& core, TimePoint now) {
    core.Abort(key, error, now);
  });
}

void RouterLoop::AbortAll(ServingError error) {
  Post([this, error = std::move(error)](RouterCore& core, TimePoint now) {
    EndAll(error, &core, now);
  });
}

void RouterLoop::Relist(std::vector<WorkerAddress> addresses, PortFactory ports) {
  Post([this, addresses = std::move(addresses), ports = std::move(ports)](RouterCore& core,
                                                                          TimePoint now) {
    const WorkerSet::Change change = core.Relist(addresses, now);
    for (const WorkerId id : change.added) {
      std::erase(leaving_, id);
      if (ports_.contains(id)) continue;  // it had left, with requests still out
      auto port = ports(id, WorkerAddress{core.workers().Find(id)->address});
      CHECK(port != nullptr) << "no port of worker " << id;
      ports_.emplace(id, std::move(port));
    }
    leaving_.insert(leaving_.end(), change.removed.begin(), change.removed.end());
  });
}

void RouterLoop::Read(const std::function<void(const RouterCore& core, TimePoint now)>& read) {
  bool done = false;
  std::unique_lock lock(mutex_);
  if (!stopped_) {
    events_.push_back([&](RouterCore& core, TimePoint now) {
      read(core, now);
      std::lock_guard done_lock(mutex_);
      done = true;
      quiet_.notify_all();
    });
    work_.notify_one();
    quiet_.wait(lock, [&] { return done; });
    return;
  }
  quiet_.wait(lock, [&] { return ended_; });
  lock.unlock();
  read(core_, clock_.Now());
}

void RouterLoop::StartDrain() {
  Post([](RouterCore& core, TimePoint) { core.StartDrain(); });
}

bool RouterLoop::AwaitIdle(Duration limit) {
  std::unique_lock lock(mutex_);
  return quiet_.wait_for(lock, limit, [&] { return events_.empty() && !in_batch_ && !held_; });
}

void RouterLoop::OnServingChanged(std::function<void(bool serving)> callback) {
  Post([this, callback = std::move(callback)](RouterCore& core, TimePoint) {
    on_serving_ = callback;
    on_serving_(serving_ = core.Serving());
  });
}

void RouterLoop::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    work_.notify_one();
  }
  std::call_once(joined_, [this] { thread_.join(); });
}

// ---- The loop's thread ----

void RouterLoop::Run() {
  std::vector<Event> batch;
  std::unique_lock lock(mutex_);
  while (true) {
    AwaitEvents(&lock);
    if (stopped_ && events_.empty()) break;
    batch.swap(events_);
    in_batch_ = true;
    lock.unlock();
    RunBatch(&batch);
    batch.clear();
    lock.lock();
    in_batch_ = false;
    held_ = core_.num_requests() > 0;
    if (!held_) quiet_.notify_all();
  }
  lock.unlock();
  EndAll(ServingError::Draining(), &core_, clock_.Now());
  CarryOut(core_.TakeActions());
  FlushPorts();
  ports_.clear();
  lock.lock();
  held_ = false;
  ended_ = true;
  quiet_.notify_all();
}

// Until there are events, the core wants to be woken, or the end.
void RouterLoop::AwaitEvents(std::unique_lock<std::mutex>* lock) {
  const auto something = [this] { return stopped_ || !events_.empty(); };
  const TimePoint wake = core_.NextWake();
  if (wake == kNoDeadline) return work_.wait(*lock, something);
  const Duration left = wake - clock_.Now();
  if (left > Duration::zero()) work_.wait_for(*lock, left, something);
}

void RouterLoop::RunBatch(std::vector<Event>* batch) {
  for (const Event& event : *batch) Apply(event);
  const TimePoint now = clock_.Now();
  if (now >= core_.NextWake()) Apply([](RouterCore& core, TimePoint t) { core.Tick(t); });
  FlushPorts();
  if (!leaving_.empty()) DropLeftPorts(now);
  const bool serving = core_.Serving();
  if (serving == serving_) return;
  serving_ = serving;
  if (on_serving_) on_serving_(serving);
}

void RouterLoop::Apply(const Event& event) {
  starting_ = 0;
  frame_read_ = TimePoint{};
  event(core_, clock_.Now());
  CarryOut(core_.TakeActions());
}

void RouterLoop::CarryOut(std::vector<RouterAction> actions) {
  for (RouterAction& action : actions) {
    if (auto* submit = std::get_if<SubmitAction>(&action)) {
      PortOf(submit->worker)->Submit(submit->handle, submit->request);
      if (KeyOf(submit->handle) == starting_) routed_since_.push_back(started_);
    } else if (auto* cancel = std::get_if<CancelAction>(&action)) {
      PortOf(cancel->worker)->Cancel(cancel->handle);
    } else if (auto* deliver = std::get_if<DeliverAction>(&action)) {
      sinks_.at(deliver->key)->OnDeliver(std::move(*deliver));
      if (frame_read_ != TimePoint{} && requests_ != nullptr) {
        requests_->Overhead(OverheadStage::kForward, clock_.Now() - frame_read_);
      }
    } else if (auto* finish = std::get_if<FinishAction>(&action)) {
      auto sink = sinks_.extract(finish->key);
      CHECK(!sink.empty()) << "request " << finish->key << " finished twice";
      sink.mapped()->OnFinish(std::move(*finish));
    }
  }
}

WorkerPort* RouterLoop::PortOf(WorkerId worker) {
  WorkerPort* port = ports_.at(worker).get();
  if (std::find(dirty_ports_.begin(), dirty_ports_.end(), port) == dirty_ports_.end()) {
    dirty_ports_.push_back(port);
  }
  return port;
}

void RouterLoop::FlushPorts() {
  for (WorkerPort* port : dirty_ports_) port->Flush();
  dirty_ports_.clear();
  if (routed_since_.empty()) return;
  const TimePoint now = clock_.Now();
  for (const TimePoint since : routed_since_) {
    if (requests_ != nullptr) requests_->Overhead(OverheadStage::kRoute, now - since);
  }
  routed_since_.clear();
}

void RouterLoop::DropLeftPorts(TimePoint now) {
  std::erase_if(leaving_, [&](WorkerId id) {
    if (core_.workers().Find(id)->in_flight > 0) return false;
    core_.WorkerLost(id, "no longer listed", now);
    ports_.erase(id);
    return true;
  });
  CarryOut(core_.TakeActions());
  FlushPorts();
}

void RouterLoop::EndAll(const ServingError& error, RouterCore* core, TimePoint now) {
  std::vector<RequestKey> keys;
  for (const auto& [key, sink] : sinks_) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  for (const RequestKey key : keys) core->Abort(key, error, now);
}

}  // namespace paceline

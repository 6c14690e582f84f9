#include "router/service/router_loop.h"

#include <algorithm>
#include <climits>
#include <utility>

#include "common/check.h"

namespace paceline {
namespace {

// Of one turn of a thread that posted; the thread is not ours to keep.
constexpr int kMaxBatches = 16;

}  // namespace

RouterLoop::RouterLoop(RouterOptions options, RouterProbe* probe, const Clock& clock,
                       RequestProbe* requests)
    : clock_(clock), requests_(requests), core_(options, probe), thread_([this] { Run(); }) {}

RouterLoop::~RouterLoop() { Stop(); }

// ---- From any thread ----

void RouterLoop::Post(Event event) {
  Queue(std::move(event));
  RunQueued();
}

void RouterLoop::Queue(Event event) {
  std::lock_guard lock(mutex_);
  if (!stopped_) events_.push_back(std::move(event));
}

void RouterLoop::QueueFrame(TimePoint read, Event event) {
  Queue([this, read, event = std::move(event)](RouterCore& core, TimePoint now) {
    frame_read_ = read;
    event(core, now);
  });
}

void RouterLoop::RunQueued() {
  std::unique_lock lock(mutex_);
  // Whoever has the turn looks into the queue before it gives the turn up.
  if (in_turn_ || events_.empty()) return;
  in_turn_ = true;
  TakeTurn(&lock, kMaxBatches);
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
    calls_.emplace(key, Call{std::move(sink), request.received, started});
    core.Start(key, std::move(request), now);
  });
  lock.unlock();
  RunQueued();
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
  Post([&](RouterCore& core, TimePoint now) {
    read(core, now);
    std::lock_guard lock(mutex_);
    done = true;
    quiet_.notify_all();
  });
  std::unique_lock lock(mutex_);
  quiet_.wait(lock, [&] { return done || ended_; });
  if (done) return;
  lock.unlock();
  read(core_, clock_.Now());  // it came behind Stop
}

void RouterLoop::StartDrain() {
  Post([](RouterCore& core, TimePoint) { core.StartDrain(); });
}

bool RouterLoop::AwaitIdle(Duration limit) {
  std::unique_lock lock(mutex_);
  return quiet_.wait_for(lock, limit, [&] { return events_.empty() && !in_turn_ && !held_; });
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
    thread_wanted_.notify_one();
  }
  std::call_once(joined_, [this] { thread_.join(); });
}

// ---- The loop's thread ----

void RouterLoop::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    AwaitTurn(&lock);
    if (stopped_ && events_.empty()) break;
    TakeTurn(&lock, INT_MAX);
  }
  lock.unlock();
  EndAll(ServingError::Draining(), &core_, clock_.Now());
  CarryOut(core_.TakeActions());
  FlushPorts();
  ports_.clear();
  lock.lock();
  in_turn_ = false;
  held_ = false;
  ended_ = true;
  quiet_.notify_all();
}

// Until the turn is handed over, or it is free and the core wants to be woken or all ends.
void RouterLoop::AwaitTurn(std::unique_lock<std::mutex>* lock) {
  while (!handed_over_) {
    const Duration left = wake_ == kNoDeadline ? Duration::max() : wake_ - clock_.Now();
    if (!in_turn_ && (stopped_ || left <= Duration::zero())) break;
    // Behind a turn of others wake_ is another; they wake this thread if it is earlier.
    armed_ = in_turn_ ? kNoDeadline : wake_;
    if (armed_ == kNoDeadline) {
      thread_wanted_.wait(*lock);
    } else {
      thread_wanted_.wait_for(*lock, left);
    }
  }
  armed_ = TimePoint::min();  // awake
  handed_over_ = false;
  in_turn_ = true;
}

// ---- In a turn ----

// Works off the queue and gives the turn up, or over to the loop's thread.
void RouterLoop::TakeTurn(std::unique_lock<std::mutex>* lock, int max_batches) {
  for (int i = 0; i < max_batches; ++i) {
    batch_.swap(events_);
    lock->unlock();
    RunBatch(&batch_);
    batch_.clear();
    const bool held = core_.num_requests() > 0;
    const TimePoint wake = core_.NextWake();
    lock->lock();
    held_ = held;
    wake_ = wake;
    if (!events_.empty()) continue;
    in_turn_ = false;
    if (!held_) quiet_.notify_all();
    if (stopped_ || wake_ < armed_) thread_wanted_.notify_one();
    return;
  }
  handed_over_ = true;
  thread_wanted_.notify_one();
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
      if (KeyOf(submit->handle) == starting_) routed_.push_back(starting_);
    } else if (auto* cancel = std::get_if<CancelAction>(&action)) {
      PortOf(cancel->worker)->Cancel(cancel->handle);
    } else if (auto* deliver = std::get_if<DeliverAction>(&action)) {
      Deliver(std::move(*deliver));
    } else if (auto* finish = std::get_if<FinishAction>(&action)) {
      auto call = calls_.extract(finish->key);
      CHECK(!call.empty()) << "request " << finish->key << " finished twice";
      call.mapped().sink->OnFinish(std::move(*finish));
    }
  }
}

void RouterLoop::Deliver(DeliverAction action) {
  Call& call = calls_.at(action.key);
  call.sink->OnDeliver(std::move(action));
  if (frame_read_ == TimePoint{} || requests_ == nullptr) return;
  const Duration way_out = clock_.Now() - frame_read_;
  requests_->Overhead(OverheadStage::kForward, way_out);
  if (!call.way_in) return;
  requests_->RequestOverhead(*call.way_in + way_out);
  call.way_in.reset();
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
  if (routed_.empty()) return;
  const TimePoint now = clock_.Now();
  for (const RequestKey key : routed_) {
    const auto it = calls_.find(key);
    if (requests_ == nullptr || it == calls_.end()) continue;
    Call& call = it->second;
    requests_->Overhead(OverheadStage::kRoute, now - call.started);
    if (call.received != TimePoint{}) call.way_in = now - call.received;
  }
  routed_.clear();
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
  for (const auto& [key, call] : calls_) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  for (const RequestKey key : keys) core->Abort(key, error, now);
}

}  // namespace paceline

#include "router/core/worker_set.h"

#include <algorithm>

namespace paceline {

WorkerState Worker::State() const {
  if (!connected) return WorkerState::kUnreachable;
  if (drain_asked || snapshot.draining) return WorkerState::kDraining;
  return snapshot.ready ? WorkerState::kReady : WorkerState::kStarting;
}

CircuitState Worker::Circuit(TimePoint now) const {
  if (now < not_before) return CircuitState::kOpen;
  return faults > 0 ? CircuitState::kHalfOpen : CircuitState::kClosed;
}

WorkerSet::Change WorkerSet::Relist(std::span<const WorkerAddress> addresses) {
  Change change;
  for (Worker& w : workers_) {
    const bool named = std::any_of(addresses.begin(), addresses.end(),
                                   [&](const WorkerAddress& a) { return a.address == w.address; });
    if (w.listed && !named) change.removed.push_back(w.id);
    if (!w.listed && named) change.added.push_back(w.id);
    w.listed = named;
  }
  for (const WorkerAddress& a : addresses) {
    if (std::any_of(workers_.begin(), workers_.end(),
                    [&](const Worker& w) { return w.address == a.address; })) {
      continue;
    }
    Worker w;
    w.id = static_cast<WorkerId>(workers_.size());
    w.address = a.address;
    change.added.push_back(w.id);
    workers_.push_back(std::move(w));
  }
  return change;
}

Worker* WorkerSet::Find(WorkerId id) {
  return id >= 0 && id < static_cast<WorkerId>(workers_.size()) ? &workers_[id] : nullptr;
}

const Worker* WorkerSet::Find(WorkerId id) const { return const_cast<WorkerSet*>(this)->Find(id); }

bool WorkerSet::AnyUsable(const std::string& model) const {
  return std::any_of(workers_.begin(), workers_.end(),
                     [&](const Worker& w) { return w.Usable() && w.snapshot.model == model; });
}

bool WorkerSet::AnyLoading(const std::string& model) const {
  return std::any_of(workers_.begin(), workers_.end(), [&](const Worker& w) {
    return w.listed && w.State() == WorkerState::kStarting && w.snapshot.model == model;
  });
}

bool WorkerSet::AnyConnected() const {
  return std::any_of(workers_.begin(), workers_.end(), [](const Worker& w) { return w.connected; });
}

bool WorkerSet::Known(const std::string& model) const {
  return std::any_of(workers_.begin(), workers_.end(),
                     [&](const Worker& w) { return w.snapshot.model == model; });
}

void WorkerSet::ApplySnapshot(WorkerSnapshot snapshot, TimePoint now, Worker* worker) {
  if (snapshot.prefixes == nullptr && snapshot.prefix_epoch == worker->snapshot.prefix_epoch) {
    snapshot.prefixes = worker->snapshot.prefixes;
  }
  worker->snapshot = std::move(snapshot);
  worker->last_heard = now;
  worker->sent_since_snapshot = 0;
  worker->sent_prompt_tokens = 0;
}

void WorkerSet::RecordFault(TimePoint now, Duration base, Duration limit, Worker* worker) {
  worker->faults = std::min(worker->faults + 1, 30);
  const Duration wait = std::min(limit, base * (int64_t{1} << std::min(worker->faults - 1, 20)));
  worker->not_before = std::max(worker->not_before, now + wait);
}

}  // namespace paceline

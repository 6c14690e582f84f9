// The workers that this router knows, with what it knows of each: listed, connected, snapshot, own
// requests in flight, health as seen from here. Single-threaded; no I/O.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "common/clock.h"
#include "router/core/discovery.h"
#include "router/core/worker_snapshot.h"

namespace paceline {

enum class WorkerState : uint8_t { kUnreachable, kStarting, kReady, kDraining };
enum class CircuitState : uint8_t { kClosed = 0, kHalfOpen = 1, kOpen = 2 };

struct Worker {
  WorkerId id = kNoWorker;
  std::string address;
  bool listed = true;      // a worker that discovery no longer names gets no new requests
  bool connected = false;  // the request stream stands
  bool drain_asked = false;
  WorkerSnapshot snapshot;
  TimePoint last_heard{};

  // Of this router's own requests.
  int32_t in_flight = 0;
  int32_t sent_since_snapshot = 0;  // requests, and their prompt tokens, not yet in the snapshot
  int64_t sent_prompt_tokens = 0;

  // Circuit: after faults and refusals the worker is left alone for a while.
  int32_t faults = 0;      // in a row
  TimePoint not_before{};  // no new requests until then

  WorkerState State() const;
  CircuitState Circuit(TimePoint now) const;
  // Takes new requests now, but for its circuit.
  bool Usable() const { return listed && State() == WorkerState::kReady; }
};

class WorkerSet {
 public:
  struct Change {
    std::vector<WorkerId> added, removed;
  };
  // The whole list as discovered now.
  Change Relist(std::span<const WorkerAddress> addresses);

  Worker* Find(WorkerId id);
  const Worker* Find(WorkerId id) const;
  const std::vector<Worker>& all() const { return workers_; }
  std::vector<Worker>& all() { return workers_; }

  bool AnyUsable(const std::string& model) const;
  bool AnyLoading(const std::string& model) const;
  bool AnyConnected() const;
  // Whether a worker ever said that it has this model.
  bool Known(const std::string& model) const;

  static void ApplySnapshot(WorkerSnapshot snapshot, TimePoint now, Worker* worker);
  // Leaves the worker alone for base * 2^(faults in a row - 1), at most `limit`.
  static void RecordFault(TimePoint now, Duration base, Duration limit, Worker* worker);

 private:
  std::vector<Worker> workers_;  // by id
};

}  // namespace paceline

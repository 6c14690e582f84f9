// The router's logic as a machine that is stepped by events: client requests, what workers say, the
// clock. It does no I/O and takes no time itself; what it wants done comes out as actions.
// Single-threaded: the caller serialises all calls. `now` never runs backwards.
#pragma once

#include <map>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "router/core/admission.h"
#include "router/core/placement.h"
#include "router/core/request_record.h"
#include "router/core/router_action.h"
#include "router/core/router_probe.h"
#include "router/core/worker_set.h"

namespace paceline {

struct RouterOptions {
  AdmissionOptions admission;
  PlacementOptions placement;
  int32_t max_attempts = 4;           // lost in a row without a new token, then the request fails
  int64_t max_replay_tokens = 65536;  // prompt and output that a failover may prefill again
  Duration failover_timeout = std::chrono::seconds(10);  // wait for a worker when there is none
  Duration queue_timeout = std::chrono::seconds(30);     // wait while workers are full
  Duration silence_timeout = std::chrono::seconds(5);    // nothing heard: as good as lost
  Duration refusal_backoff = std::chrono::milliseconds(20);
  Duration fault_backoff = std::chrono::milliseconds(200);  // doubles with each fault in a row
  Duration fault_backoff_limit = std::chrono::seconds(10);
  Duration closing_timeout = std::chrono::milliseconds(250);  // for the usage of a stopped request
};

class RouterCore {
 public:
  RouterCore(RouterOptions options, RouterProbe* probe);  // probe may be null

  // Clients. Keys are the caller's, never used twice. Every Start is answered by one FinishAction.
  void Start(RequestKey key, ClientRequest request, TimePoint now);
  void CancelByClient(RequestKey key, TimePoint now);
  void Abort(RequestKey key, ServingError error, TimePoint now);

  // Workers. Unknown workers and handles are ignored: they are late.
  WorkerSet::Change Relist(std::span<const WorkerAddress> addresses, TimePoint now);
  void WorkerConnected(WorkerId worker, TimePoint now);
  void WorkerLost(WorkerId worker, const std::string& cause, TimePoint now);
  void WorkerReported(WorkerId worker, WorkerSnapshot snapshot, TimePoint now);
  void WorkerDelta(WorkerId worker, AttemptHandle handle, SampleDelta delta, TimePoint now);
  void WorkerFinished(WorkerId worker, AttemptHandle handle, const absl::Status& status,
                      const GenerationUsage& usage, TimePoint now);
  void SetWorkerDrain(WorkerId worker, bool drain, TimePoint now);

  // Refuses new requests from now on; those held finish.
  void StartDrain() { draining_ = true; }
  bool draining() const { return draining_; }

  void Tick(TimePoint now);
  TimePoint NextWake() const;  // when Tick has something to do; kNoDeadline = never

  std::vector<RouterAction> TakeActions();

  const WorkerSet& workers() const { return workers_; }
  const Admission& admission() const { return admission_; }
  size_t num_requests() const { return records_.size(); }
  bool Serving() const;  // a worker is ready, and this router is not draining

 private:
  enum class Loss : uint8_t { kWorker, kRefused, kFault };
  using WaitKey = std::tuple<int32_t, int32_t, int64_t, RequestKey>;

  std::optional<ServingError> Refuse(const ClientRequest& request, TimePoint now) const;
  bool SurelyUnknown(const std::string& model) const;
  std::optional<ServingError> CheckFit(const ClientRequest& request) const;
  void InitSamples(RequestRecord* r);
  RequestRecord* FindAttempt(WorkerId worker, AttemptHandle handle);
  static WaitKey WaitKeyOf(const RequestRecord& r);
  void Enqueue(RequestRecord* r, TimePoint now);
  bool TryPlace(RequestRecord* r, TimePoint now);
  void SubmitTo(const PlacementScore& score, RequestRecord* r, TimePoint now);
  void Detach(RequestRecord* r, bool cancel);
  void LoseAttempt(RequestRecord* r, Loss loss, const std::string& cause, TimePoint now);
  void LoseAllAt(WorkerId worker, const std::string& cause, TimePoint now);
  void HandleFailure(RequestRecord* r, const absl::Status& status, TimePoint now);
  std::string CheckDelta(const RequestRecord& r, const SampleDelta& delta) const;
  void NoteProgress(RequestRecord* r, TimePoint now);
  void ApplyDelta(RequestRecord* r, SampleDelta delta);
  void CloseIfDone(RequestRecord* r, TimePoint now);
  static ServingError LossError(const RequestRecord& r);
  static std::string Stage(const RequestRecord& r);
  ServingError WaitError(const RequestRecord& r, bool no_worker) const;
  void Complete(RequestRecord* r, GenerationUsage usage, TimePoint now);
  void Fail(RequestRecord* r, ServingError error, TimePoint now);
  void Remove(RequestRecord* r, FinishAction action);
  void ArmTimer(RequestRecord* r, TimePoint now);
  void OnTimer(RequestRecord* r, TimePoint now);
  TimePoint NoWorkerSince(const RequestRecord& r, TimePoint now) const;
  bool SilentTooLong(const Worker& worker, TimePoint now) const;
  void NoteUsable(TimePoint now);
  void Pump(TimePoint now);
  void Settle(TimePoint now);

  RouterOptions options_;
  RouterProbe* probe_;
  RouterProbe null_probe_;
  WorkerSet workers_;
  Admission admission_;
  bool draining_ = false;
  bool pump_wanted_ = false;
  int64_t next_order_ = 0;
  std::unordered_map<RequestKey, RequestRecord> records_;
  std::unordered_map<std::string, RequestKey> ids_;
  std::set<WaitKey> waiting_;
  std::set<std::pair<TimePoint, RequestKey>> timers_;
  std::map<std::string, TimePoint> last_usable_;  // by model
  std::vector<RouterAction> actions_;
  TimePoint last_now_{};
};

}  // namespace paceline

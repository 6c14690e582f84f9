// What the public API asks about workers besides placing requests on them: reports for operators,
// session tags, drain. The worker links implement it; tests fake it. Thread-safe.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "paceline/worker/v1/worker.pb.h"

namespace paceline {

class ClusterDirectory {
 public:
  virtual ~ClusterDirectory() = default;

  struct Member {
    std::string address;
    std::string role;                        // "target" or "draft"
    bool reached = false;                    // a report has come and its stream stands
    Duration report_age{};                   // of `report`
    worker::v1::WatchStatusResponse report;  // the newest; without prefix_chunks
  };
  // Targets, then draft workers, each by address.
  virtual std::vector<Member> Members() const = 0;

  // One worker's answer. `error` is OK or why it could not be asked (it then holds no entry).
  struct SessionsAt {
    std::string address;
    absl::Status error;
    std::vector<worker::v1::SessionBlocks> sessions;
  };
  // Asks every reachable target; `done` is called once, from any thread, within `limit`.
  virtual void ListSessions(Duration limit, std::function<void(std::vector<SessionsAt>)> done) = 0;
  // Tells every reachable target; `done` as above, with the first failure or OK.
  virtual void DeleteSession(const std::string& session_id, Duration limit,
                             std::function<void(absl::Status)> done) = 0;
  // NOT_FOUND: no such address. Targets stop getting requests at once, then are told.
  virtual void DrainWorker(const std::string& address, Duration limit,
                           std::function<void(absl::Status)> done) = 0;
};

}  // namespace paceline

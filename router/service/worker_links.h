// A router's links to all its workers: targets as discovery lists them, again and again and as a
// whole, and draft workers, of which it only knows the reports. One thread keeps the links' time,
// another waits for discovery. Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "router/core/discovery.h"
#include "router/service/cluster_directory.h"
#include "router/service/router_loop.h"
#include "router/service/worker_link.h"

namespace paceline {

struct WorkerLinksOptions {
  Duration relist_interval = std::chrono::seconds(5);
  WorkerLinkOptions link;
};

class WorkerLinks final : public ClusterDirectory {
 public:
  // Lists once before it returns. `drafts` may be null; the loop outlives this object, and is
  // stopped before it goes.
  WorkerLinks(RouterLoop* loop, std::unique_ptr<Discovery> targets,
              std::unique_ptr<Discovery> drafts, WorkerLinksOptions options = {});
  // Closes all links and waits for the answers that are out.
  ~WorkerLinks() override;

  // True once every link has brought a report or has failed; false after `limit`.
  bool AwaitTried(Duration limit);
  // Unix time of the last listing that succeeded; 0 = none.
  double last_listed_unix() const { return last_listed_; }

  std::vector<Member> Members() const override;
  void ListSessions(Duration limit, std::function<void(std::vector<SessionsAt>)> done) override;
  void DeleteSession(const std::string& session_id, Duration limit,
                     std::function<void(absl::Status)> done) override;
  void DrainWorker(const std::string& address, Duration limit,
                   std::function<void(absl::Status)> done) override;

 private:
  // Outlives the links: they call it a moment behind their end.
  struct Alarm {
    std::mutex mutex;
    std::condition_variable rung;
    bool due = false;
    void Ring();
  };
  // A link as the loop holds it, to hear when it lets go.
  class Port;
  struct Entry {
    std::shared_ptr<WorkerLink> link;
    WorkerId worker = kNoWorker;  // of a target; else a draft worker
    bool left = false;            // listed no longer, and let go by the loop
  };

  void RunTicks();
  void RunDiscovery();
  void List();
  void ListDrafts(const std::vector<WorkerAddress>& addresses);
  std::shared_ptr<WorkerLink> Add(const std::string& address, WorkerId worker);
  void LetGo(const WorkerLink* link);
  void CloseLeft();
  std::vector<Entry> Entries() const;
  std::vector<Entry> ReachedTargets() const;
  template <typename Request, typename Response, typename Start, typename Done>
  void Ask(std::shared_ptr<WorkerLink> link, Request request, Duration limit, Start start,
           Done done);

  RouterLoop* const loop_;
  const std::unique_ptr<Discovery> targets_, drafts_;
  const WorkerLinksOptions options_;
  const std::shared_ptr<Alarm> alarm_ = std::make_shared<Alarm>();
  std::atomic<double> last_listed_ = 0;
  std::atomic<bool> stopped_ = false;

  mutable std::mutex mutex_;
  std::condition_variable stop_, answered_;
  std::vector<Entry> entries_;
  int asking_ = 0;  // answers that are out
  std::thread ticker_, lister_;
};

}  // namespace paceline

// The draft engine's door: frames of targets come in on any thread, frames for targets go out on
// the engine's. Bounded per target: what does not fit is dropped, as if the network had lost it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "common/clock.h"
#include "worker/draft/draft_engine.h"

namespace paceline {

class DraftInbox {
 public:
  using TargetId = DraftEngine::TargetId;
  struct Mail {
    TargetId target = 0;
    TargetFrame frame;
  };
  struct Contents {
    std::vector<Mail> mail;  // in order of arrival
    std::vector<TargetId> detached;
  };

  // Thread-safe.
  TargetId Attach(DraftEngine::Sink sink);
  // When it returns, the sink is not being called and will not be.
  void Detach(TargetId target);
  void Deliver(TargetId target, TargetFrame frame);
  void Stop();
  bool stopped() const;

  // The engine's side. Moves everything to *contents (emptied first).
  void Drain(Contents* contents);
  // Calls the target's sink, unless it is detached.
  void Send(TargetId target, DraftFrame frame);
  std::vector<TargetId> Targets() const;
  // Blocks until something is there to drain, Stop, or the timeout.
  void WaitForWork(Duration timeout);

 private:
  struct Target {
    std::mutex mutex;  // held while the sink is called
    DraftEngine::Sink sink;
    int64_t waiting_tokens = 0;  // of frames not drained; under DraftInbox::mutex_
  };

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::unordered_map<TargetId, std::shared_ptr<Target>> targets_;
  Contents waiting_;
  TargetId next_id_ = 1;
  bool stopped_ = false;
};

}  // namespace paceline

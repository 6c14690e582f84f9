// WatchStatus: one thread reads the engine's numbers every few milliseconds and hands them to all
// watchers, when they changed or a second has passed. A watcher that reads slowly skips reports.
// Thread-safe.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/support/server_callback.h>

#include "common/clock.h"
#include "paceline/worker/v1/worker.pb.h"
#include "worker/service/process_state.h"

namespace paceline {

// Fills everything but info, ready and draining; prefix_chunks always. Any thread.
using StatusSource = std::function<void(worker::v1::WatchStatusResponse*)>;

struct StatusFeedOptions {
  Duration interval = std::chrono::milliseconds(20);
  Duration silence = std::chrono::seconds(1);
  Duration prefix_interval = std::chrono::milliseconds(100);  // between summaries to one watcher
};

class StatusFeed {
 public:
  StatusFeed(const ProcessState* state, StatusFeedOptions options = {});
  ~StatusFeed();

  void SetSource(StatusSource source);
  // Ends all watches; later ones end at once.
  void Stop();
  // The reactor of one watch; gRPC ends its life.
  grpc::ServerWriteReactor<worker::v1::WatchStatusResponse>* Watch();

 private:
  class Watcher;

  void Run();
  worker::v1::WatchStatusResponse Read();

  const ProcessState* const state_;
  const StatusFeedOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  StatusSource source_;
  std::vector<std::shared_ptr<Watcher>> watchers_;
  bool new_watcher_ = false;
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace paceline

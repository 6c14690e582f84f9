// Sends the requests of a workload to a router and times what comes back. Streams run on gRPC's
// callback threads, of which there are few however many requests are in flight.
//
// A closed loop keeps `concurrency` requests in flight; it ends early when nobody answers (64 times
// UNAVAILABLE in a row). An open loop starts each request at its
// arrival, whatever is still in flight, and counts its latencies from there: a stall of the cluster
// (or of this client) shows in the latencies of all requests that arrive during it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/channel.h>

#include "cli/bench/bench_mode.h"
#include "cli/bench/request_outcome.h"
#include "cli/bench/workload.h"
#include "common/clock.h"

namespace paceline {

// What all requests of a run have in common.
struct RequestSettings {
  std::string model;
  float temperature = 1, top_p = 1;
  int32_t top_k = 0;
  int32_t draft_length = 0;  // 0 = the worker's
  bool ignore_eos = false;
  BenchMode mode = BenchMode::kAuto;
  std::string cache_salt;
  Duration timeout = std::chrono::seconds(300);
};

struct LoadLimits {
  int64_t requests = 0;                 // of the workload, from its first
  int32_t concurrency = 0;              // closed loop; 0 = open loop, by the workload's arrivals
  Duration duration = Duration::max();  // closed loop: no request starts from then on
  // Once true no request starts any more; those in flight end as they would.
  const std::atomic<bool>* stop = nullptr;
};

struct LoadProgress {
  int64_t done = 0, failed = 0, in_flight = 0, output_tokens = 0;
  Duration elapsed{};
};

// Blocks until all requests have ended. `progress` is called on this thread a few times a second
// and once at the end. Outcomes are in the order of the workload; failures are outcomes too.
std::vector<RequestOutcome> RunLoad(const std::shared_ptr<grpc::Channel>& channel,
                                    const Workload& workload, const RequestSettings& settings,
                                    const LoadLimits& limits,
                                    const std::function<void(const LoadProgress&)>& progress);

}  // namespace paceline

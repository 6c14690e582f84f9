// The router's process: flags and wiring.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/process_end.h"

namespace paceline {

struct RouterFlags {
  std::string listen = "127.0.0.1:0", metrics_listen = "127.0.0.1:0", cluster_listen, workers,
              drafts, model, resume_key_file, log_level = "info";
  int32_t max_in_flight = 1024, max_queue = 1024, max_attempts = 4, max_outbox_tokens = 4096,
          text_threads = 2, callback_threads = 1, max_text_queue = 256, drain_timeout = 600;
  int64_t max_replay_tokens = 65536;
  double queue_timeout = 30, failover_timeout = 10, silence_timeout = 5;  // seconds
  bool debug_errors = false;
};

// "[NAME=]DIR,..." -> model name -> directory. INVALID_ARGUMENT: a name twice, a part missing.
absl::StatusOr<std::map<std::string, std::string>> ParseModels(const std::string& text);

// What no run could make good of. INVALID_ARGUMENT names the flag.
absl::Status CheckFlags(const RouterFlags& flags);

// From binding its ports to its clean end. An error is for the user.
absl::Status RunRouter(const RouterFlags& flags, ProcessEnd* end);

}  // namespace paceline

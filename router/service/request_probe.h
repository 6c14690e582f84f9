// What the public API tells about clients' calls, as intentions; the metrics library stays with
// whoever implements this. Called from gRPC's threads, text threads and the router's loop, at the
// same time: thread-safe, and must not block.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/types/generation.h"

namespace paceline {

// The end of one call of the public API.
struct RequestEnd {
  std::string method;  // "StreamGenerateText"
  std::string model;   // one that the cluster serves; empty where none was found
  absl::StatusCode code = absl::StatusCode::kOk;
  FinishReason finish =
      FinishReason::kNone;  // of a generation: the first sample's, or why it failed
  Duration total{};         // receipt to end

  // Generations only.
  bool generation = false;
  std::optional<Duration> first_token;            // receipt to the first token; none: no token came
  std::optional<Duration> time_per_output_token;  // first to last token over tokens - 1, per sample
  int32_t prompt_tokens = 0;
  int32_t output_tokens = 0;  // all samples
};

// Stages of the router's own time in a call.
enum class OverheadStage : uint8_t {
  kParse,     // proto to a checked request, without tokenizing
  kTokenize,  // text to ids
  kRoute,     // handed to the loop until it was submitted to a worker
  kForward,   // a worker's frame read until the write of one of its deltas began
};

class RequestProbe {
 public:
  virtual ~RequestProbe() = default;
  virtual void RequestEnded(const RequestEnd& end) {}
  virtual void FirstToken(const std::string& model, Duration since_receipt) {}
  // Later tokens of one sample that came together, so long after the ones before.
  virtual void NextTokens(const std::string& model, Duration since_last, int32_t tokens) {}
  virtual void Overhead(OverheadStage stage, Duration spent) {}
  // All of the router's own time until the first tokens of a request that did not wait for a
  // worker: receipt until it was submitted, and their frame read until their write began.
  virtual void RequestOverhead(Duration spent) {}
};

}  // namespace paceline

// What the router core wants done, in order. Plain values: the service carries them out, a
// simulation looks at them.
#pragma once

#include <optional>
#include <string>
#include <variant>

#include "common/types/generation.h"
#include "router/core/request_record.h"
#include "router/core/serving_error.h"

namespace paceline {

struct SubmitAction {
  WorkerId worker = kNoWorker;
  AttemptHandle handle = 0;
  GenerationRequest request;
};

struct CancelAction {
  WorkerId worker = kNoWorker;
  AttemptHandle handle = 0;
};

// New tokens for the client. The first one of a request makes its head: what the first message says
// besides tokens.
struct DeliverAction {
  RequestKey key = 0;
  bool first = false;
  std::string fingerprint;  // with `first`
  std::string worker;       // its address, with `first`
  SampleDelta delta;
  std::string text;  // of delta.tokens, as far as it is whole
};

// The last word on a request. No action of this request follows.
struct FinishAction {
  RequestKey key = 0;
  std::optional<ServingError> error;
  std::string fingerprint;
  GenerationUsage usage;  // times from the request's arrival at this router
  int32_t failovers = 0;
  bool exact = true;  // after a failover or resume: equal numerics; else within rounding
};

using RouterAction = std::variant<SubmitAction, CancelAction, DeliverAction, FinishAction>;

}  // namespace paceline

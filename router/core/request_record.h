// All that a router keeps of a request in flight, and all that another worker needs to go on with
// it. Prompt and emitted ids stay apart: an output never becomes prompt, so that penalties, limits
// and logprobs do not shift when a request moves.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/types/generation.h"
#include "router/core/sample_text.h"
#include "router/core/worker_snapshot.h"

namespace paceline {

using RequestKey = uint64_t;  // unique within this router's life; below 2^48

// Names one attempt of a request at a worker. A late message of an earlier attempt bears another.
using AttemptHandle = uint64_t;
inline AttemptHandle MakeHandle(RequestKey key, uint16_t attempt) { return key << 16 | attempt; }
inline RequestKey KeyOf(AttemptHandle handle) { return handle >> 16; }

// A checked request of a client.
struct ClientRequest {
  std::string model;
  // With request_id, seed and deadline set. `resumed` is what the client already has.
  GenerationRequest generation;
  std::string tokenizer;           // fingerprint; where ids mean another text it may not run
  std::string resume_fingerprint;  // numerics that made `resumed`; empty for a fresh request
  TimePoint received{};            // when the call came in, for the router's own time
  // Null where no text is wanted (then there are no stop strings either).
  std::function<std::unique_ptr<SampleText>()> make_text;
};

struct SampleRecord {
  std::vector<TokenId> emitted;
  FinishReason finish = FinishReason::kNone;
  bool stopped_here = false;  // by a stop string: the worker does not know and may go on
  std::unique_ptr<SampleText> text;
};

enum class RequestState : uint8_t {
  kWaiting,  // for a worker
  kRunning,  // at `worker`
  kClosing,  // every sample has finished; the worker's last word (usage) is still out
};

struct RequestRecord {
  RequestKey key = 0;
  ClientRequest request;
  std::vector<uint64_t> prefix_hashes;
  std::vector<SampleRecord> samples;
  RequestState state = RequestState::kWaiting;

  WorkerId worker = kNoWorker;
  uint16_t attempt = 0;         // number of the newest submit
  int32_t fruitless = 0;        // attempts lost in a row without a new token
  std::vector<WorkerId> avoid;  // refused or lost it since the last token
  std::string last_cause;

  bool head_sent = false;   // the client has had a message
  std::string fingerprint;  // numerics of the tokens so far; empty = none yet
  bool exact = true;        // all tokens came from equal numerics
  int32_t failovers = 0;
  int64_t sent_tokens = 0;  // to the client, by this router

  TimePoint arrived{}, waiting_since{}, submitted{}, first_token{}, lost_at{};
  bool orphan = false;  // lost its worker; the next submit is a failover
  bool last_was_fault = false;
  TimePoint timer = kNoDeadline;
  int64_t wait_order = 0;  // place in the queue

  AttemptHandle handle() const { return MakeHandle(key, attempt); }
  int64_t emitted_tokens() const {
    int64_t n = 0;
    for (const SampleRecord& s : samples) n += static_cast<int64_t>(s.emitted.size());
    return n;
  }
  bool AllFinished() const {
    for (const SampleRecord& s : samples) {
      if (s.finish == FinishReason::kNone) return false;
    }
    return true;
  }
  // What goes to a worker: the request with what every sample has emitted so far.
  GenerationRequest ToSubmit() const;
};

}  // namespace paceline

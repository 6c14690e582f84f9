// How a target speculates: the speculator of --speculation and --draft-strategy, and its draft
// workers.
#pragma once

#include <functional>
#include <memory>

#include "common/clock.h"
#include "worker/service/draft_pairing.h"
#include "worker/spec/spec_counters.h"
#include "worker/spec/speculator.h"
#include "worker/worker_process.h"

namespace paceline {

struct Drafting {
  std::unique_ptr<Speculator> speculator;         // for the engine; null = never
  std::function<const SpecCounters&()> counters;  // engine thread; null with it
  // Connects the draft workers of --draft; what it returns is dropped before the engine is. Null
  // with the speculator.
  std::function<std::shared_ptr<void>(const draft::v1::Hello& hello,
                                      std::function<void(Duration)> round_trip)>
      connect;
};

Drafting MakeDrafting(const WorkerFlags& flags, const RunnerInfo& info);

}  // namespace paceline

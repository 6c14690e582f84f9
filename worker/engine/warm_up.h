// The first steps of a fresh runner, before anybody waits for one: they touch weights and working
// memory for the first time and take several times as long as later ones.
#pragma once

#include "absl/status/status.h"
#include "common/clock.h"
#include "worker/engine/engine.h"
#include "worker/runner/runner.h"

namespace paceline {

// Runs one short request through an engine of its own: a chunk of prefill and a few decodes. The
// runner is left as it was for the engine to come, which takes every block for free and binds every
// slot. Steps keep to the options' rows and chunks. An error is a fault of the runner.
absl::Status WarmUp(Runner* runner, const EngineOptions& options, const Clock& clock);

}  // namespace paceline

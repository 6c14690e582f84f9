// What the draft service tells about itself while it runs. Called on gRPC's threads and on the
// draft engine's; must not block.
#pragma once

#include <cstdint>

#include "common/clock.h"

namespace paceline {

class DraftProbe {
 public:
  virtual ~DraftProbe() = default;
  // A proposal of `length` tokens in its longest branch goes out, so long after the commit it
  // answers; `wanted` were asked for.
  virtual void Proposed(Duration since_commit, int32_t length, int32_t wanted) {}
};

}  // namespace paceline

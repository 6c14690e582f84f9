// Durations on the wire.
#pragma once

#include <google/protobuf/duration.pb.h>

#include "absl/status/statusor.h"
#include "common/clock.h"

namespace paceline {

void ToProto(Duration duration, google::protobuf::Duration* proto);

// INVALID_ARGUMENT: nanoseconds out of range, of another sign than the seconds, or a time beyond
// the 292 years that a Duration holds.
absl::StatusOr<Duration> FromProto(const google::protobuf::Duration& proto);

}  // namespace paceline

// One HTTP request, for metrics pages.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"

namespace paceline {

// The body of a GET of `path` at `address` (host:port; [v6]:port) by HTTP/1.0. UNAVAILABLE: nobody
// there, no answer within `limit`, a status other than 200, or a body beyond 64 MiB.
// INVALID_ARGUMENT: no host:port.
absl::StatusOr<std::string> HttpGet(const std::string& address, const std::string& path,
                                    Duration limit);

}  // namespace paceline

// Structured logs on standard error: one line per event, "level component message key=value ...".
// Thread-safe. The component names the process ("router", "target", "draft").
#pragma once

#include <string>

#include <spdlog/spdlog.h>

namespace paceline {

// Called once at the start of main. `level` is one of trace, debug, info, warn, error, off.
void InitLogging(const std::string& component, const std::string& level);

}  // namespace paceline

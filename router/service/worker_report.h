// What a worker reports of itself -> what the router's core keeps of it.
#pragma once

#include <string>

#include "paceline/worker/v1/worker.pb.h"
#include "router/core/worker_snapshot.h"

namespace paceline {

// Why the report makes no sense from a worker of this role, in words; empty: it does.
std::string CheckReport(const worker::v1::WatchStatusResponse& report, const std::string& role);

// Of a report that makes sense.
WorkerSnapshot ToSnapshot(const worker::v1::WatchStatusResponse& report);

}  // namespace paceline

// What a client sees of a ServingError: google.rpc.Status with its details, and retry pushback.
#pragma once

#include <grpcpp/server_context.h>

#include "absl/status/status.h"
#include "router/core/serving_error.h"

namespace paceline {

// Words that came from a client are cut where the status would not fit into HTTP/2 headers.
// `with_debug`: DebugInfo too.
grpc::Status ToGrpcStatus(const ServingError& error, bool with_debug = false);

// grpc-retry-pushback-ms (gRFC A6), where the error says so. Before the call is finished.
void AddRetryPushback(const ServingError& error, grpc::ServerContextBase* context);

// Fields as the core and the workers name them -> as GenerationSpec does, for BadRequest.
ServingError WithPublicFields(ServingError error);

}  // namespace paceline

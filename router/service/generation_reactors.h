// The two ways in which a client gets a generation: as a stream, and in one message.
#pragma once

#include <memory>

#include "paceline/v1/inference.grpc.pb.h"
#include "router/service/generation_call.h"

namespace paceline {

// The reactors begin the call at once and delete themselves when gRPC is done with them. `request`
// lives until then, as gRPC's do.
grpc::ServerWriteReactor<v1::StreamGenerateTextResponse>* NewStreamReactor(
    const ApiContext* api, grpc::CallbackServerContext* context,
    const v1::StreamGenerateTextRequest* request);

grpc::ServerWriteReactor<v1::ResumeGenerateTextResponse>* NewResumeReactor(
    const ApiContext* api, grpc::CallbackServerContext* context,
    const v1::ResumeGenerateTextRequest* request);

grpc::ServerUnaryReactor* NewUnaryReactor(const ApiContext* api,
                                          grpc::CallbackServerContext* context,
                                          const v1::GenerateTextRequest* request,
                                          v1::GenerateTextResponse* response);

}  // namespace paceline

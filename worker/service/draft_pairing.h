// Whether a target and a drafter may talk: compared by both sides in the first frame.
#pragma once

#include <grpcpp/support/status.h>

#include "paceline/draft/v1/draft.pb.h"
#include "paceline/worker/v1/worker.pb.h"

namespace paceline {

draft::v1::Hello MakeHello(const worker::v1::WorkerInfo& info);

// FAILED_PRECONDITION names what differs: tokenizer or sampler version. INVALID_ARGUMENT: a hello
// that no worker would send.
grpc::Status CheckPairing(const draft::v1::Hello& mine, const draft::v1::Hello& theirs);

}  // namespace paceline

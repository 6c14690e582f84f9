// The values of a generation -> the public API's messages.
#pragma once

#include <string>

#include "common/types/generation.h"
#include "paceline/v1/inference.pb.h"
#include "router/core/router_action.h"

namespace paceline {

v1::FinishReason ToPublic(FinishReason reason);
v1::SampleDelta ToPublic(const SampleDelta& delta, std::string text);
v1::GenerationSummary ToPublicSummary(const FinishAction& finish);

// Moves *next behind *last, where both are of one sample and nothing lies between.
bool MergeDeltas(v1::SampleDelta* last, v1::SampleDelta* next);

// Puts `delta` behind what `sample` has.
void AppendDelta(v1::SampleDelta delta, v1::SampleOutput* sample);

}  // namespace paceline

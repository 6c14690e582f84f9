// The draft protocol's messages <-> values. A peer is a stranger: what makes no sense in a frame
// costs the session it names, never the frame.
#pragma once

#include <vector>

#include "common/types/draft_messages.h"
#include "paceline/draft/v1/draft.pb.h"

namespace paceline {

// Fills opens, commits and closes only.
void ToProto(const TargetFrame& frame, draft::v1::OpenStreamRequest* proto);
// Malformed parts (tokens that are no whole number of ids, unpaired bias, an over-long salt) are
// left out; their sessions are appended to *refused as kInvalid.
TargetFrame FromProto(const draft::v1::OpenStreamRequest& proto, std::vector<DraftNack>* refused);

// Fills proposals, nacks and load.
void ToProto(const DraftFrame& frame, draft::v1::OpenStreamResponse* proto);
// A malformed proposal comes out without branches, which its receiver counts as nonsense.
DraftFrame FromProto(const draft::v1::OpenStreamResponse& proto);

}  // namespace paceline

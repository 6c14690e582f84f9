// What a client has of a stream that broke -> where its request goes on.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "paceline/v1/inference.pb.h"
#include "router/core/resume_token.h"
#include "router/core/serving_error.h"
#include "router/service/generation_parser.h"

namespace paceline {

// The end of a sample whose tokens the client has all, and that it has not been told, or text of
// them that it lacks. For the client only; the core knows that the sample has ended.
struct OpenEnd {
  int32_t sample = 0;
  int32_t token_count = 0;
  std::string text;
  FinishReason finish = FinishReason::kNone;
};

// Gives *parsed, whose prompt is filled in, the seed, numerics, progress and texts of the broken
// stream. Replays texts: on a text thread where they are long.
// RESUME_TOKEN_INVALID: forged, expired, or of another request; INVALID_FIELD: `received`.
std::optional<ServingError> ApplyResume(const v1::ResumeGenerateTextRequest& request,
                                        const ResumeTokenCodec& codec, int64_t now_unix_sec,
                                        int64_t max_age_sec, ParsedGeneration* parsed,
                                        std::vector<OpenEnd>* ends);

}  // namespace paceline

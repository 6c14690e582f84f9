#include "router/core/request_record.h"

namespace paceline {

GenerationRequest RequestRecord::ToSubmit() const {
  GenerationRequest submit = request.generation;
  submit.resumed.clear();
  bool fresh = true;
  for (const SampleRecord& s : samples) {
    fresh = fresh && s.emitted.empty() && s.finish == FinishReason::kNone;
  }
  if (fresh) return submit;
  for (const SampleRecord& s : samples) submit.resumed.push_back({s.emitted, s.finish});
  return submit;
}

}  // namespace paceline

// For builds without worker/spec and worker/draft: a target that never speculates.

#include "worker/drafting.h"

namespace paceline {

Drafting MakeDrafting(const WorkerFlags&, const RunnerInfo&) { return {}; }

absl::Status RunDraft(const WorkerFlags&, ProcessEnd*) {
  return absl::UnimplementedError("--role=draft: this build has no draft engine");
}

}  // namespace paceline

// For builds without worker/spec and worker/draft: a target that never speculates.

#include "common/log.h"
#include "worker/drafting.h"

namespace paceline {

Drafting MakeDrafting(const WorkerFlags& flags, const RunnerInfo&) {
  if (!flags.draft.empty()) {
    spdlog::warn("--draft={} is not used: this build has no speculation", flags.draft);
  }
  return {};
}

absl::Status RunDraft(const WorkerFlags&, ProcessEnd*) {
  return absl::UnimplementedError("--role=draft: this build has no draft engine");
}

}  // namespace paceline

// What a turn of the draft engine has to say, target by target. Engine thread.
#pragma once

#include <map>
#include <utility>

#include "worker/draft/draft_engine.h"

namespace paceline {

class DraftOutbox {
 public:
  using Frames = std::map<DraftEngine::TargetId, DraftFrame>;

  void Nack(DraftEngine::TargetId target, DraftNack nack) { frames_[target].nacks.push_back(nack); }
  void Propose(DraftEngine::TargetId target, DraftProposal proposal) {
    frames_[target].proposals.push_back(std::move(proposal));
  }
  Frames Take() { return std::exchange(frames_, {}); }

 private:
  Frames frames_;
};

}  // namespace paceline

// A DraftLink whose frames lie in a queue, for tests. One thread.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "worker/spec/draft_link.h"

namespace paceline {

class QueueLink final : public DraftLink {
 public:
  explicit QueueLink(std::string name) : name_(std::move(name)) {}

  const std::string& name() const override { return name_; }
  DraftLinkStatus status() const override { return now; }
  bool Send(uint64_t incarnation, TargetFrame frame) override {
    if (incarnation != now.incarnation || now.state == DraftLinkState::kDown || full) return false;
    frames.push_back(std::move(frame));
    return true;
  }
  // Everything sent since the last call, as one frame.
  TargetFrame TakeAll() {
    TargetFrame all;
    for (TargetFrame& f : frames) {
      all.opens.insert(all.opens.end(), f.opens.begin(), f.opens.end());
      all.commits.insert(all.commits.end(), f.commits.begin(), f.commits.end());
      all.closes.insert(all.closes.end(), f.closes.begin(), f.closes.end());
    }
    frames.clear();
    return all;
  }
  void Restart() {
    ++now.incarnation;
    now.state = DraftLinkState::kUp;
  }

  DraftLinkStatus now{.state = DraftLinkState::kUp, .incarnation = 1};
  bool full = false;
  std::vector<TargetFrame> frames;

 private:
  const std::string name_;
};

}  // namespace paceline

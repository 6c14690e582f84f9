// Streams between simulated targets and draft workers: frames are delayed, lost, repeated,
// overtaken and corrupted as the options say; a drafter's death ends its streams, its return makes
// new ones.
#pragma once

#include <memory>
#include <random>
#include <string>

#include "tests/sim/virtual_time.h"
#include "worker/draft/draft_engine.h"
#include "worker/spec/draft_link.h"
#include "worker/spec/draft_speculator.h"

namespace paceline {

struct SimWireOptions {
  Duration delay = std::chrono::microseconds(200);
  Duration jitter = std::chrono::microseconds(300);
  double lose = 0, repeat = 0, overtake = 0, corrupt = 0;  // shares of frames, per direction
};

// A draft worker's process.
struct SimDrafter {
  std::string name;
  std::unique_ptr<DraftEngine> engine;  // null: dead
  int life = 0;
  bool paused = false;
  ManualClock clock;  // its own: moves on within a step
};

class SimDraftLink final : public DraftLink {
 public:
  // All outlive the link.
  SimDraftLink(SimDrafter* drafter, VirtualTime* time, std::mt19937_64* rng,
               const SimWireOptions* options);

  // Where the drafter's frames go; set before the first Connect.
  void SetMailbox(DraftMailbox* mailbox, DraftLinkId id);

  const std::string& name() const override { return drafter_->name; }
  DraftLinkStatus status() const override { return {.state = state_, .incarnation = incarnation_}; }
  bool Send(uint64_t incarnation, TargetFrame frame) override;

  // A new stream to the drafter, if it lives.
  void Connect();
  // The stream breaks. `drafter_lives`: it hears of it too.
  void Break(bool drafter_lives);
  void SetDraining(bool draining);

 private:
  bool Chance(double p) { return std::uniform_real_distribution<>(0, 1)(*rng_) < p; }
  Duration Delay();
  void Carry(TimePoint from, TimePoint* line_free, const std::function<void()>& arrive);
  void Receive(uint64_t incarnation, DraftFrame frame);
  void Corrupt(TargetFrame* frame);
  void Corrupt(DraftFrame* frame);

  SimDrafter* const drafter_;
  VirtualTime* const time_;
  std::mt19937_64* const rng_;
  const SimWireOptions* const options_;
  DraftMailbox* mailbox_ = nullptr;
  DraftLinkId id_ = 0;
  DraftLinkState state_ = DraftLinkState::kDown;
  uint64_t incarnation_ = 0;
  DraftEngine::TargetId target_ = 0;
  TimePoint to_drafter_free_{}, to_target_free_{};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // false: the link is gone

 public:
  ~SimDraftLink() override { *alive_ = false; }
};

}  // namespace paceline

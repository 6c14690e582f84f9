#include "tests/sim/sim_draft_wire.h"

#include <algorithm>

namespace paceline {

SimDraftLink::SimDraftLink(SimDrafter* drafter, VirtualTime* time, std::mt19937_64* rng,
                           const SimWireOptions* options)
    : drafter_(drafter), time_(time), rng_(rng), options_(options) {}

void SimDraftLink::SetMailbox(DraftMailbox* mailbox, DraftLinkId id) {
  mailbox_ = mailbox;
  id_ = id;
}

Duration SimDraftLink::Delay() {
  return options_->delay +
         Duration(std::uniform_int_distribution<int64_t>(0, options_->jitter.count())(*rng_));
}

// In order, unless the frame overtakes.
void SimDraftLink::Carry(TimePoint from, TimePoint* line_free,
                         const std::function<void()>& arrive) {
  if (Chance(options_->lose)) return;
  for (int copies = Chance(options_->repeat) ? 2 : 1; copies > 0; --copies) {
    TimePoint at = from + Delay();
    if (!Chance(options_->overtake)) *line_free = at = std::max(at, *line_free);
    time_->At(at, [alive = alive_, arrive] {
      if (*alive) arrive();
    });
  }
}

bool SimDraftLink::Send(uint64_t incarnation, TargetFrame frame) {
  if (state_ == DraftLinkState::kDown || incarnation != incarnation_) return false;
  if (Chance(options_->corrupt)) Corrupt(&frame);
  Carry(time_->Now(), &to_drafter_free_, [this, incarnation, frame = std::move(frame)] {
    if (incarnation == incarnation_ && drafter_->engine != nullptr) {
      drafter_->engine->Deliver(target_, frame);
    }
  });
  return true;
}

void SimDraftLink::Connect() {
  if (drafter_->engine == nullptr || state_ != DraftLinkState::kDown) return;
  const uint64_t incarnation = ++incarnation_;
  state_ = DraftLinkState::kUp;
  target_ = drafter_->engine->AttachTarget([this, alive = alive_, incarnation](DraftFrame frame) {
    if (*alive) Receive(incarnation, std::move(frame));
  });
}

void SimDraftLink::Receive(uint64_t incarnation, DraftFrame frame) {
  if (incarnation != incarnation_ || state_ == DraftLinkState::kDown) return;
  if (Chance(options_->corrupt)) Corrupt(&frame);
  Carry(std::max(time_->Now(), drafter_->clock.Now()), &to_target_free_,
        [this, incarnation, frame = std::move(frame)] {
          mailbox_->Deliver(id_, incarnation, frame);
        });
}

void SimDraftLink::Break(bool drafter_lives) {
  if (state_ == DraftLinkState::kDown) return;
  state_ = DraftLinkState::kDown;
  if (drafter_lives && drafter_->engine != nullptr) drafter_->engine->DetachTarget(target_);
}

void SimDraftLink::SetDraining(bool draining) {
  if (state_ == DraftLinkState::kDown) return;
  state_ = draining ? DraftLinkState::kDraining : DraftLinkState::kUp;
}

// One field of one part of the frame becomes nonsense.
void SimDraftLink::Corrupt(TargetFrame* frame) {
  const auto nonsense = static_cast<int32_t>((*rng_)() % 4096) - 1024;
  if (!frame->commits.empty()) {
    DraftCommit& c = frame->commits[(*rng_)() % frame->commits.size()];
    switch ((*rng_)() % 5) {
      case 0:
        c.base_len += nonsense;
        break;
      case 1:
        c.new_tokens.push_back(nonsense);
        break;
      case 2:
        c.prefix_hash ^= 1;
        break;
      case 3:
        c.in_flight.push_back(nonsense);
        break;
      default:
        c.want_len = nonsense;
    }
  } else if (!frame->opens.empty()) {
    DraftOpen& o = frame->opens[(*rng_)() % frame->opens.size()];
    if (o.tokens.empty() || (*rng_)() % 2 == 0) {
      o.prompt_len = nonsense;
    } else {
      o.tokens[(*rng_)() % o.tokens.size()] = nonsense;
    }
  }
}

void SimDraftLink::Corrupt(DraftFrame* frame) {
  if (frame->proposals.empty()) return;
  const auto nonsense = static_cast<int32_t>((*rng_)() % 4096) - 1024;
  DraftProposal& p = frame->proposals[(*rng_)() % frame->proposals.size()];
  switch ((*rng_)() % 5) {
    case 0:
      p.base_len += nonsense;
      break;
    case 1:
      p.prefix_hash ^= 1;
      break;
    case 2:
      p.id.epoch += 1;
      break;
    case 3:
      p.branches.push_back({.accepted = nonsense, .next = nonsense, .tokens = {nonsense}});
      break;
    default:
      for (DraftBranch& b : p.branches) {
        if (!b.tokens.empty()) b.tokens[(*rng_)() % b.tokens.size()] = nonsense;
      }
  }
}

}  // namespace paceline

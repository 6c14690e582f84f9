#include "worker/spec/drafter_table.h"

#include <algorithm>
#include <cmath>

#include "common/hash.h"

namespace paceline {
namespace {

constexpr uint64_t kFirstBackoff = 64;  // steps; doubles up to ...
constexpr int32_t kMaxRefusals = 7;

constexpr int32_t kPatientSteps = 16;
constexpr Duration kPrefillPerToken = std::chrono::milliseconds(1);  // of a slow drafter

// A drafter takes its even share times this, and a few sessions more, before others are preferred.
constexpr double kDrafterOverload = 1.25;
constexpr int32_t kFewSessions = 8;

// Sessions of all targets. Its report may be older than what we have opened since.
int32_t SessionsAt(const Drafter& drafter) {
  return std::max(drafter.sessions, drafter.load.sessions);
}

}  // namespace

DraftLinkId DrafterTable::Add(std::shared_ptr<DraftLink> link) {
  std::lock_guard lock(mutex_);
  const DraftLinkId id = next_id_++;
  changes_.push_back({.id = id, .link = std::move(link)});
  changed_ = true;
  return id;
}

void DrafterTable::Remove(DraftLinkId id) {
  std::lock_guard lock(mutex_);
  changes_.push_back({.id = id});
  changed_ = true;
}

void DrafterTable::TakeChanges() {
  if (!changed_) return;
  std::vector<Change> changes;
  {
    std::lock_guard lock(mutex_);
    changes.swap(changes_);
    changed_ = false;
  }
  for (Change& change : changes) {
    if (change.link == nullptr) {
      std::erase_if(drafters_, [&](const Drafter& d) { return d.id == change.id; });
      continue;
    }
    Drafter& drafter = drafters_.emplace_back();
    drafter.id = change.id;
    drafter.name_hash = HashBytes(change.link->name());
    drafter.link = std::move(change.link);
  }
}

void DrafterTable::Refresh(const DraftMailbox& mailbox) {
  TakeChanges();
  for (Drafter& drafter : drafters_) {
    const DraftLinkStatus now = drafter.link->status();
    if (now.incarnation != drafter.status.incarnation || now.state == DraftLinkState::kDown) {
      drafter.sessions = drafter.asked = 0;
      drafter.frame = {};
    }
    if (now.incarnation != drafter.status.incarnation) {
      drafter.refused_until = 0;
      drafter.silent = drafter.on_trial = false;
      drafter.unanswered = drafter.owed = drafter.silences = 0;
    }
    drafter.status = now;
    drafter.load = mailbox.load(drafter.id);
    drafter.frames = mailbox.num_frames(drafter.id);
  }
}

int32_t DrafterTable::EndStep(uint64_t step, TimePoint now) {
  int32_t fell = 0;
  for (Drafter& drafter : drafters_) {
    if (FallsSilent(&drafter, now)) {
      ++fell;
      drafter.silent = true;
      drafter.on_trial = false;
      drafter.refused_until = step + (kFirstBackoff << drafter.silences);
      drafter.silences = std::min(drafter.silences + 1, kMaxRefusals);
      drafter.unanswered = drafter.owed = 0;
    }
    drafter.asking = std::exchange(drafter.asked, 0);
  }
  last_step_ = now;
  return fell;
}

bool DrafterTable::FallsSilent(Drafter* drafter, TimePoint now) {
  if (drafter->frames != drafter->answered) {
    drafter->answered = drafter->frames;
    if (drafter->silent) drafter->refused_until = 0;
    drafter->silent = drafter->on_trial = false;
    drafter->unanswered = drafter->owed = drafter->silences = 0;
    return false;
  }
  // Its sessions may end before its time is up, and others begin: it has still not answered.
  if (drafter->sessions == 0) drafter->owed = 0;
  if (drafter->asked == 0 || drafter->silent) return false;
  if (drafter->unanswered++ == 0) {
    drafter->unanswered_for = {};
  } else if (drafter->asking > 0) {
    drafter->unanswered_for += now - last_step_;
  }
  const Duration patience =
      (patience_ + drafter->owed * kPrefillPerToken) * (1 << drafter->silences);
  return drafter->unanswered > kPatientSteps && drafter->unanswered_for >= patience;
}

Drafter* DrafterTable::Find(DraftLinkId id, uint64_t incarnation) {
  for (Drafter& drafter : drafters_) {
    if (drafter.id != id) continue;
    return drafter.up() && drafter.status.incarnation == incarnation ? &drafter : nullptr;
  }
  return nullptr;
}

bool DrafterTable::AnyUp() const {
  return std::ranges::any_of(drafters_, [](const Drafter& d) { return d.up(); });
}

// Rendezvous hashing with bounded loads: the drafter of highest score that is not above its share.
Drafter* DrafterTable::Pick(uint64_t key, uint64_t step) {
  const auto takes = [&](const Drafter& d) {
    return d.status.state == DraftLinkState::kUp && step >= d.refused_until &&
           ((!d.silent && !d.on_trial) || d.sessions == 0);
  };
  int32_t total = 1;
  int32_t taking = 0;
  for (const Drafter& d : drafters_) {
    if (!takes(d)) continue;
    total += SessionsAt(d);
    ++taking;
  }
  if (taking == 0) return nullptr;
  const double share = kFewSessions + std::ceil(kDrafterOverload * total / taking);
  Drafter* best = nullptr;
  uint64_t best_score = 0;
  for (Drafter& d : drafters_) {
    if (!takes(d) || SessionsAt(d) >= share) continue;
    const uint64_t score = HashCombine(key, d.name_hash);
    if (best != nullptr && score <= best_score) continue;
    best = &d;
    best_score = score;
  }
  if (best != nullptr && std::exchange(best->silent, false)) best->on_trial = true;
  return best;
}

void DrafterTable::Refused(Drafter* drafter, uint64_t step) {
  if (step < drafter->refused_until) return;  // known
  const uint64_t last = kFirstBackoff << drafter->refusals;
  const bool again = step < drafter->refused_until + 2 * last && drafter->refused_until > 0;
  drafter->refusals = again ? std::min(drafter->refusals + 1, kMaxRefusals) : 0;
  drafter->refused_until = step + (kFirstBackoff << drafter->refusals);
}

void DrafterTable::Flush(uint64_t step, std::vector<uint64_t>* lost) {
  for (Drafter& drafter : drafters_) {
    if (drafter.frame.empty()) continue;
    TargetFrame frame = std::exchange(drafter.frame, {});
    drafter.frame.commits.reserve(frame.commits.size());  // the next is much like this one
    std::vector<uint64_t>& sessions = flushing_;
    sessions.clear();
    for (const DraftOpen& open : frame.opens) sessions.push_back(open.id.session);
    for (const DraftCommit& commit : frame.commits) sessions.push_back(commit.id.session);
    std::vector<DraftClose> closes = frame.closes;
    if (drafter.link->Send(drafter.status.incarnation, std::move(frame))) continue;
    lost->insert(lost->end(), sessions.begin(), sessions.end());
    // Where the stream lives on, what was to end still has to.
    drafter.frame.closes = std::move(closes);
    Refused(&drafter, step);
  }
}

}  // namespace paceline

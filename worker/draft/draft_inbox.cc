#include "worker/draft/draft_inbox.h"

#include <utility>

namespace paceline {
namespace {

// Ids that one target may have waiting, messages counted as a few each.
constexpr int64_t kMaxWaitingTokens = 16 << 20;
constexpr int64_t kMessageTokens = 16;

int64_t Cost(const TargetFrame& frame) {
  int64_t cost = kMessageTokens;
  for (const DraftOpen& open : frame.opens) {
    cost += kMessageTokens + static_cast<int64_t>(open.tokens.size());
  }
  for (const DraftCommit& commit : frame.commits) {
    cost +=
        kMessageTokens + static_cast<int64_t>(commit.new_tokens.size() + commit.in_flight.size());
  }
  return cost + kMessageTokens * static_cast<int64_t>(frame.closes.size());
}

}  // namespace

DraftInbox::TargetId DraftInbox::Attach(DraftEngine::Sink sink) {
  auto target = std::make_shared<Target>();
  target->sink = std::move(sink);
  std::lock_guard lock(mutex_);
  targets_.emplace(next_id_, std::move(target));
  return next_id_++;
}

void DraftInbox::Detach(TargetId id) {
  std::shared_ptr<Target> target;
  {
    std::lock_guard lock(mutex_);
    const auto it = targets_.find(id);
    if (it == targets_.end()) return;
    target = std::move(it->second);
    targets_.erase(it);
    waiting_.detached.push_back(id);
  }
  work_.notify_one();
  DraftEngine::Sink dropped;
  std::lock_guard lock(target->mutex);
  dropped.swap(target->sink);
}

void DraftInbox::Deliver(TargetId id, TargetFrame frame) {
  const int64_t cost = Cost(frame);
  {
    std::lock_guard lock(mutex_);
    const auto it = targets_.find(id);
    if (it == targets_.end()) return;
    Target& target = *it->second;
    if (target.waiting_tokens + cost > kMaxWaitingTokens) return;
    target.waiting_tokens += cost;
    waiting_.mail.push_back({.target = id, .frame = std::move(frame)});
  }
  work_.notify_one();
}

void DraftInbox::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  work_.notify_all();
}

bool DraftInbox::stopped() const {
  std::lock_guard lock(mutex_);
  return stopped_;
}

void DraftInbox::Drain(Contents* contents) {
  contents->mail.clear();
  contents->detached.clear();
  std::lock_guard lock(mutex_);
  std::swap(*contents, waiting_);
  for (const Mail& mail : contents->mail) {
    if (const auto it = targets_.find(mail.target); it != targets_.end()) {
      it->second->waiting_tokens = 0;
    }
  }
}

void DraftInbox::Send(TargetId id, DraftFrame frame) {
  std::shared_ptr<Target> target;
  {
    std::lock_guard lock(mutex_);
    const auto it = targets_.find(id);
    if (it == targets_.end()) return;
    target = it->second;
  }
  std::lock_guard lock(target->mutex);
  if (target->sink) target->sink(std::move(frame));
}

std::vector<DraftInbox::TargetId> DraftInbox::Targets() const {
  std::lock_guard lock(mutex_);
  std::vector<TargetId> ids;
  ids.reserve(targets_.size());
  for (const auto& [id, target] : targets_) ids.push_back(id);
  return ids;
}

void DraftInbox::WaitForWork(Duration timeout) {
  std::unique_lock lock(mutex_);
  work_.wait_for(lock, timeout,
                 [&] { return stopped_ || !waiting_.mail.empty() || !waiting_.detached.empty(); });
}

}  // namespace paceline

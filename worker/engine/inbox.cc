#include "worker/engine/inbox.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace paceline {

absl::Status Inbox::Submit(SubmitCommand command) {
  {
    std::lock_guard lock(mutex_);
    if (draining_) return absl::UnavailableError("the worker is draining");
    if (handles_.contains(command.handle)) {
      return absl::AlreadyExistsError(absl::StrCat("request ", command.handle, " is in flight"));
    }
    if (queued_ + submitted_ >= max_waiting_) {
      return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", max_waiting_,
                                                       " requests are waiting (--max-waiting)"));
    }
    handles_.insert(command.handle);
    ++submitted_;
    commands_.push_back(std::move(command));
  }
  work_.notify_one();
  return absl::OkStatus();
}

void Inbox::Cancel(CancelCommand command) {
  {
    std::lock_guard lock(mutex_);
    if (!handles_.contains(command.handle)) return;
    commands_.push_back(command);
  }
  work_.notify_one();
}

void Inbox::DropSession(DropSessionCommand command) {
  {
    std::lock_guard lock(mutex_);
    commands_.push_back(std::move(command));
  }
  work_.notify_one();
}

void Inbox::StartDrain() {
  std::lock_guard lock(mutex_);
  draining_ = true;
}

bool Inbox::draining() const {
  std::lock_guard lock(mutex_);
  return draining_;
}

void Inbox::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  work_.notify_all();
}

bool Inbox::stopped() const {
  std::lock_guard lock(mutex_);
  return stopped_;
}

void Inbox::Drain(std::vector<Command>* commands) {
  commands->clear();
  std::lock_guard lock(mutex_);
  commands->swap(commands_);
  // Until SetQueued says otherwise they wait at the scheduler.
  queued_ += submitted_;
  submitted_ = 0;
}

void Inbox::SetQueued(int32_t queued) {
  std::lock_guard lock(mutex_);
  queued_ = queued;
}

void Inbox::Forget(const std::vector<EngineOutput::Finished>& finished) {
  if (finished.empty()) return;
  std::lock_guard lock(mutex_);
  for (const EngineOutput::Finished& f : finished) handles_.erase(f.request);
}

void Inbox::WaitForWork(Duration timeout) {
  std::unique_lock lock(mutex_);
  work_.wait_for(lock, timeout, [&] { return stopped_ || !commands_.empty(); });
}

}  // namespace paceline

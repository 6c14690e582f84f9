#include "worker/service/status_feed.h"

#include <utility>

#include "common/rpc/outbox.h"

namespace paceline {
namespace {

using worker::v1::WatchStatusResponse;

// Only the newest report matters, but for the prefixes of the one it replaces.
bool Replace(WatchStatusResponse* last, WatchStatusResponse* next) {
  if (last->has_prefixes() && !next->has_prefixes()) {
    next->set_has_prefixes(true);
    next->set_prefix_epoch(last->prefix_epoch());
    next->mutable_prefix_chunks()->Swap(last->mutable_prefix_chunks());
  }
  last->Swap(next);
  return true;
}

}  // namespace

class StatusFeed::Watcher final : public std::enable_shared_from_this<Watcher> {
 public:
  class Reactor final : public grpc::ServerWriteReactor<WatchStatusResponse> {
   public:
    explicit Reactor(std::shared_ptr<Watcher> watcher) : watcher_(std::move(watcher)) {}
    void OnWriteDone(bool ok) override { watcher_->outbox_.WriteDone(ok); }
    void OnCancel() override { watcher_->End(grpc::Status::CANCELLED); }
    void OnDone() override {
      watcher_->done_ = true;
      delete this;
    }

   private:
    const std::shared_ptr<Watcher> watcher_;
  };

  Watcher()
      : outbox_({.write = [this](const WatchStatusResponse* m) { reactor_->StartWrite(m); },
                 .finish = [this](const grpc::Status& s) { reactor_->Finish(s); },
                 .merge = Replace},
                INT64_MAX) {}

  Reactor* MakeReactor() {
    reactor_ = new Reactor(shared_from_this());
    return reactor_;
  }
  void End(const grpc::Status& status) { outbox_.Abort(status); }
  bool done() const { return done_; }

  void Offer(const WatchStatusResponse& report, bool changed, TimePoint now,
             const StatusFeedOptions& options) {
    const bool prefixes = (first_ || report.prefix_epoch() != prefix_epoch_) &&
                          (first_ || now - last_prefixes_ >= options.prefix_interval);
    if (!first_ && !changed && !prefixes && now - last_report_ < options.silence) return;
    WatchStatusResponse message = report;
    if (prefixes) {
      prefix_epoch_ = report.prefix_epoch();
      last_prefixes_ = now;
    } else {
      message.clear_prefix_chunks();
      message.set_prefix_epoch(prefix_epoch_);
    }
    message.set_has_prefixes(prefixes);
    first_ = false;
    last_report_ = now;
    outbox_.Push(std::move(message), 0);
  }

 private:
  Reactor* reactor_ = nullptr;
  Outbox<WatchStatusResponse> outbox_;
  std::atomic<bool> done_ = false;
  // The feed thread's.
  bool first_ = true;
  uint64_t prefix_epoch_ = 0;
  TimePoint last_prefixes_{};
  TimePoint last_report_{};
};

StatusFeed::StatusFeed(const ProcessState* state, StatusFeedOptions options)
    : state_(state), options_(options), thread_([this] { Run(); }) {}

StatusFeed::~StatusFeed() {
  Stop();
  thread_.join();
}

void StatusFeed::SetSource(StatusSource source) {
  std::lock_guard lock(mutex_);
  source_ = std::move(source);
}

void StatusFeed::Stop() {
  std::vector<std::shared_ptr<Watcher>> watchers;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    watchers = watchers_;
    changed_.notify_all();
  }
  const grpc::Status status(grpc::StatusCode::UNAVAILABLE, "the worker is stopping");
  for (const auto& watcher : watchers) watcher->End(status);
}

grpc::ServerWriteReactor<WatchStatusResponse>* StatusFeed::Watch() {
  auto watcher = std::make_shared<Watcher>();
  auto* reactor = watcher->MakeReactor();
  std::lock_guard lock(mutex_);
  if (stopped_) {
    watcher->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the worker is stopping"));
    return reactor;
  }
  watchers_.push_back(std::move(watcher));
  new_watcher_ = true;
  changed_.notify_all();
  return reactor;
}

WatchStatusResponse StatusFeed::Read() {
  WatchStatusResponse report;
  if (source_) source_(&report);
  *report.mutable_info() = state_->info();
  report.set_ready(state_->ready());
  report.set_draining(state_->draining());
  return report;
}

void StatusFeed::Run() {
  std::string last;
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    std::erase_if(watchers_, [](const auto& w) { return w->done(); });
    if (watchers_.empty()) {
      changed_.wait(lock, [&] { return stopped_ || !watchers_.empty(); });
      continue;
    }
    new_watcher_ = false;
    const WatchStatusResponse report = Read();
    std::string bytes = report.SerializeAsString();
    const bool changed = bytes != last;
    last = std::move(bytes);
    const TimePoint now = SteadyClock::Get().Now();
    for (const auto& watcher : watchers_) watcher->Offer(report, changed, now, options_);
    changed_.wait_for(lock, options_.interval, [&] { return stopped_ || new_watcher_; });
  }
}

}  // namespace paceline

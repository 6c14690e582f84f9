#include "worker/draft/draft_engine.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "common/status_macros.h"
#include "worker/draft/draft_inbox.h"
#include "worker/draft/draft_outbox.h"
#include "worker/draft/draft_planner.h"
#include "worker/draft/draft_pool.h"
#include "worker/draft/session_table.h"

namespace paceline {
namespace {

constexpr Duration kIdleSleep = std::chrono::seconds(1);
constexpr Duration kExpirePeriod = std::chrono::seconds(1);

int32_t Micros(Duration d) {
  const int64_t micros = d / std::chrono::microseconds(1);
  return static_cast<int32_t>(std::clamp<int64_t>(micros, 0, INT32_MAX));
}

}  // namespace

class DraftEngine::Impl {
 public:
  Impl(DraftEngineOptions options, std::unique_ptr<Runner> runner, const Clock& clock)
      : options_(options),
        runner_(std::move(runner)),
        clock_(clock),
        info_(runner_->info()),
        pool_(info_, options.prefix_cache),
        table_(options, info_, &pace_, &pool_, &building_, &outbox_),
        planner_(options, info_, &pool_, &pace_, &table_, &building_) {
    PublishState();
  }

  const RunnerInfo& info() const { return info_; }
  DraftInbox& inbox() { return inbox_; }

  absl::StatusOr<bool> Step();
  absl::Status Run();
  void CheckQuiescent();

  DraftLoad load() const {
    std::lock_guard lock(published_mutex_);
    return load_;
  }
  DraftEngineCounters counters() const {
    std::lock_guard lock(published_mutex_);
    return counters_;
  }
  KvOccupancy kv() const {
    std::lock_guard lock(published_mutex_);
    return kv_;
  }

 private:
  bool ReadInbox(TimePoint now);
  absl::StatusOr<bool> RunModel();
  void PublishState();
  void Send(TimePoint now);

  const DraftEngineOptions options_;
  const std::unique_ptr<Runner> runner_;
  const Clock& clock_;
  const RunnerInfo info_;
  DraftInbox inbox_;

  // The engine thread's.
  DraftEngineCounters building_;
  DraftOutbox outbox_;
  DraftPool pool_;
  DraftPace pace_;
  SessionTable table_;
  DraftPlanner planner_;
  DraftInbox::Contents contents_;
  absl::Status fault_;
  int32_t step_rows_ = 0;
  Duration step_time_{};
  TimePoint last_expire_{};
  TimePoint last_load_{};

  mutable std::mutex published_mutex_;
  DraftLoad load_;
  DraftEngineCounters counters_;
  KvOccupancy kv_;
};

bool DraftEngine::Impl::ReadInbox(TimePoint now) {
  inbox_.Drain(&contents_);
  for (DraftInbox::Mail& mail : contents_.mail) {
    table_.Apply(mail.target, std::move(mail.frame), now);
  }
  for (TargetId target : contents_.detached) table_.DropTarget(target);
  if (now - last_expire_ >= std::min(kExpirePeriod, options_.idle_timeout)) {
    last_expire_ = now;
    table_.Expire(now);
  }
  table_.ProposeHeard();
  return !contents_.mail.empty() || !contents_.detached.empty();
}

// One step of the model. False when no session has work that fits.
absl::StatusOr<bool> DraftEngine::Impl::RunModel() {
  const TimePoint begin = clock_.Now();
  const StepPlan& plan = planner_.Plan(begin);
  if (plan.empty()) return false;
  const TimePoint start = clock_.Now();
  RETURN_IF_ERROR(runner_->Launch(plan));
  ASSIGN_OR_RETURN(const StepResult result, runner_->Wait());
  step_time_ = clock_.Now() - start;
  step_rows_ = static_cast<int32_t>(plan.rows.size());
  ++building_.steps;
  planner_.Digest(result);
  for (DraftSession* s : planner_.planned()) table_.Propose(s, /*at_commit=*/false);
  pace_.Observe(step_rows_, clock_.Now() - begin);
  return true;
}

void DraftEngine::Impl::PublishState() {
  building_.sessions = table_.size();
  std::lock_guard lock(published_mutex_);
  load_ = {.sessions = table_.size(),
           .rows_per_step = step_rows_,
           .step_micros = Micros(step_time_),
           .free_blocks = pool_.blocks().num_available()};
  counters_ = building_;
  kv_ = pool_.blocks().occupancy();
}

// What there is to say to each target; the load alone when it is due.
void DraftEngine::Impl::Send(TimePoint now) {
  DraftOutbox::Frames frames = outbox_.Take();
  if (now - last_load_ >= options_.load_interval) {
    last_load_ = now;
    for (TargetId target : inbox_.Targets()) frames[target];
  }
  if (frames.empty()) return;
  const DraftLoad load = this->load();
  for (auto& [target, frame] : frames) {
    frame.load = load;
    inbox_.Send(target, std::move(frame));
  }
}

absl::StatusOr<bool> DraftEngine::Impl::Step() {
  RETURN_IF_ERROR(fault_);
  const TimePoint now = clock_.Now();
  const bool heard = ReadInbox(now);
  if (heard) PublishState();
  Send(now);  // what needs no step of the model does not wait for one
  absl::StatusOr<bool> ran = RunModel();
  fault_ = ran.status();
  RETURN_IF_ERROR(fault_);
  PublishState();
  Send(clock_.Now());
  return heard || *ran;
}

absl::Status DraftEngine::Impl::Run() {
  while (!inbox_.stopped()) {
    ASSIGN_OR_RETURN(const bool worked, Step());
    if (!worked) inbox_.WaitForWork(std::min(kIdleSleep, options_.load_interval));
  }
  return absl::OkStatus();
}

void DraftEngine::Impl::CheckQuiescent() {
  table_.DropAll();
  pool_.CheckEmpty();
  PublishState();
}

DraftEngine::DraftEngine(DraftEngineOptions options, std::unique_ptr<Runner> runner,
                         const Clock& clock)
    : impl_(std::make_unique<Impl>(options, std::move(runner), clock)) {}

DraftEngine::~DraftEngine() = default;

const RunnerInfo& DraftEngine::runner_info() const { return impl_->info(); }

DraftEngine::TargetId DraftEngine::AttachTarget(Sink sink) {
  return impl_->inbox().Attach(std::move(sink));
}

void DraftEngine::DetachTarget(TargetId target) { impl_->inbox().Detach(target); }

void DraftEngine::Deliver(TargetId target, TargetFrame frame) {
  impl_->inbox().Deliver(target, std::move(frame));
}

absl::StatusOr<bool> DraftEngine::Step() { return impl_->Step(); }

absl::Status DraftEngine::Run() { return impl_->Run(); }

void DraftEngine::Stop() { impl_->inbox().Stop(); }

DraftLoad DraftEngine::load() const { return impl_->load(); }

DraftEngineCounters DraftEngine::counters() const { return impl_->counters(); }

KvOccupancy DraftEngine::kv() const { return impl_->kv(); }

void DraftEngine::CheckQuiescent() { impl_->CheckQuiescent(); }

}  // namespace paceline

#include "worker/engine/engine.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "common/status_macros.h"
#include "worker/engine/inbox.h"
#include "worker/engine/request_state.h"
#include "worker/engine/scheduler.h"

namespace paceline {
namespace {

// Lists that cost more than a step's share are refreshed this often while steps run.
constexpr Duration kSlowRefresh = std::chrono::milliseconds(20);
constexpr Duration kIdleSleep = std::chrono::seconds(1);
// Between looks for drafts when nothing else can run.
constexpr Duration kLeastPoll = std::chrono::microseconds(50);
constexpr Duration kLongestPoll = std::chrono::milliseconds(5);

// Weight of the newest step in the moving averages.
constexpr double kAverageWeight = 0.05;

}  // namespace

class Engine::Impl {
 public:
  Impl(EngineOptions options, std::unique_ptr<Runner> runner,
       std::unique_ptr<Speculator> speculator, const Clock& clock, EngineProbe* probe,
       EngineSink sink)
      : options_(options),
        runner_(std::move(runner)),
        speculator_(std::move(speculator)),
        clock_(clock),
        sink_(std::move(sink)),
        info_(runner_->info()),
        inbox_(options.max_waiting),
        scheduler_(options, info_, speculator_.get(), probe) {
    PublishSnapshot(/*refresh_lists=*/true);
  }

  const RunnerInfo& info() const { return info_; }
  Inbox& inbox() { return inbox_; }

  absl::Status Submit(RequestHandle handle, GenerationRequest request) {
    RETURN_IF_ERROR(ValidateRequest(request, info_));
    return inbox_.Submit(
        {.handle = handle, .request = std::move(request), .submitted = clock_.Now()});
  }

  EngineSnapshot Snapshot() const {
    std::unique_lock lock(published_mutex_);
    EngineSnapshot snapshot = snapshot_;
    const auto chunks = chunks_;
    lock.unlock();
    snapshot.draining = inbox_.draining();
    if (chunks != nullptr) snapshot.prefix_chunks = *chunks;
    return snapshot;
  }

  std::vector<BlockManager::SessionBlocks> Sessions() const {
    std::vector<BlockManager::SessionBlocks> sessions;
    {
      std::lock_guard lock(published_mutex_);
      sessions = sessions_;
    }
    const TimePoint now = clock_.Now();
    std::erase_if(sessions, [&](const auto& s) { return s.expires <= now; });
    return sessions;
  }

  absl::StatusOr<bool> Step();
  absl::Status Run();

 private:
  void TakeCommands();
  absl::Status ReadOne();
  void AwaitDrafts();
  bool Publish();
  void PublishSnapshot(bool refresh_lists);

  const EngineOptions options_;
  const std::unique_ptr<Runner> runner_;
  const std::unique_ptr<Speculator> speculator_;
  const Clock& clock_;
  const EngineSink sink_;
  const RunnerInfo info_;
  Inbox inbox_;

  // The engine thread's.
  Scheduler scheduler_;
  std::vector<Command> commands_;
  absl::Status fault_;
  EngineSnapshot building_;
  TimePoint last_read_{};
  double step_tokens_ = 0;   // moving average of output tokens per step
  double host_seconds_ = 0;  // moving average of planning and launching
  Duration waited_{};        // for the newest result
  TimePoint last_refresh_{};
  uint64_t last_evictions_ = 0;
  bool lists_changed_ = true;
  bool polls_ = false;  // all that could run waits for drafts

  mutable std::mutex published_mutex_;
  EngineSnapshot snapshot_;  // without prefix_chunks
  std::shared_ptr<const std::vector<uint64_t>> chunks_;
  std::vector<BlockManager::SessionBlocks> sessions_;
};

void Engine::Impl::TakeCommands() {
  inbox_.Drain(&commands_);
  for (Command& command : commands_) {
    if (auto* submit = std::get_if<SubmitCommand>(&command)) {
      scheduler_.Submit(submit->handle, std::move(submit->request), submit->submitted);
    } else if (auto* cancel = std::get_if<CancelCommand>(&command)) {
      scheduler_.Cancel(cancel->handle, cancel->code);
    } else {
      scheduler_.DropSession(std::get<DropSessionCommand>(command).session_id);
    }
  }
}

// Whether there was anything to tell.
bool Engine::Impl::Publish() {
  inbox_.SetQueued(scheduler_.num_queued());
  EngineOutput output = scheduler_.TakeOutput();
  if (output.deltas.empty() && output.finished.empty()) return false;
  inbox_.Forget(output.finished);
  sink_(std::move(output));
  return true;
}

// Reads and commits the oldest plan in flight.
absl::Status Engine::Impl::ReadOne() {
  const bool alone = scheduler_.num_in_flight() == 1;
  const TimePoint begin = clock_.Now();
  ASSIGN_OR_RETURN(const StepResult result, runner_->Wait());
  const TimePoint now = clock_.Now();
  waited_ = now - begin;
  const uint64_t tokens_before = scheduler_.output_tokens();
  scheduler_.Commit(result, now);

  const double took = std::max(1e-9, ToSeconds(now - last_read_));
  last_read_ = now;
  const double tokens = static_cast<double>(scheduler_.output_tokens() - tokens_before);
  const double weight = building_.steps == 0 ? 1 : kAverageWeight;
  building_.step_seconds += weight * (took - building_.step_seconds);
  step_tokens_ += weight * (tokens - step_tokens_);
  building_.tokens_per_second = step_tokens_ / building_.step_seconds;
  ++building_.steps;
  PublishSnapshot(/*refresh_lists=*/alone && scheduler_.idle());
  Publish();
  return absl::OkStatus();
}

// What is planned now is launched behind the step in flight: there is time until that ends.
void Engine::Impl::AwaitDrafts() {
  if (speculator_ == nullptr || !info_.runs_beside || scheduler_.num_in_flight() != 1) return;
  const Scheduler::InFlight step = scheduler_.OldestInFlight();
  speculator_->AwaitDrafts({.now = clock_.Now(),
                            .started = std::max(step.launched, last_read_),
                            .rows = step.rows,
                            .context = step.context,
                            .host = Seconds(host_seconds_),
                            .waited = waited_});
}

absl::StatusOr<bool> Engine::Impl::Step() {
  RETURN_IF_ERROR(fault_);
  TakeCommands();
  const TimePoint now = clock_.Now();
  const bool commands = !commands_.empty();
  commands_.clear();
  if (scheduler_.num_in_flight() == 0) last_read_ = now;
  const StepPlan& plan = scheduler_.Schedule(now);
  const bool launches = !plan.empty();
  if (launches) {
    fault_ = runner_->Launch(plan);
    RETURN_IF_ERROR(fault_);
    scheduler_.Launched(now);
    host_seconds_ += kAverageWeight * (ToSeconds(clock_.Now() - now) - host_seconds_);
  }
  const bool dropped = Publish();
  const int32_t in_flight = scheduler_.num_in_flight();
  const int32_t kept = options_.launch_ahead && launches ? 1 : 0;
  if (in_flight > kept) {
    fault_ = ReadOne();
    RETURN_IF_ERROR(fault_);
  } else if (commands || dropped || lists_changed_) {
    PublishSnapshot(/*refresh_lists=*/scheduler_.idle());
  }
  polls_ = in_flight == 0 && scheduler_.waits_for_drafts();
  return in_flight > 0 || commands || polls_;
}

// Counts every step; lists when they changed and are due.
void Engine::Impl::PublishSnapshot(bool refresh_lists) {
  BlockManager& blocks = scheduler_.blocks();
  scheduler_.FillSnapshot(&building_);
  lists_changed_ |= scheduler_.TakeSessionsChanged();
  lists_changed_ |= blocks.prefix_epoch() != building_.prefix_epoch;
  lists_changed_ |= blocks.counters().evictions != last_evictions_;
  std::shared_ptr<const std::vector<uint64_t>> chunks;
  std::vector<BlockManager::SessionBlocks> sessions;
  const TimePoint now = clock_.Now();
  const bool lists = lists_changed_ && (refresh_lists || now - last_refresh_ >= kSlowRefresh);
  if (lists) {
    lists_changed_ = false;
    last_refresh_ = now;
    last_evictions_ = blocks.counters().evictions;
    sessions = blocks.ListTags(now);
    if (building_.prefix_epoch != blocks.prefix_epoch() || building_.steps == 0) {
      chunks = std::make_shared<const std::vector<uint64_t>>(blocks.PrefixChunks());
      building_.prefix_epoch = blocks.prefix_epoch();
    }
  }
  std::lock_guard lock(published_mutex_);
  snapshot_ = building_;
  if (lists) sessions_ = std::move(sessions);
  if (chunks != nullptr) chunks_ = std::move(chunks);
}

absl::Status Engine::Impl::Run() {
  while (!inbox_.stopped()) {
    AwaitDrafts();
    ASSIGN_OR_RETURN(const bool worked, Step());
    if (polls_) {
      inbox_.WaitForWork(
          std::clamp(Seconds(building_.step_seconds / kPollsPerStep), kLeastPoll, kLongestPoll));
    } else if (!worked) {
      inbox_.WaitForWork(kIdleSleep);
    }
  }
  while (scheduler_.num_in_flight() > 0) {
    fault_ = ReadOne();
    RETURN_IF_ERROR(fault_);
  }
  return absl::OkStatus();
}

Engine::Engine(EngineOptions options, std::unique_ptr<Runner> runner,
               std::unique_ptr<Speculator> speculator, const Clock& clock, EngineProbe* probe,
               EngineSink sink)
    : impl_(std::make_unique<Impl>(options, std::move(runner), std::move(speculator), clock, probe,
                                   std::move(sink))) {}

Engine::~Engine() = default;

const RunnerInfo& Engine::runner_info() const { return impl_->info(); }

absl::Status Engine::Submit(RequestHandle handle, GenerationRequest request) {
  return impl_->Submit(handle, std::move(request));
}

void Engine::Cancel(RequestHandle handle, absl::StatusCode code) {
  impl_->inbox().Cancel({.handle = handle, .code = code});
}

void Engine::StartDrain() { impl_->inbox().StartDrain(); }

EngineSnapshot Engine::Snapshot() const { return impl_->Snapshot(); }

std::vector<BlockManager::SessionBlocks> Engine::Sessions() const { return impl_->Sessions(); }

void Engine::DropSession(std::string session_id) {
  impl_->inbox().DropSession({.session_id = std::move(session_id)});
}

absl::StatusOr<bool> Engine::Step() { return impl_->Step(); }

absl::Status Engine::Run() { return impl_->Run(); }

void Engine::Stop() { impl_->inbox().Stop(); }

}  // namespace paceline

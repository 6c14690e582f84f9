#include "cli/bench/load_generator.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "paceline/v1/inference.grpc.pb.h"

namespace paceline {
namespace {

constexpr Duration kProgressInterval = std::chrono::milliseconds(200);
// A closed loop would spin on failures, which come at once.
constexpr Duration kPauseAfterFailure = std::chrono::milliseconds(5);
constexpr int64_t kMaxUnavailableInRow = 64;

void SetMode(BenchMode mode, int32_t draft_length, v1::DecodingSpec* decoding) {
  const auto draft = [&](v1::DraftStrategy strategy) {
    decoding->mutable_draft()->set_strategy(strategy);
    if (draft_length > 0) decoding->mutable_draft()->set_draft_length(draft_length);
  };
  switch (mode) {
    case BenchMode::kAuto:
      decoding->mutable_auto_();
      return;
    case BenchMode::kPlain:
      decoding->mutable_plain();
      return;
    case BenchMode::kDraft:
      return draft(v1::DRAFT_STRATEGY_UNSPECIFIED);
    case BenchMode::kSync:
      return draft(v1::DRAFT_STRATEGY_SYNC);
    case BenchMode::kChain:
      return draft(v1::DRAFT_STRATEGY_CHAIN);
    case BenchMode::kEnumerate:
      return draft(v1::DRAFT_STRATEGY_ENUMERATE);
    case BenchMode::kNgram:
      decoding->mutable_ngram();
      return;
  }
  CHECK(false) << "unknown mode";
}

v1::StreamGenerateTextRequest MakeRequest(const Workload& workload, const RequestSettings& settings,
                                          int64_t index) {
  v1::StreamGenerateTextRequest request;
  v1::GenerationSpec* spec = request.mutable_generation();
  const BenchPrompt prompt = workload.PromptOf(index);
  if (prompt.token_ids.empty()) {
    spec->set_text(prompt.text);
  } else {
    spec->mutable_token_ids()->mutable_ids()->Assign(prompt.token_ids.begin(),
                                                     prompt.token_ids.end());
  }
  spec->set_model(settings.model);
  spec->set_cache_salt(settings.cache_salt);
  v1::SamplingSpec* sampling = spec->mutable_sampling();
  sampling->set_max_tokens(workload.MaxTokensOf(index));
  sampling->set_temperature(settings.temperature);
  sampling->set_top_p(settings.top_p);
  sampling->set_top_k(settings.top_k);
  sampling->set_ignore_eos(settings.ignore_eos);
  sampling->set_seed(workload.SeedOf(index));
  SetMode(settings.mode, settings.draft_length, spec->mutable_decoding());
  return request;
}

Duration FromProtoDuration(const google::protobuf::Duration& d) {
  return std::chrono::seconds(d.seconds()) + std::chrono::nanoseconds(d.nanos());
}

// Requests in flight and those that ended. Thread-safe.
class Tally {
 public:
  void Started() {
    std::lock_guard lock(mutex_);
    ++in_flight_;
  }
  void Ended(RequestOutcome outcome) {
    std::lock_guard lock(mutex_);
    --in_flight_;
    if (!outcome.ok()) ++failed_;
    last_failed_ = !outcome.ok();
    unavailable_in_row_ = outcome.code == "UNAVAILABLE" ? unavailable_in_row_ + 1 : 0;
    outcomes_.push_back(std::move(outcome));
    changed_.notify_all();  // under the lock: the waiter may destroy this right after
  }
  void CountTokens(int32_t tokens) { tokens_.fetch_add(tokens, std::memory_order_relaxed); }

  // Until fewer than `below` are in flight, or the time comes. True for the former.
  bool AwaitBelow(int64_t below, TimePoint until) {
    std::unique_lock lock(mutex_);
    const auto reached = [&] { return in_flight_ < below; };
    return changed_.wait_until(lock, until, reached);
  }
  bool last_failed() const {
    std::lock_guard lock(mutex_);
    return last_failed_;
  }
  int64_t unavailable_in_row() const {
    std::lock_guard lock(mutex_);
    return unavailable_in_row_;
  }
  LoadProgress Progress() const {
    std::lock_guard lock(mutex_);
    return {.done = static_cast<int64_t>(outcomes_.size()),
            .failed = failed_,
            .in_flight = in_flight_,
            .output_tokens = tokens_.load(std::memory_order_relaxed)};
  }
  std::vector<RequestOutcome> TakeOutcomes() {
    std::lock_guard lock(mutex_);
    return std::move(outcomes_);
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int64_t in_flight_ = 0, failed_ = 0, unavailable_in_row_ = 0;
  bool last_failed_ = false;
  std::vector<RequestOutcome> outcomes_;
  std::atomic<int64_t> tokens_ = 0;
};

// One request; deletes itself. Callbacks of one call never overlap.
class Call final : public grpc::ClientReadReactor<v1::StreamGenerateTextResponse> {
 public:
  Call(v1::StreamGenerateTextRequest request, RequestOutcome outcome, TimePoint run_start,
       Tally* tally)
      : request_(std::move(request)),
        outcome_(std::move(outcome)),
        run_start_(run_start),
        tally_(tally) {}

  void Start(v1::InferenceService::Stub* stub, Duration timeout) {
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::system_clock::duration>(timeout));
    outcome_.started = Now();
    stub->async()->StreamGenerateText(&context_, &request_, this);
    StartRead(&message_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (message_.has_delta()) Take(message_.delta());
    if (message_.has_summary()) Take(message_.summary());
    StartRead(&message_);
  }

  void OnDone(const grpc::Status& status) override {
    outcome_.ended = Now();
    if (!status.ok()) {
      outcome_.code = absl::StatusCodeToString(static_cast<absl::StatusCode>(status.error_code()));
      outcome_.error = status.error_message();
    } else if (!has_summary_) {
      Damaged("the stream ended without a summary");
    } else if (finish_ != v1::FINISH_REASON_STOP && finish_ != v1::FINISH_REASON_LENGTH) {
      Damaged(absl::StrCat("the stream ended with ", v1::FinishReason_Name(finish_)));
    }
    tally_->Ended(std::move(outcome_));
    delete this;
  }

 private:
  Duration Now() const { return SteadyClock::Get().Now() - run_start_; }

  void Damaged(const std::string& what) {
    if (!outcome_.ok()) return;  // the first fault is the one to tell
    outcome_.code = "DATA_LOSS";
    outcome_.error = what;
  }

  void Take(const v1::SampleDelta& delta) {
    const auto have = static_cast<int32_t>(outcome_.token_ids.size());
    if (delta.sample() != 0 || delta.first_index() != have) {
      Damaged(absl::StrCat("a message begins at token ", delta.first_index(), " of sample ",
                           delta.sample(), " behind ", have, " tokens of sample 0"));
    }
    if (delta.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) finish_ = delta.finish_reason();
    if (delta.token_ids().empty()) return;
    const Duration now = Now();
    if (have == 0) {
      outcome_.first_token = now;
    } else {
      outcome_.gaps.push_back({now - last_tokens_, delta.token_ids_size()});
    }
    last_tokens_ = now;
    ++outcome_.message_count;
    outcome_.token_ids.insert(outcome_.token_ids.end(), delta.token_ids().begin(),
                              delta.token_ids().end());
    tally_->CountTokens(delta.token_ids_size());
  }

  void Take(const v1::GenerationSummary& summary) {
    has_summary_ = true;
    outcome_.queue = FromProtoDuration(summary.timings().queue());
    outcome_.prompt_tokens = summary.usage().prompt_token_count();
    outcome_.cached_tokens = summary.usage().cached_token_count();
    outcome_.drafted_tokens = summary.usage().drafted_token_count();
    outcome_.accepted_tokens = summary.usage().accepted_token_count();
    outcome_.failover_count = summary.failover_count();
    const auto have = static_cast<int32_t>(outcome_.token_ids.size());
    if (summary.usage().output_token_count() != have) {
      Damaged(absl::StrCat(have, " tokens came; the summary counts ",
                           summary.usage().output_token_count()));
    }
  }

  grpc::ClientContext context_;
  const v1::StreamGenerateTextRequest request_;
  v1::StreamGenerateTextResponse message_;
  RequestOutcome outcome_;
  const TimePoint run_start_;
  Tally* const tally_;
  Duration last_tokens_{};
  bool has_summary_ = false;
  v1::FinishReason finish_ = v1::FINISH_REASON_UNSPECIFIED;
};

// The thread that starts calls and tells of progress.
class Dispatcher {
 public:
  Dispatcher(const std::shared_ptr<grpc::Channel>& channel, const Workload& workload,
             const RequestSettings& settings, const LoadLimits& limits,
             const std::function<void(const LoadProgress&)>& progress)
      : stub_(v1::InferenceService::NewStub(channel)),
        workload_(workload),
        settings_(settings),
        limits_(limits),
        progress_(progress) {}

  std::vector<RequestOutcome> Run() {
    const bool open = limits_.concurrency == 0;
    CHECK(!open || static_cast<int64_t>(workload_.arrivals.size()) >= limits_.requests)
        << limits_.requests << " requests, " << workload_.arrivals.size() << " arrivals";
    for (int64_t i = 0; i < limits_.requests && !Stopped(); ++i) {
      // Made before its time comes: a long prompt takes a while.
      v1::StreamGenerateTextRequest request = MakeRequest(workload_, settings_, i);
      if (open) {
        AwaitTime(start_ + workload_.arrivals[static_cast<size_t>(i)]);
      } else {
        AwaitBelow(limits_.concurrency);
        if (tally_.last_failed()) AwaitTime(SteadyClock::Get().Now() + kPauseAfterFailure);
        if (tally_.unavailable_in_row() >= kMaxUnavailableInRow) break;
        if (SteadyClock::Get().Now() - start_ >= limits_.duration) break;
      }
      if (Stopped()) break;
      StartCall(i, std::move(request), open);
    }
    AwaitBelow(1);
    Tell();
    std::vector<RequestOutcome> outcomes = tally_.TakeOutcomes();
    std::sort(outcomes.begin(), outcomes.end(),
              [](const RequestOutcome& a, const RequestOutcome& b) { return a.index < b.index; });
    return outcomes;
  }

 private:
  bool Stopped() const { return limits_.stop != nullptr && *limits_.stop; }

  void StartCall(int64_t index, v1::StreamGenerateTextRequest request, bool open) {
    RequestOutcome outcome;
    outcome.index = index;
    outcome.arrival =
        open ? workload_.arrivals[static_cast<size_t>(index)] : SteadyClock::Get().Now() - start_;
    tally_.Started();
    auto* call = new Call(std::move(request), std::move(outcome), start_, &tally_);
    call->Start(stub_.get(), settings_.timeout);
  }

  void AwaitTime(TimePoint time) {
    for (TimePoint now = SteadyClock::Get().Now(); now < time && !Stopped();
         now = SteadyClock::Get().Now()) {
      tally_.AwaitBelow(0, std::min(time, NextTell(now)));
    }
    NextTell(SteadyClock::Get().Now());  // also where the client lags behind all arrivals
  }

  void AwaitBelow(int64_t below) {
    while (!tally_.AwaitBelow(below, NextTell(SteadyClock::Get().Now()))) {
    }
  }

  // Tells where it is due; when it is due next.
  TimePoint NextTell(TimePoint now) {
    if (now >= next_tell_) {
      Tell();
      next_tell_ = now + kProgressInterval;
    }
    return next_tell_;
  }

  void Tell() {
    if (!progress_) return;
    LoadProgress progress = tally_.Progress();
    progress.elapsed = SteadyClock::Get().Now() - start_;
    progress_(progress);
  }

  const std::unique_ptr<v1::InferenceService::Stub> stub_;
  const Workload& workload_;
  const RequestSettings& settings_;
  const LoadLimits& limits_;
  const std::function<void(const LoadProgress&)>& progress_;
  Tally tally_;
  const TimePoint start_ = SteadyClock::Get().Now();
  TimePoint next_tell_ = start_ + kProgressInterval;
};

}  // namespace

std::vector<RequestOutcome> RunLoad(const std::shared_ptr<grpc::Channel>& channel,
                                    const Workload& workload, const RequestSettings& settings,
                                    const LoadLimits& limits,
                                    const std::function<void(const LoadProgress&)>& progress) {
  return Dispatcher(channel, workload, settings, limits, progress).Run();
}

}  // namespace paceline

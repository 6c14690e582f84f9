#include "router/core/router_core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace paceline {

RouterCore::RouterCore(RouterOptions options, RouterProbe* probe)
    : options_(options), probe_(probe ? probe : &null_probe_), admission_(options.admission) {}

std::vector<RouterAction> RouterCore::TakeActions() { return std::exchange(actions_, {}); }

bool RouterCore::Serving() const {
  return !draining_ && std::any_of(workers_.all().begin(), workers_.all().end(),
                                   [](const Worker& w) { return w.Usable(); });
}

// ---- Clients ----

void RouterCore::Start(RequestKey key, ClientRequest request, TimePoint now) {
  if (std::optional<ServingError> error = Refuse(request, now)) {
    probe_->Rejected(request.model, *error);
    FinishAction finish;
    finish.key = key;
    finish.error = std::move(error);
    actions_.push_back(std::move(finish));
    return;
  }
  auto [it, inserted] = records_.try_emplace(key);
  CHECK(inserted) << "request key used twice: " << key;
  RequestRecord& r = it->second;
  r.key = key;
  r.request = std::move(request);
  r.arrived = r.waiting_since = now;
  r.wait_order = next_order_++;
  r.fingerprint = r.request.resume_fingerprint;
  r.prefix_hashes = PrefixChunkHashes(r.request.generation.prompt, r.request.generation.cache_salt);
  ids_[r.request.generation.request_id] = key;
  InitSamples(&r);
  if (r.AllFinished()) return Complete(&r, {}, now);
  if (waiting_.empty() && TryPlace(&r, now)) return;
  if (!admission_.CanWait()) {
    ServingError error = ServingError::QueueFull(admission_.waiting(),
                                                 admission_.options().max_queue, "--max-queue");
    probe_->Rejected(r.request.model, error);
    return Fail(&r, std::move(error), now);
  }
  Enqueue(&r, now);
  pump_wanted_ = true;
  Settle(now);
}

std::optional<ServingError> RouterCore::Refuse(const ClientRequest& request, TimePoint now) const {
  const GenerationRequest& g = request.generation;
  if (draining_) return ServingError::Draining();
  if (ids_.count(g.request_id)) return ServingError::DuplicateRequestId(g.request_id);
  if (g.prompt.empty()) return ServingError::InvalidField("prompt", "it has no tokens");
  if (g.num_samples < 1) return ServingError::InvalidField("n", "it must be at least 1");
  if (!g.resumed.empty() && static_cast<int32_t>(g.resumed.size()) != g.num_samples) {
    return ServingError::InvalidField("samples", absl::StrCat("received ids of ", g.resumed.size(),
                                                              " samples; n is ", g.num_samples));
  }
  for (const SampleProgress& s : g.resumed) {
    if (static_cast<int32_t>(s.emitted.size()) > g.sampling.max_tokens) {
      return ServingError::InvalidField("samples", "more ids received than max_tokens");
    }
  }
  if (now >= g.deadline) return ServingError::Deadline("queued");
  if (SurelyUnknown(request.model)) return ServingError::ModelNotFound(request.model);
  return CheckFit(request);
}

// While a listed worker has never reported, it may still turn out to have the model.
bool RouterCore::SurelyUnknown(const std::string& model) const {
  bool any = false;
  for (const Worker& w : workers_.all()) {
    if (w.snapshot.model == model) return false;
    if (!w.listed) continue;
    if (w.snapshot.model.empty()) return false;
    any = true;
  }
  return any;
}

std::optional<ServingError> RouterCore::CheckFit(const ClientRequest& request) const {
  const GenerationRequest& g = request.generation;
  int32_t limit = 0, vocab = 0;
  for (const Worker& w : workers_.all()) {
    if (!w.listed || w.snapshot.model != request.model) continue;
    if (w.snapshot.max_context == 0) return std::nullopt;
    limit = std::max(limit, w.snapshot.max_context);
    vocab = std::max(vocab, w.snapshot.vocab_size);
  }
  const int64_t needed = static_cast<int64_t>(g.prompt.size()) + g.sampling.max_tokens;
  if (limit > 0 && needed > limit) return ServingError::ContextLengthExceeded(limit, needed);
  if (vocab == 0) return std::nullopt;
  auto outside = [vocab](TokenId t) { return t < 0 || t >= vocab; };
  if (std::any_of(g.prompt.begin(), g.prompt.end(), outside)) {
    return ServingError::InvalidField("token_ids",
                                      absl::StrCat("ids must lie in [0, ", vocab, ")"));
  }
  for (const SampleProgress& s : g.resumed) {
    if (std::any_of(s.emitted.begin(), s.emitted.end(), outside)) {
      return ServingError::InvalidField("samples",
                                        absl::StrCat("ids must lie in [0, ", vocab, ")"));
    }
  }
  const absl::Status sampling = ValidateSamplingParams(g.sampling, vocab);
  if (sampling.ok()) return std::nullopt;
  const std::string message(sampling.message());
  return ServingError::InvalidField(message.substr(0, message.find_first_of(" =:[")), message);
}

void RouterCore::InitSamples(RequestRecord* r) {
  GenerationRequest& g = r->request.generation;
  r->samples.resize(g.num_samples);
  for (size_t i = 0; i < r->samples.size(); ++i) {
    SampleRecord& s = r->samples[i];
    if (r->request.make_text) s.text = r->request.make_text();
    if (g.resumed.empty()) continue;
    s.emitted = std::move(g.resumed[i].emitted);
    s.finish = g.resumed[i].finish;
    const auto& stops = g.sampling.stop_token_ids;
    const int32_t n = static_cast<int32_t>(s.emitted.size());
    if (s.finish == FinishReason::kNone && n >= g.sampling.max_tokens) {
      s.finish = FinishReason::kLength;
    }
    if (n > g.sampling.min_tokens &&
        std::find(stops.begin(), stops.end(), s.emitted.back()) != stops.end()) {
      s.finish = FinishReason::kStop;
    }
    // The client has this text already; only what is held back stays inside.
    if (s.text && s.text->Push(s.emitted).stopped) s.finish = FinishReason::kStop;
  }
  g.resumed.clear();
}

void RouterCore::CancelByClient(RequestKey key, TimePoint now) {
  auto it = records_.find(key);
  if (it == records_.end()) return;
  probe_->Cancelled(Stage(it->second), /*by_deadline=*/false);
  Fail(&it->second, ServingError::Cancelled(), now);
  Settle(now);
}

void RouterCore::Abort(RequestKey key, ServingError error, TimePoint now) {
  auto it = records_.find(key);
  if (it == records_.end()) return;
  Fail(&it->second, std::move(error), now);
  Settle(now);
}

// ---- Placement and the queue ----

// Requests that lost a worker go first, then by priority, then in order of arrival.
RouterCore::WaitKey RouterCore::WaitKeyOf(const RequestRecord& r) {
  const bool carried = r.fruitless > 0 || r.emitted_tokens() > 0;
  return {carried ? 0 : 1, -r.request.generation.priority, r.wait_order, r.key};
}

void RouterCore::Enqueue(RequestRecord* r, TimePoint now) {
  r->state = RequestState::kWaiting;
  r->waiting_since = now;
  waiting_.insert(WaitKeyOf(*r));
  admission_.EnterQueue();
  ArmTimer(r, now);
}

bool RouterCore::TryPlace(RequestRecord* r, TimePoint now) {
  const bool carried = r->fruitless > 0 || r->emitted_tokens() > 0;
  if (!carried && !admission_.CanRun()) return false;
  const GenerationRequest& g = r->request.generation;
  PlacementRequest request;
  request.model = r->request.model;
  request.session_id = g.session_id;
  request.fingerprint = r->fingerprint;
  request.tokenizer = r->request.tokenizer;
  request.prefix_hashes = r->prefix_hashes;
  request.prompt_tokens = static_cast<int64_t>(g.prompt.size()) + r->emitted_tokens();
  request.total_tokens = static_cast<int64_t>(g.prompt.size()) + g.sampling.max_tokens;
  request.tie_break = r->key;
  request.avoid = r->avoid;
  const auto scores = RankWorkers(request, workers_.all(), now, options_.placement);
  if (scores.empty()) return false;
  SubmitTo(scores.front(), r, now);
  return true;
}

void RouterCore::SubmitTo(const PlacementScore& score, RequestRecord* r, TimePoint now) {
  Worker* worker = workers_.Find(score.worker);
  r->state = RequestState::kRunning;
  r->worker = worker->id;
  ++r->attempt;
  ++worker->in_flight;
  ++worker->sent_since_snapshot;
  worker->sent_prompt_tokens += static_cast<int64_t>(score.prefill);
  if (worker->in_flight == 1) worker->last_heard = std::max(worker->last_heard, now);
  admission_.EnterFlight();
  probe_->Placed(score, r->request.model);
  if (r->attempt == 1) {
    r->submitted = now;
    probe_->QueueWait(r->request.model, r->request.generation.priority, now - r->arrived);
  }
  if (r->orphan) {
    r->orphan = false;
    ++r->failovers;
    probe_->FailedOver(
        r->head_sent ? FailoverPhase::kMidStream : FailoverPhase::kBeforeFirstToken, true,
        static_cast<int64_t>(r->request.generation.prompt.size()) + r->emitted_tokens());
  }
  actions_.push_back(SubmitAction{worker->id, r->handle(), r->ToSubmit()});
  ArmTimer(r, now);
}

void RouterCore::Pump(TimePoint now) {
  std::set<std::string> stuck;  // models for which no worker takes anything now
  const std::vector<WaitKey> keys(waiting_.begin(), waiting_.end());
  for (const WaitKey& key : keys) {
    RequestRecord& r = records_.at(std::get<RequestKey>(key));
    if (std::optional<ServingError> error = CheckFit(r.request)) {
      probe_->Rejected(r.request.model, *error);
      Fail(&r, std::move(*error), now);
      continue;
    }
    if (std::get<0>(key) != 0 && !admission_.CanRun()) break;
    if (stuck.count(r.request.model)) continue;
    if (TryPlace(&r, now)) {
      waiting_.erase(key);
      admission_.LeaveQueue();
    } else {
      stuck.insert(r.request.model);
    }
  }
}

void RouterCore::Settle(TimePoint now) {
  if (std::exchange(pump_wanted_, false) && !waiting_.empty()) Pump(now);
}

// ---- Workers ----

WorkerSet::Change RouterCore::Relist(std::span<const WorkerAddress> addresses, TimePoint now) {
  NoteUsable(now);
  WorkerSet::Change change = workers_.Relist(addresses);
  pump_wanted_ = true;
  Settle(now);
  return change;
}

void RouterCore::WorkerConnected(WorkerId id, TimePoint now) {
  Worker* worker = workers_.Find(id);
  if (worker == nullptr) return;
  worker->connected = true;
  worker->snapshot.ready = false;  // until it says so
  worker->snapshot.prefixes = nullptr;
  worker->snapshot.prefix_epoch = 0;
  worker->last_heard = now;
}

void RouterCore::WorkerLost(WorkerId id, const std::string& cause, TimePoint now) {
  Worker* worker = workers_.Find(id);
  if (worker == nullptr || !worker->connected) return;
  NoteUsable(now);
  worker->connected = false;
  worker->snapshot.ready = false;
  worker->drain_asked = false;
  LoseAllAt(id, cause, now);
  Settle(now);
}

void RouterCore::WorkerReported(WorkerId id, WorkerSnapshot snapshot, TimePoint now) {
  Worker* worker = workers_.Find(id);
  if (worker == nullptr || !worker->connected) return;
  NoteUsable(now);
  const bool was_usable = worker->Usable();
  WorkerSet::ApplySnapshot(std::move(snapshot), now, worker);
  if (!was_usable && worker->Usable()) pump_wanted_ = true;
  Settle(now);
}

void RouterCore::SetWorkerDrain(WorkerId id, bool drain, TimePoint now) {
  Worker* worker = workers_.Find(id);
  if (worker == nullptr) return;
  NoteUsable(now);
  worker->drain_asked = drain;
  pump_wanted_ = true;
  Settle(now);
}

RequestRecord* RouterCore::FindAttempt(WorkerId worker, AttemptHandle handle) {
  auto it = records_.find(KeyOf(handle));
  if (it == records_.end()) return nullptr;
  RequestRecord& r = it->second;
  const bool current =
      r.state != RequestState::kWaiting && r.worker == worker && r.handle() == handle;
  return current ? &r : nullptr;
}

void RouterCore::WorkerDelta(WorkerId id, AttemptHandle handle, SampleDelta delta, TimePoint now) {
  Worker* worker = workers_.Find(id);
  if (worker == nullptr) return;
  worker->last_heard = now;
  RequestRecord* r = FindAttempt(id, handle);
  if (r == nullptr || r->state == RequestState::kClosing) return;
  if (const std::string fault = CheckDelta(*r, delta); !fault.empty()) {
    WorkerSet::RecordFault(now, options_.fault_backoff, options_.fault_backoff_limit, worker);
    LoseAttempt(r, Loss::kFault, fault, now);
    return Settle(now);
  }
  if (r->samples[delta.sample].stopped_here) return;
  NoteProgress(r, now);
  ApplyDelta(r, std::move(delta));
  CloseIfDone(r, now);
}

std::string RouterCore::CheckDelta(const RequestRecord& r, const SampleDelta& delta) const {
  if (delta.sample < 0 || delta.sample >= static_cast<int32_t>(r.samples.size())) {
    return absl::StrCat("tokens of sample ", delta.sample, ", which was not asked for");
  }
  const SampleRecord& s = r.samples[delta.sample];
  if (s.stopped_here) return "";
  if (s.finish != FinishReason::kNone) return "tokens behind the end of a sample";
  const int32_t have = static_cast<int32_t>(s.emitted.size());
  const int32_t got = static_cast<int32_t>(delta.tokens.size());
  if (delta.first_index != have) {
    return absl::StrCat("tokens from index ", delta.first_index, ", expected ", have);
  }
  if (have + got > r.request.generation.sampling.max_tokens) return "more than max_tokens";
  if (!delta.logprobs.empty() && delta.logprobs.size() != delta.tokens.size()) {
    return "logprobs that do not match the tokens";
  }
  const int32_t vocab = workers_.Find(r.worker)->snapshot.vocab_size;
  for (TokenId t : delta.tokens) {
    if (t < 0 || (vocab > 0 && t >= vocab)) return absl::StrCat("token id ", t, " out of range");
  }
  return "";
}

// The worker is good for this request after all.
void RouterCore::NoteProgress(RequestRecord* r, TimePoint now) {
  Worker* worker = workers_.Find(r->worker);
  worker->faults = 0;
  r->fruitless = 0;
  r->avoid.clear();
  const std::string& fingerprint = worker->snapshot.fingerprint;
  if (r->fingerprint.empty()) {
    r->fingerprint = fingerprint;
  } else if (r->fingerprint != fingerprint) {
    r->exact = false;
  }
  if (r->first_token == TimePoint{}) r->first_token = now;
  if (r->lost_at != TimePoint{}) {
    if (r->head_sent) probe_->FailoverGap(now - r->lost_at);
    r->lost_at = TimePoint{};
  }
}

void RouterCore::ApplyDelta(RequestRecord* r, SampleDelta delta) {
  SampleRecord& s = r->samples[delta.sample];
  // Other reasons are the whole request's, and come with its last word.
  if (delta.finish != FinishReason::kStop && delta.finish != FinishReason::kLength) {
    delta.finish = FinishReason::kNone;
  }
  std::string text;
  if (s.text) {
    SampleText::Piece piece = s.text->Push(delta.tokens);
    text = std::move(piece.text);
    if (piece.stopped) {
      s.stopped_here = delta.finish == FinishReason::kNone ||
                       piece.kept < static_cast<int32_t>(delta.tokens.size());
      delta.tokens.resize(piece.kept);
      if (!delta.logprobs.empty()) delta.logprobs.resize(piece.kept);
      delta.finish = FinishReason::kStop;
    } else if (delta.finish != FinishReason::kNone) {
      text += s.text->Flush();
    }
  }
  if (delta.tokens.empty() && text.empty() && delta.finish == FinishReason::kNone) return;
  s.emitted.insert(s.emitted.end(), delta.tokens.begin(), delta.tokens.end());
  s.finish = delta.finish;
  r->sent_tokens += static_cast<int64_t>(delta.tokens.size());
  DeliverAction deliver;
  deliver.key = r->key;
  deliver.first = !std::exchange(r->head_sent, true);
  if (deliver.first) {
    deliver.fingerprint = r->fingerprint;
    deliver.worker = workers_.Find(r->worker)->address;
  }
  deliver.delta = std::move(delta);
  deliver.text = std::move(text);
  actions_.push_back(std::move(deliver));
}

// Every sample is at its end: only the worker's last word is out, which a worker that does not know
// of a stop string gives when it is told to cancel.
void RouterCore::CloseIfDone(RequestRecord* r, TimePoint now) {
  if (!r->AllFinished()) return;
  r->state = RequestState::kClosing;
  for (const SampleRecord& s : r->samples) {
    if (!s.stopped_here) continue;
    actions_.push_back(CancelAction{r->worker, r->handle()});
    break;
  }
  ArmTimer(r, now);
}

void RouterCore::WorkerFinished(WorkerId id, AttemptHandle handle, const absl::Status& status,
                                const GenerationUsage& usage, TimePoint now) {
  Worker* worker = workers_.Find(id);
  if (worker == nullptr) return;
  worker->last_heard = now;
  RequestRecord* r = FindAttempt(id, handle);
  if (r == nullptr) return;
  if (r->state == RequestState::kClosing) {
    probe_->AttemptEnded(AttemptResult::kOk);
    Detach(r, /*cancel=*/false);
    Complete(r, usage, now);
  } else {
    HandleFailure(r, status, now);
  }
  Settle(now);
}

void RouterCore::HandleFailure(RequestRecord* r, const absl::Status& status, TimePoint now) {
  Worker* worker = workers_.Find(r->worker);
  const std::string message(status.message());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      Detach(r, false);
      return Fail(r, ServingError::InvalidField("request", message), now);
    case absl::StatusCode::kFailedPrecondition:
      Detach(r, false);
      return Fail(r, ServingError::KvCapacityTooSmall(r->request.model, message), now);
    case absl::StatusCode::kDeadlineExceeded: {
      const std::string stage = Stage(*r);
      probe_->Cancelled(stage, /*by_deadline=*/true);
      Detach(r, false);
      return Fail(r, ServingError::Deadline(stage), now);
    }
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      worker->not_before = std::max(worker->not_before, now + options_.refusal_backoff);
      return LoseAttempt(r, Loss::kRefused, message, now);
    default:
      WorkerSet::RecordFault(now, options_.fault_backoff, options_.fault_backoff_limit, worker);
      return LoseAttempt(r, Loss::kFault,
                         status.ok() ? "finished with samples open" : status.ToString(), now);
  }
}

// ---- Loss and failover ----

void RouterCore::LoseAllAt(WorkerId worker, const std::string& cause, TimePoint now) {
  std::vector<std::pair<int64_t, RequestKey>> lost;
  for (const auto& [key, r] : records_) {
    if (r.state != RequestState::kWaiting && r.worker == worker)
      lost.push_back({r.wait_order, key});
  }
  std::sort(lost.begin(), lost.end());
  for (const auto& [order, key] : lost) LoseAttempt(&records_.at(key), Loss::kWorker, cause, now);
}

void RouterCore::LoseAttempt(RequestRecord* r, Loss loss, const std::string& cause, TimePoint now) {
  probe_->AttemptEnded(loss == Loss::kWorker    ? AttemptResult::kLost
                       : loss == Loss::kRefused ? AttemptResult::kRefused
                                                : AttemptResult::kFault);
  const WorkerId worker = r->worker;
  Detach(r, /*cancel=*/loss != Loss::kRefused);
  if (r->state == RequestState::kClosing) return Complete(r, {}, now);
  r->last_cause = cause;
  r->last_was_fault = loss == Loss::kFault;
  r->avoid.push_back(worker);
  if (r->lost_at == TimePoint{}) r->lost_at = now;
  if (loss != Loss::kRefused) ++r->fruitless;
  r->orphan = r->orphan || loss != Loss::kRefused || r->head_sent;
  const int64_t replay =
      static_cast<int64_t>(r->request.generation.prompt.size()) + r->emitted_tokens();
  const bool too_long = r->head_sent && replay > options_.max_replay_tokens;
  if (too_long) {
    r->last_cause = absl::StrCat(replay, " tokens to replay exceed ", options_.max_replay_tokens,
                                 " (--max-replay-tokens)");
  }
  if (too_long || r->fruitless >= options_.max_attempts) return Fail(r, LossError(*r), now);
  r->state = RequestState::kWaiting;
  if (!TryPlace(r, now)) Enqueue(r, now);
}

ServingError RouterCore::LossError(const RequestRecord& r) {
  if (r.sent_tokens > 0) return ServingError::StreamLost(r.sent_tokens, r.last_cause);
  if (r.last_was_fault) return ServingError::EngineFault(r.last_cause);
  return ServingError::WorkerLost(r.attempt, r.last_cause);
}

ServingError RouterCore::WaitError(const RequestRecord& r, bool no_worker) const {
  if (r.sent_tokens > 0 || r.fruitless > 0) return LossError(r);
  if (!no_worker) {
    return ServingError::QueueFull(admission_.waiting(), admission_.options().max_queue,
                                   "--queue-timeout passed");
  }
  const std::string& model = r.request.model;
  if (workers_.AnyLoading(model)) return ServingError::ModelLoading(model);
  if (!workers_.Known(model) && workers_.AnyConnected()) return ServingError::ModelNotFound(model);
  return ServingError::NoWorker(model);
}

// Takes the request off its worker.
void RouterCore::Detach(RequestRecord* r, bool cancel) {
  Worker* worker = workers_.Find(r->worker);
  CHECK(worker != nullptr && worker->in_flight > 0);
  --worker->in_flight;
  admission_.LeaveFlight();
  pump_wanted_ = true;
  if (cancel && worker->connected) actions_.push_back(CancelAction{worker->id, r->handle()});
  r->worker = kNoWorker;
}

std::string RouterCore::Stage(const RequestRecord& r) {
  if (r.head_sent) return "decode";
  return r.state == RequestState::kWaiting ? "queued" : "prefill";
}

// ---- The end of a request ----

void RouterCore::Complete(RequestRecord* r, GenerationUsage usage, TimePoint now) {
  usage.prompt_tokens = static_cast<int32_t>(r->request.generation.prompt.size());
  usage.output_tokens = static_cast<int32_t>(r->emitted_tokens());
  if (r->attempt > 0) usage.queue_time += r->submitted - r->arrived;
  if (r->first_token != TimePoint{}) usage.first_token_time = r->first_token - r->arrived;
  usage.total_time = now - r->arrived;
  FinishAction finish;
  finish.usage = usage;
  Remove(r, std::move(finish));
}

void RouterCore::Fail(RequestRecord* r, ServingError error, TimePoint now) {
  if (r->worker != kNoWorker) {
    probe_->AttemptEnded(AttemptResult::kCancelled);
    Detach(r, /*cancel=*/true);
  }
  if (r->orphan) {
    probe_->FailedOver(r->head_sent ? FailoverPhase::kMidStream : FailoverPhase::kBeforeFirstToken,
                       false, 0);
  }
  FinishAction finish;
  finish.error = std::move(error);
  finish.usage.prompt_tokens = static_cast<int32_t>(r->request.generation.prompt.size());
  finish.usage.output_tokens = static_cast<int32_t>(r->emitted_tokens());
  finish.usage.total_time = now - r->arrived;
  Remove(r, std::move(finish));
}

void RouterCore::Remove(RequestRecord* r, FinishAction finish) {
  finish.key = r->key;
  finish.fingerprint = r->fingerprint;
  finish.failovers = r->failovers;
  finish.exact = r->exact;
  actions_.push_back(std::move(finish));
  if (waiting_.erase(WaitKeyOf(*r)) > 0) admission_.LeaveQueue();
  timers_.erase({r->timer, r->key});
  ids_.erase(r->request.generation.request_id);
  records_.erase(RequestKey{r->key});
}

// ---- Time ----

// When the model last had a worker that takes requests, as far as this request can tell.
TimePoint RouterCore::NoWorkerSince(const RequestRecord& r, TimePoint now) const {
  if (workers_.AnyUsable(r.request.model)) return now;
  auto it = last_usable_.find(r.request.model);
  return it == last_usable_.end() ? r.waiting_since : std::max(r.waiting_since, it->second);
}

// Called before anything that may change which workers are usable.
void RouterCore::NoteUsable(TimePoint now) {
  for (const Worker& w : workers_.all()) {
    if (w.Usable()) last_usable_[w.snapshot.model] = now;
  }
}

void RouterCore::ArmTimer(RequestRecord* r, TimePoint now) {
  TimePoint due = r->request.generation.deadline;
  if (r->state == RequestState::kClosing) due = now + options_.closing_timeout;
  if (r->state == RequestState::kWaiting) {
    due = std::min({due, NoWorkerSince(*r, now) + options_.failover_timeout,
                    r->waiting_since + options_.queue_timeout});
  }
  if (due == r->timer) return;
  timers_.erase({r->timer, r->key});
  r->timer = due;
  if (due != kNoDeadline) timers_.insert({due, r->key});
}

void RouterCore::OnTimer(RequestRecord* r, TimePoint now) {
  if (r->state == RequestState::kClosing) {
    Detach(r, /*cancel=*/true);
    return Complete(r, {}, now);
  }
  if (now >= r->request.generation.deadline) {
    const std::string stage = Stage(*r);
    probe_->Cancelled(stage, /*by_deadline=*/true);
    return Fail(r, ServingError::Deadline(stage), now);
  }
  if (r->state == RequestState::kWaiting) {
    const bool no_worker = now >= NoWorkerSince(*r, now) + options_.failover_timeout;
    if (no_worker || now >= r->waiting_since + options_.queue_timeout) {
      ServingError error = WaitError(*r, no_worker);
      probe_->Rejected(r->request.model, error);
      return Fail(r, std::move(error), now);
    }
  }
  ArmTimer(r, now);
}

bool RouterCore::SilentTooLong(const Worker& w, TimePoint now) const {
  return w.connected && w.in_flight > 0 && now - w.last_heard >= options_.silence_timeout;
}

void RouterCore::Tick(TimePoint now) {
  last_now_ = now;
  for (Worker& w : workers_.all()) {
    if (!SilentTooLong(w, now)) continue;
    WorkerSet::RecordFault(now, options_.fault_backoff, options_.fault_backoff_limit, &w);
    NoteUsable(now);
    w.snapshot.ready = false;  // until it is heard again
    LoseAllAt(w.id, "nothing heard from the worker", now);
  }
  while (!timers_.empty() && timers_.begin()->first <= now) {
    const auto due = *timers_.begin();
    timers_.erase(timers_.begin());
    RequestRecord& r = records_.at(due.second);
    r.timer = kNoDeadline;
    OnTimer(&r, now);
  }
  pump_wanted_ = true;  // a worker may have come out of its back-off
  Settle(now);
}

TimePoint RouterCore::NextWake() const {
  TimePoint wake = timers_.empty() ? kNoDeadline : timers_.begin()->first;
  for (const Worker& w : workers_.all()) {
    if (w.connected && w.in_flight > 0) {
      wake = std::min(wake, w.last_heard + options_.silence_timeout);
    }
    if (!waiting_.empty() && w.Usable() && w.not_before > last_now_) {
      wake = std::min(wake, w.not_before);
    }
  }
  return wake;
}

}  // namespace paceline

#include "router/service/generation_call.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "router/service/generation_events.h"
#include "router/service/sample_text_stream.h"

namespace paceline {
namespace {

int64_t UnixSeconds() { return static_cast<int64_t>(std::time(nullptr)); }

FinishReason FinishOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kCancelled:
      return FinishReason::kCancelled;
    case absl::StatusCode::kDeadlineExceeded:
      return FinishReason::kDeadline;
    default:
      return FinishReason::kError;
  }
}

}  // namespace

TimePoint DeadlineOf(const grpc::ServerContextBase& context, TimePoint now, Duration margin) {
  constexpr auto kForever = std::chrono::hours(24 * 365);
  const auto deadline = context.deadline();
  const auto system_now = std::chrono::system_clock::now();
  if (deadline >= system_now + kForever) return kNoDeadline;
  const auto left = std::chrono::duration_cast<Duration>(deadline - system_now);
  if (left <= Duration::zero()) return now;
  return now + left - std::min<Duration>(margin, left / 10);
}

// ---- The way in ----

void GenerationCall::Begin(const v1::GenerationSpec* spec) {
  spec_ = spec;
  received_ = api_->clock->Now();
  deadline_ = DeadlineOf(*context_, received_, api_->options.deadline_margin);
  const std::vector<ClusterDirectory::Member> members = api_->directory->Members();
  api_->tokenizers->Look(*api_->catalog, members);
  auto refusal =
      ParseGeneration(*spec, FindServedModels(members), *api_->catalog, deadline_, &parsed_);
  api_->probe->Overhead(OverheadStage::kParse, api_->clock->Now() - received_);
  if (refusal) return Fail(*std::move(refusal));
  size_t bytes = spec->text().size() + 4 * static_cast<size_t>(spec->token_ids().ids_size());
  if (resume_ != nullptr) {
    for (const auto& r : resume_->received()) bytes += 4 * static_cast<size_t>(r.token_ids_size());
  }
  Prepare(bytes);
}

void GenerationCall::Begin(const v1::ResumeGenerateTextRequest* request) {
  resume_ = request;
  Begin(&request->generation());
}

void GenerationCall::Prepare(size_t text_bytes) {
  const bool taken = api_->text->Run(text_bytes, [self = shared_from_this()] {
    if (auto refusal = self->FillIn()) return self->Fail(*std::move(refusal));
    self->StartAtCore();
  });
  if (taken) return;
  Fail(ServingError::QueueFull(api_->text->waiting(), api_->text->options().max_queue,
                               "--max-text-queue"));
}

std::optional<ServingError> GenerationCall::FillIn() {
  {
    std::lock_guard lock(mutex_);
    if (cancelled_) return ServingError::Cancelled();
  }
  const TimePoint begin = api_->clock->Now();
  if (auto refusal = FillPrompt(*spec_, &parsed_)) return refusal;
  ClientRequest& request = parsed_.request;
  if (resume_ != nullptr) {
    if (auto refusal = ApplyResume(*resume_, *api_->resume, UnixSeconds(),
                                   api_->options.resume_max_age_sec, &parsed_, &ends_)) {
      return refusal;
    }
  } else if (parsed_.text != nullptr) {
    request.make_text = [tokenizer = parsed_.text->tokenizer.get(), stops = parsed_.stops] {
      return std::make_unique<SampleTextStream>(tokenizer, stops);
    };
  }
  api_->probe->Overhead(OverheadStage::kTokenize, api_->clock->Now() - begin);
  return std::nullopt;
}

void GenerationCall::StartAtCore() {
  ClientRequest& request = parsed_.request;
  const GenerationRequest& g = request.generation;
  request_hash_ = RequestHash(request.model, g, parsed_.StopStringList());
  start_.set_request_id(g.request_id);
  start_.set_seed(g.sampling.seed);
  start_.set_model(request.model);
  start_.set_prompt_token_count(static_cast<int32_t>(g.prompt.size()));
  times_.resize(g.num_samples);
  finishes_.assign(g.num_samples, FinishReason::kNone);
  for (size_t s = 0; s < g.resumed.size(); ++s) finishes_[s] = g.resumed[s].finish;
  request.received = received_;
  // From here on the loop may use this object.
  const RequestKey key = api_->loop->Start(std::move(request), shared_from_this());
  std::unique_lock lock(mutex_);
  key_ = key;
  if (!cancelled_) return;
  lock.unlock();
  api_->loop->CancelByClient(key);
}

void GenerationCall::OnCancel() {
  // gRPC cancels calls whose deadline has passed; the core ends those itself, as such.
  if (api_->clock->Now() >= deadline_) return;
  std::unique_lock lock(mutex_);
  cancelled_ = true;
  if (!key_) return;
  const RequestKey key = *key_;
  lock.unlock();
  api_->loop->CancelByClient(key);
}

// ---- The way out ----

void GenerationCall::SendHead(const std::string& fingerprint) {
  if (std::exchange(head_sent_, true)) return;
  start_.set_numerics_fingerprint(fingerprint);
  start_.set_resume_token(api_->resume->Encode({.seed = start_.seed(),
                                                .model = start_.model(),
                                                .fingerprint = fingerprint,
                                                .request_hash = request_hash_,
                                                .issued_unix_sec = UnixSeconds()}));
  SendStart(std::move(start_));
  for (OpenEnd& end : ends_) {
    SampleDelta delta;
    delta.sample = end.sample;
    delta.first_index = end.token_count;
    delta.finish = end.finish;
    SendDelta(ToPublic(delta, std::move(end.text)), 0);
  }
}

void GenerationCall::OnDeliver(DeliverAction action) {
  if (overrun_) return;
  const TimePoint now = api_->clock->Now();
  const auto count = static_cast<int32_t>(action.delta.tokens.size());
  const int32_t sample = action.delta.sample;
  if (action.first) start_.set_worker(std::move(action.worker));
  SendHead(action.fingerprint);
  NoteTokens(sample, count, now);
  finishes_[sample] = action.delta.finish;
  if (!SendDelta(ToPublic(action.delta, std::move(action.text)), count)) {
    overrun_ = true;
    if (context_->IsCancelled()) return;  // a broken stream; the cancel is on its way
    api_->loop->Abort(action.key, Overrun());
  }
}

void GenerationCall::NoteTokens(int32_t sample, int32_t count, TimePoint now) {
  if (count == 0) return;
  const bool first =
      std::all_of(times_.begin(), times_.end(), [](const SampleTimes& t) { return t.tokens == 0; });
  SampleTimes& times = times_[sample];
  if (first) api_->probe->FirstToken(parsed_.model.name, now - received_);
  if (times.tokens == 0) {
    times.first = now;
  } else {
    api_->probe->NextTokens(parsed_.model.name, now - times.last, count);
  }
  times.last = now;
  times.tokens += count;
}

void GenerationCall::OnFinish(FinishAction action) {
  // It may have finished before it was aborted.
  if (overrun_ && !action.error) action.error = Overrun();
  if (action.error) {
    NoteEnd(action.error->code, action.usage);
    const ServingError error = WithPublicFields(*std::move(action.error));
    AddRetryPushback(error, context_);
    const bool drop =
        error.code == absl::StatusCode::kCancelled || error.reason == "CLIENT_TOO_SLOW";
    return End(ToGrpcStatus(error, api_->options.debug_details), drop);
  }
  SendHead(action.fingerprint);
  SendSummary(ToPublicSummary(action));
  NoteEnd(absl::StatusCode::kOk, action.usage);
  End(grpc::Status::OK, false);
}

void GenerationCall::Fail(ServingError error) {
  FinishAction finish;
  finish.error = std::move(error);
  OnFinish(std::move(finish));
}

void GenerationCall::NoteEnd(absl::StatusCode code, const GenerationUsage& usage) {
  RequestEnd end;
  end.method = method_;
  end.model = parsed_.model.reached_workers > 0 ? parsed_.model.name : "";
  end.code = code;
  end.finish = code != absl::StatusCode::kOk ? FinishOf(code)
               : finishes_.empty()           ? FinishReason::kNone
                                             : finishes_.front();
  end.total = api_->clock->Now() - received_;
  end.generation = true;
  end.prompt_tokens = usage.prompt_tokens;
  end.output_tokens = usage.output_tokens;
  TimePoint first = kNoDeadline;
  Duration span{};
  int64_t gaps = 0;
  for (const SampleTimes& t : times_) {
    if (t.tokens == 0) continue;
    first = std::min(first, t.first);
    span += t.last - t.first;
    gaps += t.tokens - 1;
  }
  if (first != kNoDeadline) end.first_token = first - received_;
  if (gaps > 0) end.time_per_output_token = span / gaps;
  api_->probe->RequestEnded(end);
}

}  // namespace paceline

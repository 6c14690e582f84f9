#include "common/rpc/generation_proto.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/rpc/duration.h"
#include "common/rpc/error.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

using google::protobuf::RepeatedField;

template <typename T>
void Assign(const std::vector<T>& from, RepeatedField<T>* to) {
  to->Assign(from.begin(), from.end());
}

template <typename T>
std::vector<T> ToVector(const RepeatedField<T>& from) {
  return std::vector<T>(from.begin(), from.end());
}

absl::Status CheckPairs(const char* what, int ids, int values) {
  if (ids == values) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " has ", ids, " ids and ", values, " values"));
}

absl::Status CheckBytes(const char* what, const std::string& text) {
  if (text.size() <= kMaxWireIdBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " has ", text.size(), " bytes; the limit is ", kMaxWireIdBytes));
}

absl::Status CheckCount(const char* what, int64_t count, int64_t limit) {
  if (count <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " has ", count, " entries; the limit is ", limit));
}

// An absent duration is zero.
absl::Status Take(const google::protobuf::Duration& proto, Duration* duration) {
  ASSIGN_OR_RETURN(*duration, FromProto(proto));
  return absl::OkStatus();
}

}  // namespace

void ToProto(const SamplingParams& params, worker::v1::Sampling* proto) {
  proto->set_temperature(params.temperature);
  proto->set_top_k(params.top_k);
  proto->set_top_p(params.top_p);
  proto->set_min_p(params.min_p);
  proto->set_repetition_penalty(params.repetition_penalty);
  proto->set_presence_penalty(params.presence_penalty);
  proto->set_frequency_penalty(params.frequency_penalty);
  for (const auto& [id, bias] : params.logit_bias) {
    proto->add_bias_ids(id);
    proto->add_bias_values(bias);
  }
  proto->set_seed(params.seed);
  proto->set_max_tokens(params.max_tokens);
  proto->set_min_tokens(params.min_tokens);
  Assign(params.stop_token_ids, proto->mutable_stop_token_ids());
  proto->set_ignore_eos(params.ignore_eos);
  proto->set_top_logprobs(params.top_logprobs);
}

absl::StatusOr<SamplingParams> FromProto(const worker::v1::Sampling& proto) {
  RETURN_IF_ERROR(CheckPairs("logit_bias", proto.bias_ids_size(), proto.bias_values_size()));
  RETURN_IF_ERROR(CheckCount("logit_bias", proto.bias_ids_size(), kMaxLogitBias));
  RETURN_IF_ERROR(CheckCount("stop_token_ids", proto.stop_token_ids_size(), kMaxStopTokenIds));
  SamplingParams params;
  params.temperature = proto.temperature();
  params.top_k = proto.top_k();
  params.top_p = proto.top_p();
  params.min_p = proto.min_p();
  params.repetition_penalty = proto.repetition_penalty();
  params.presence_penalty = proto.presence_penalty();
  params.frequency_penalty = proto.frequency_penalty();
  for (int i = 0; i < proto.bias_ids_size(); ++i) {
    params.logit_bias.emplace_back(proto.bias_ids(i), proto.bias_values(i));
  }
  params.seed = proto.seed();
  params.max_tokens = proto.max_tokens();
  params.min_tokens = proto.min_tokens();
  params.stop_token_ids = ToVector(proto.stop_token_ids());
  params.ignore_eos = proto.ignore_eos();
  params.top_logprobs = proto.top_logprobs();
  return params;
}

worker::v1::DecodingMode ToProto(DecodingMode mode) {
  switch (mode) {
    case DecodingMode::kAuto:
      return worker::v1::DECODING_MODE_AUTO;
    case DecodingMode::kPlain:
      return worker::v1::DECODING_MODE_PLAIN;
    case DecodingMode::kDraft:
      return worker::v1::DECODING_MODE_DRAFT;
    case DecodingMode::kNgram:
      return worker::v1::DECODING_MODE_NGRAM;
  }
  return worker::v1::DECODING_MODE_UNSPECIFIED;
}

absl::StatusOr<DecodingMode> FromProto(worker::v1::DecodingMode mode) {
  switch (mode) {
    case worker::v1::DECODING_MODE_AUTO:
      return DecodingMode::kAuto;
    case worker::v1::DECODING_MODE_PLAIN:
      return DecodingMode::kPlain;
    case worker::v1::DECODING_MODE_DRAFT:
      return DecodingMode::kDraft;
    case worker::v1::DECODING_MODE_NGRAM:
      return DecodingMode::kNgram;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("decoding is ", static_cast<int>(mode), "; no such mode is known"));
  }
}

worker::v1::DraftStrategy ToProto(DraftStrategy strategy) {
  switch (strategy) {
    case DraftStrategy::kDefault:
      return worker::v1::DRAFT_STRATEGY_UNSPECIFIED;
    case DraftStrategy::kChain:
      return worker::v1::DRAFT_STRATEGY_CHAIN;
    case DraftStrategy::kEnumerate:
      return worker::v1::DRAFT_STRATEGY_ENUMERATE;
    case DraftStrategy::kSync:
      return worker::v1::DRAFT_STRATEGY_SYNC;
  }
  return worker::v1::DRAFT_STRATEGY_UNSPECIFIED;
}

absl::StatusOr<DraftStrategy> FromProto(worker::v1::DraftStrategy strategy) {
  switch (strategy) {
    case worker::v1::DRAFT_STRATEGY_UNSPECIFIED:
      return DraftStrategy::kDefault;
    case worker::v1::DRAFT_STRATEGY_CHAIN:
      return DraftStrategy::kChain;
    case worker::v1::DRAFT_STRATEGY_ENUMERATE:
      return DraftStrategy::kEnumerate;
    case worker::v1::DRAFT_STRATEGY_SYNC:
      return DraftStrategy::kSync;
    default:
      return absl::InvalidArgumentError(absl::StrCat(
          "draft_strategy is ", static_cast<int>(strategy), "; no such strategy is known"));
  }
}

worker::v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return worker::v1::FINISH_REASON_UNSPECIFIED;
    case FinishReason::kStop:
      return worker::v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return worker::v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return worker::v1::FINISH_REASON_CANCELLED;
    case FinishReason::kDeadline:
      return worker::v1::FINISH_REASON_DEADLINE;
    case FinishReason::kError:
      return worker::v1::FINISH_REASON_ERROR;
  }
  return worker::v1::FINISH_REASON_UNSPECIFIED;
}

absl::StatusOr<FinishReason> FromProto(worker::v1::FinishReason reason) {
  switch (reason) {
    case worker::v1::FINISH_REASON_UNSPECIFIED:
      return FinishReason::kNone;
    case worker::v1::FINISH_REASON_STOP:
      return FinishReason::kStop;
    case worker::v1::FINISH_REASON_LENGTH:
      return FinishReason::kLength;
    case worker::v1::FINISH_REASON_CANCELLED:
      return FinishReason::kCancelled;
    case worker::v1::FINISH_REASON_DEADLINE:
      return FinishReason::kDeadline;
    case worker::v1::FINISH_REASON_ERROR:
      return FinishReason::kError;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("finish is ", static_cast<int>(reason), "; no such reason is known"));
  }
}

void ToProto(uint64_t handle, const GenerationRequest& request, TimePoint now,
             worker::v1::Submit* proto) {
  proto->set_handle(handle);
  proto->set_request_id(request.request_id);
  Assign(request.prompt, proto->mutable_prompt());
  ToProto(request.sampling, proto->mutable_sampling());
  proto->set_num_samples(request.num_samples);
  proto->set_decoding(ToProto(request.decoding));
  proto->set_draft_strategy(ToProto(request.draft_strategy));
  proto->set_draft_length(request.draft_len);
  proto->set_priority(request.priority);
  proto->set_cache_salt(request.cache_salt);
  proto->set_session_id(request.session_id);
  if (request.deadline != kNoDeadline) {
    ToProto(std::max(Duration::zero(), request.deadline - now), proto->mutable_time_left());
  }
  for (const SampleProgress& progress : request.resumed) {
    auto* p = proto->add_resumed();
    Assign(progress.emitted, p->mutable_emitted());
    p->set_finish(ToProto(progress.finish));
  }
}

absl::StatusOr<GenerationRequest> FromProto(const worker::v1::Submit& proto, TimePoint now) {
  RETURN_IF_ERROR(CheckBytes("request_id", proto.request_id()));
  RETURN_IF_ERROR(CheckBytes("cache_salt", proto.cache_salt()));
  RETURN_IF_ERROR(CheckBytes("session_id", proto.session_id()));
  RETURN_IF_ERROR(CheckCount("resumed", proto.resumed_size(), kMaxWireSamples));
  if (!proto.has_sampling()) return absl::InvalidArgumentError("sampling is missing");
  GenerationRequest request;
  request.request_id = proto.request_id();
  request.prompt = ToVector(proto.prompt());
  ASSIGN_OR_RETURN(request.sampling, FromProto(proto.sampling()));
  request.num_samples = proto.num_samples();
  ASSIGN_OR_RETURN(request.decoding, FromProto(proto.decoding()));
  ASSIGN_OR_RETURN(request.draft_strategy, FromProto(proto.draft_strategy()));
  if (proto.draft_length() < 0 || proto.draft_length() > kMaxDraftLen) {
    return absl::InvalidArgumentError(absl::StrCat("draft_length is ", proto.draft_length(),
                                                   "; it must be in [0, ", kMaxDraftLen, "]"));
  }
  request.draft_len = proto.draft_length();
  request.priority = proto.priority();
  request.cache_salt = proto.cache_salt();
  request.session_id = proto.session_id();
  if (proto.has_time_left()) {
    ASSIGN_OR_RETURN(const Duration left, FromProto(proto.time_left()));
    // Longer than the clock can add is no deadline.
    if (left < kNoDeadline - std::max(now, TimePoint{})) request.deadline = now + left;
  }
  for (const auto& p : proto.resumed()) {
    SampleProgress progress;
    progress.emitted = ToVector(p.emitted());
    ASSIGN_OR_RETURN(progress.finish, FromProto(p.finish()));
    request.resumed.push_back(std::move(progress));
  }
  return request;
}

void ToProto(uint64_t handle, const SampleDelta& delta, worker::v1::Delta* proto) {
  proto->set_handle(handle);
  proto->set_sample(delta.sample);
  proto->set_first_index(delta.first_index);
  Assign(delta.tokens, proto->mutable_tokens());
  for (const TokenLogprobs& logprobs : delta.logprobs) {
    auto* p = proto->add_logprobs();
    p->set_logprob(logprobs.logprob);
    for (const TokenLogprob& top : logprobs.top) {
      p->add_top_ids(top.token);
      p->add_top_logprobs(top.logprob);
    }
  }
  proto->set_finish(ToProto(delta.finish));
}

absl::StatusOr<SampleDelta> FromProto(const worker::v1::Delta& proto) {
  if (proto.sample() < 0 || proto.first_index() < 0) {
    return absl::InvalidArgumentError(absl::StrCat("a delta of sample ", proto.sample(),
                                                   " begins at index ", proto.first_index()));
  }
  if (proto.logprobs_size() > 0 && proto.logprobs_size() != proto.tokens_size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a delta has ", proto.tokens_size(), " tokens and ", proto.logprobs_size(), " logprobs"));
  }
  SampleDelta delta;
  delta.sample = proto.sample();
  delta.first_index = proto.first_index();
  delta.tokens = ToVector(proto.tokens());
  for (const auto& p : proto.logprobs()) {
    RETURN_IF_ERROR(CheckPairs("top logprobs", p.top_ids_size(), p.top_logprobs_size()));
    TokenLogprobs logprobs;
    logprobs.logprob = p.logprob();
    for (int i = 0; i < p.top_ids_size(); ++i) {
      logprobs.top.push_back({p.top_ids(i), p.top_logprobs(i)});
    }
    delta.logprobs.push_back(std::move(logprobs));
  }
  ASSIGN_OR_RETURN(delta.finish, FromProto(proto.finish()));
  return delta;
}

void ToProto(uint64_t handle, const absl::Status& status, const GenerationUsage& usage,
             worker::v1::Finished* proto) {
  proto->set_handle(handle);
  *proto->mutable_status() = ToRpcStatus(status);
  proto->set_prompt_tokens(usage.prompt_tokens);
  proto->set_cached_tokens(usage.cached_tokens);
  proto->set_output_tokens(usage.output_tokens);
  proto->set_drafted_tokens(usage.drafted_tokens);
  proto->set_accepted_tokens(usage.accepted_tokens);
  ToProto(usage.queue_time, proto->mutable_queue_time());
  ToProto(usage.first_token_time, proto->mutable_first_token_time());
  ToProto(usage.total_time, proto->mutable_total_time());
}

absl::StatusOr<GenerationUsage> FromProto(const worker::v1::Finished& proto, absl::Status* status) {
  GenerationUsage usage;
  usage.prompt_tokens = proto.prompt_tokens();
  usage.cached_tokens = proto.cached_tokens();
  usage.output_tokens = proto.output_tokens();
  usage.drafted_tokens = proto.drafted_tokens();
  usage.accepted_tokens = proto.accepted_tokens();
  for (int32_t count : {usage.prompt_tokens, usage.cached_tokens, usage.output_tokens,
                        usage.drafted_tokens, usage.accepted_tokens}) {
    if (count < 0)
      return absl::InvalidArgumentError(absl::StrCat("usage counts ", count, " tokens"));
  }
  RETURN_IF_ERROR(Take(proto.queue_time(), &usage.queue_time));
  RETURN_IF_ERROR(Take(proto.first_token_time(), &usage.first_token_time));
  RETURN_IF_ERROR(Take(proto.total_time(), &usage.total_time));
  *status = FromRpcStatus(proto.status());
  return usage;
}

}  // namespace paceline

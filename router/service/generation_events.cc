#include "router/service/generation_events.h"

#include <utility>

#include "common/rpc/duration.h"

namespace paceline {

v1::FinishReason ToPublic(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return v1::FINISH_REASON_UNSPECIFIED;
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_ERROR;
}

v1::SampleDelta ToPublic(const SampleDelta& delta, std::string text) {
  v1::SampleDelta proto;
  proto.set_sample(delta.sample);
  proto.set_text(std::move(text));
  proto.mutable_token_ids()->Add(delta.tokens.begin(), delta.tokens.end());
  proto.set_first_index(delta.first_index);
  for (const TokenLogprobs& l : delta.logprobs) {
    v1::TokenLogprobs* logprobs = proto.add_logprobs();
    logprobs->set_logprob(l.logprob);
    for (const TokenLogprob& t : l.top) {
      v1::TokenLogprob* top = logprobs->add_top();
      top->set_token_id(t.token);
      top->set_logprob(t.logprob);
    }
  }
  proto.set_finish_reason(ToPublic(delta.finish));
  return proto;
}

v1::GenerationSummary ToPublicSummary(const FinishAction& finish) {
  v1::GenerationSummary proto;
  const GenerationUsage& u = finish.usage;
  v1::Usage* usage = proto.mutable_usage();
  usage->set_prompt_token_count(u.prompt_tokens);
  usage->set_cached_token_count(u.cached_tokens);
  usage->set_output_token_count(u.output_tokens);
  usage->set_drafted_token_count(u.drafted_tokens);
  usage->set_accepted_token_count(u.accepted_tokens);
  v1::Timings* timings = proto.mutable_timings();
  ToProto(u.queue_time, timings->mutable_queue());
  if (u.first_token_time > Duration::zero()) {
    ToProto(u.first_token_time, timings->mutable_first_token());
  }
  ToProto(u.total_time, timings->mutable_total());
  proto.set_failover_count(finish.failovers);
  proto.set_failover_exact(finish.exact);
  return proto;
}

bool MergeDeltas(v1::SampleDelta* last, v1::SampleDelta* next) {
  if (last->sample() != next->sample() ||
      last->first_index() + last->token_ids_size() != next->first_index()) {
    return false;
  }
  last->mutable_text()->append(next->text());
  last->mutable_token_ids()->MergeFrom(next->token_ids());
  for (v1::TokenLogprobs& l : *next->mutable_logprobs()) last->add_logprobs()->Swap(&l);
  last->set_finish_reason(next->finish_reason());
  return true;
}

void AppendDelta(v1::SampleDelta delta, v1::SampleOutput* sample) {
  sample->set_sample(delta.sample());
  sample->mutable_text()->append(delta.text());
  sample->mutable_token_ids()->MergeFrom(delta.token_ids());
  for (v1::TokenLogprobs& l : *delta.mutable_logprobs()) sample->add_logprobs()->Swap(&l);
  sample->set_finish_reason(delta.finish_reason());
}

}  // namespace paceline

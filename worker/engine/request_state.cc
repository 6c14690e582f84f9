#include "worker/engine/request_state.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

absl::Status CheckTokens(const char* field, const std::vector<TokenId>& tokens, int32_t vocab) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab) continue;
    return absl::InvalidArgumentError(absl::StrCat(field, "[", i, "] is token id ", tokens[i],
                                                   "; the vocabulary has ", vocab, " ids"));
  }
  return absl::OkStatus();
}

absl::Status CheckResumed(const GenerationRequest& request, int32_t vocab) {
  if (request.resumed.empty()) return absl::OkStatus();
  if (static_cast<int32_t>(request.resumed.size()) != request.num_samples) {
    return absl::InvalidArgumentError(absl::StrCat(
        "resumed has ", request.resumed.size(), " samples; num_samples is ", request.num_samples));
  }
  for (const SampleProgress& progress : request.resumed) {
    RETURN_IF_ERROR(CheckTokens("resumed.emitted", progress.emitted, vocab));
    if (static_cast<int64_t>(progress.emitted.size()) > request.sampling.max_tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("resumed.emitted has ", progress.emitted.size(), " tokens; max_tokens is ",
                       request.sampling.max_tokens));
    }
  }
  return absl::OkStatus();
}

bool Contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

std::unique_ptr<Sequence> MakeSequence(RequestState* state, int32_t sample) {
  auto s = std::make_unique<Sequence>();
  s->request = state;
  s->sample = sample;
  s->priority = state->request.priority;
  s->prompt_len = static_cast<int32_t>(state->request.prompt.size());
  s->max_len = s->prompt_len + state->sampling->max_tokens;
  return s;
}

}  // namespace

absl::Status ValidateRequest(const GenerationRequest& request, const RunnerInfo& info) {
  if (request.prompt.empty()) return absl::InvalidArgumentError("prompt has no token");
  RETURN_IF_ERROR(CheckTokens("prompt", request.prompt, info.vocab_size));
  RETURN_IF_ERROR(ValidateSamplingParams(request.sampling, info.vocab_size));
  if (request.num_samples < 1 || request.num_samples > kMaxSamples) {
    return absl::InvalidArgumentError(absl::StrCat("num_samples is ", request.num_samples,
                                                   "; it must be in [1, ", kMaxSamples, "]"));
  }
  const int64_t max_len = static_cast<int64_t>(request.prompt.size()) + request.sampling.max_tokens;
  if (max_len > info.max_context) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt (", request.prompt.size(), " tokens) plus max_tokens (",
                     request.sampling.max_tokens, ") is over the context of ", info.max_context));
  }
  RETURN_IF_ERROR(CheckResumed(request, info.vocab_size));
  // Each sample must fit alone; the last token's KV is never needed.
  const int64_t blocks = (max_len - 1 + info.block_size - 1) / info.block_size;
  if (blocks > info.num_blocks) {
    return absl::FailedPreconditionError(
        absl::StrCat("a sample of ", max_len, " tokens needs ", blocks, " KV blocks; the pool has ",
                     info.num_blocks, " of ", info.block_size, " tokens (--kv-blocks)"));
  }
  return absl::OkStatus();
}

FinishReason FinishOf(TokenId token, int32_t index, const SamplingParams& sampling,
                      const RunnerInfo& info) {
  if (Contains(sampling.stop_token_ids, token)) return FinishReason::kStop;
  if (!sampling.ignore_eos && Contains(info.eos_token_ids, token)) return FinishReason::kStop;
  return index + 1 >= sampling.max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

std::unique_ptr<RequestState> MakeRequestState(RequestHandle handle, GenerationRequest request,
                                               const RunnerInfo& info, TimePoint submitted) {
  auto state = std::make_unique<RequestState>();
  state->handle = handle;
  state->request = std::move(request);
  state->sampling = std::make_shared<const SamplingParams>(state->request.sampling);
  state->submitted = submitted;
  state->usage.prompt_tokens = static_cast<int32_t>(state->request.prompt.size());
  for (int32_t i = 0; i < state->request.num_samples; ++i) {
    auto s = MakeSequence(state.get(), i);
    if (!state->request.resumed.empty()) {
      const SampleProgress& progress = state->request.resumed[i];
      const int32_t emitted = static_cast<int32_t>(progress.emitted.size());
      state->usage.output_tokens += emitted;
      s->finish = progress.finish;
      if (s->finish == FinishReason::kNone && emitted > 0) {
        s->finish = FinishOf(progress.emitted.back(), emitted - 1, *state->sampling, info);
      }
      if (s->finish != FinishReason::kNone) s->state = SequenceState::kDone;
      if (emitted > 0) {
        s->tokens = state->request.prompt;
        s->tokens.insert(s->tokens.end(), progress.emitted.begin(), progress.emitted.end());
      }
    }
    if (s->state != SequenceState::kDone) {
      ++state->unfinished;
      if (s->tokens.empty()) {  // no output yet
        if (state->leader == nullptr) {
          s->tokens = state->request.prompt;
          state->leader = s.get();
        } else {
          s->state = SequenceState::kFollower;
        }
      }
    }
    state->samples.push_back(std::move(s));
  }
  return state;
}

}  // namespace paceline

#include "router/service/resume_parser.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/service/sample_text_stream.h"

namespace paceline {
namespace {

using Refusal = std::optional<ServingError>;

Refusal CheckToken(const v1::ResumeGenerateTextRequest& request, const ResumeToken& token,
                   const ParsedGeneration& parsed) {
  const auto& sampling = request.generation().sampling();
  if (token.model != parsed.request.model) {
    return ServingError::ResumeTokenInvalid("it is of another model");
  }
  if (sampling.has_seed() && sampling.seed() != token.seed) {
    return ServingError::ResumeTokenInvalid("it is of another seed");
  }
  if (token.request_hash !=
      RequestHash(parsed.request.model, parsed.request.generation, parsed.StopStringList())) {
    return ServingError::ResumeTokenInvalid("it is of another request");
  }
  return std::nullopt;
}

ServingError InvalidReceived(int index, const char* field, const std::string& description) {
  return ServingError::InvalidField(absl::StrCat("received[", index, "].", field), description);
}

std::optional<FinishReason> EndedBy(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_UNSPECIFIED:
      return FinishReason::kNone;
    case v1::FINISH_REASON_STOP:
      return FinishReason::kStop;
    case v1::FINISH_REASON_LENGTH:
      return FinishReason::kLength;
    default:
      return std::nullopt;
  }
}

// As RouterCore sees the end of a sample by its tokens alone.
FinishReason EndOf(const std::vector<TokenId>& tokens, const SamplingParams& sampling) {
  const auto n = static_cast<int32_t>(tokens.size());
  const auto& stops = sampling.stop_token_ids;
  if (n > sampling.min_tokens &&
      std::find(stops.begin(), stops.end(), tokens.back()) != stops.end())
    return FinishReason::kStop;
  return n >= sampling.max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

Refusal ReadReceived(const v1::ResumeGenerateTextRequest& request, const ParsedGeneration& parsed,
                     std::vector<SampleProgress>* progress, std::vector<int>* index_of) {
  const GenerationRequest& g = parsed.request.generation;
  progress->assign(g.num_samples, {});
  index_of->assign(g.num_samples, -1);
  for (int i = 0; i < request.received_size(); ++i) {
    const v1::ReceivedSample& r = request.received(i);
    if (r.sample() < 0 || r.sample() >= g.num_samples) {
      return InvalidReceived(
          i, "sample",
          absl::StrCat("it is ", r.sample(), "; it must be in [0, ", g.num_samples, ")"));
    }
    if (std::exchange((*index_of)[r.sample()], i) >= 0) {
      return InvalidReceived(i, "sample", absl::StrCat("sample ", r.sample(), " comes twice"));
    }
    if (r.token_ids_size() > g.sampling.max_tokens) {
      return InvalidReceived(
          i, "token_ids",
          absl::StrCat(r.token_ids_size(), " ids; max_tokens is ", g.sampling.max_tokens));
    }
    const std::span<const int32_t> ids(r.token_ids().data(), r.token_ids_size());
    if (auto refusal = CheckTokenIds(ids, parsed.model.vocab_size,
                                     absl::StrCat("received[", i, "].token_ids"))) {
      return refusal;
    }
    if (r.exit_layers_size() > 0) {
      return InvalidReceived(i, "exit_layers", "early exits are not implemented");
    }
    const auto finish = EndedBy(r.finish_reason());
    if (!finish) {
      return InvalidReceived(i, "finish_reason",
                             "a sample that can be resumed ends by STOP or LENGTH");
    }
    if (r.text_byte_count() < 0 || (r.text_byte_count() > 0 && parsed.text == nullptr)) {
      return InvalidReceived(i, "text_byte_count",
                             absl::StrCat("it is ", r.text_byte_count(), "; it must be ",
                                          parsed.text ? "at least 0" : "0 where there is no text"));
    }
    SampleProgress& p = (*progress)[r.sample()];
    p.emitted.assign(ids.begin(), ids.end());
    p.finish = *finish;
  }
  return std::nullopt;
}

// The factory that the core asks once per sample, in order.
std::function<std::unique_ptr<SampleText>()> TextsInOrder(
    std::vector<ResumedSampleText::State> states) {
  struct Queue {
    std::vector<ResumedSampleText::State> states;
    size_t next = 0;
  };
  auto queue = std::make_shared<Queue>(Queue{std::move(states), 0});
  return [queue]() -> std::unique_ptr<SampleText> {
    return std::make_unique<ResumedSampleText>(std::move(queue->states.at(queue->next++)));
  };
}

}  // namespace

Refusal ApplyResume(const v1::ResumeGenerateTextRequest& request, const ResumeTokenCodec& codec,
                    int64_t now_unix_sec, int64_t max_age_sec, ParsedGeneration* parsed,
                    std::vector<OpenEnd>* ends) {
  const auto token = codec.Parse(request.resume_token(), now_unix_sec, max_age_sec);
  if (!token.ok()) return ServingError::ResumeTokenInvalid(std::string(token.status().message()));
  if (auto refusal = CheckToken(request, *token, *parsed)) return refusal;
  ClientRequest& r = parsed->request;
  GenerationRequest& g = r.generation;
  g.sampling.seed = token->seed;
  r.resume_fingerprint = token->fingerprint;
  std::vector<int> index_of;
  if (auto refusal = ReadReceived(request, *parsed, &g.resumed, &index_of)) return refusal;

  std::vector<ResumedSampleText::State> states;
  for (int32_t s = 0; s < g.num_samples; ++s) {
    SampleProgress& p = g.resumed[s];
    OpenEnd end{.sample = s, .token_count = static_cast<int32_t>(p.emitted.size())};
    const bool told = p.finish != FinishReason::kNone;
    FinishReason finish = told ? p.finish : EndOf(p.emitted, g.sampling);
    if (parsed->text != nullptr) {
      std::optional<int64_t> text_bytes;
      if (index_of[s] >= 0 && request.received(index_of[s]).has_text_byte_count()) {
        text_bytes = request.received(index_of[s]).text_byte_count();
      }
      auto state = ResumedSampleText::Replay(
          std::make_unique<SampleTextStream>(parsed->text->tokenizer.get(), parsed->stops),
          p.emitted, text_bytes, told);
      if (!state.ok()) {
        return InvalidReceived(index_of[s], text_bytes ? "text_byte_count" : "token_ids",
                               std::string(state.status().message()));
      }
      if (state->stopped) finish = FinishReason::kStop;
      if (finish != FinishReason::kNone) {
        end.text = std::move(state->owed);
        if (!told && !state->stopped) end.text += state->text->Flush();
      }
      states.push_back(*std::move(state));
    }
    if (finish != FinishReason::kNone && (!told || !end.text.empty())) {
      end.finish = finish;
      ends->push_back(std::move(end));
    }
    p.finish = finish;
  }
  if (parsed->text != nullptr) r.make_text = TextsInOrder(std::move(states));
  return std::nullopt;
}

}  // namespace paceline

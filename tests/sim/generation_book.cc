#include "tests/sim/generation_book.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace paceline {

RandomRequests::RandomRequests(const HashModelOptions& model, RandomRequestOptions options,
                               uint64_t seed)
    : model_(model), options_(options), rng_(seed) {
  for (int i = 0; i < 3; ++i) {
    std::vector<TokenId>& stem = stems_.emplace_back(1 + Below(options_.max_prompt));
    for (TokenId& token : stem) token = Below(model.vocab_size);
  }
}

std::string RandomRequests::AnySession() { return absl::StrCat("session-", Below(3)); }

SamplingParams RandomRequests::Sampling() {
  SamplingParams p;
  p.seed = rng_();
  p.max_tokens = Below(4) == 0 ? 1 + Below(3) : 1 + Below(options_.max_tokens);
  p.temperature = static_cast<float>(Below(3)) * 0.6f;
  if (Below(5) == 0) p.top_k = 1 + Below(8);
  if (Below(5) == 0) p.top_p = 0.8f;
  if (Below(5) == 0) p.min_p = 0.05f;
  if (Below(5) == 0) p.repetition_penalty = 1.3f;
  if (Below(5) == 0) p.presence_penalty = 0.7f;
  if (Below(5) == 0) p.frequency_penalty = 0.4f;
  if (Below(5) == 0) p.logit_bias = {{Below(model_.options().vocab_size), 4.0f}};
  if (Below(4) == 0) p.min_tokens = Below(p.max_tokens + 1);
  if (Below(4) == 0) p.stop_token_ids = {1, Below(model_.options().vocab_size)};
  if (Below(4) == 0) p.top_logprobs = Below(3);
  p.ignore_eos = Below(2) == 0;
  return p;
}

// Each sample is somewhere on its way, or done.
void RandomRequests::Resume(GenerationRequest* request) {
  for (int32_t s = 0; s < request->num_samples; ++s) {
    SampleProgress& progress = request->resumed.emplace_back();
    const std::vector<TokenId> truth = model_.Generate(request->prompt, request->sampling, s);
    const int32_t emitted = Below(3) == 0 ? 0 : Below(static_cast<int32_t>(truth.size()) + 1);
    progress.emitted.assign(truth.begin(), truth.begin() + emitted);
    if (emitted < static_cast<int32_t>(truth.size())) {
      // A stop string ended it: the router knows, the worker cannot.
      if (emitted > 0 && Below(6) == 0) progress.finish = FinishReason::kStop;
    } else if (Below(2) == 0) {
      progress.finish = FinishReason::kLength;
    }
  }
}

GenerationRequest RandomRequests::Next() {
  GenerationRequest r;
  if (Below(2) == 0) {
    r.prompt = stems_[Below(static_cast<int32_t>(stems_.size()))];
    if (Below(2) == 0) r.prompt.resize(1 + Below(static_cast<int32_t>(r.prompt.size())));
  }
  const int32_t most = options_.max_prompt - static_cast<int32_t>(r.prompt.size());
  for (int32_t n = most > 0 ? Below(most + 1) : 0; n > 0; --n) {
    r.prompt.push_back(Below(model_.options().vocab_size));
  }
  if (r.prompt.empty()) r.prompt = {Below(model_.options().vocab_size)};
  r.sampling = Sampling();
  if (Below(3) == 0) r.num_samples = 1 + Below(options_.max_samples);
  r.decoding = static_cast<DecodingMode>(Below(4));
  r.priority = Below(options_.priorities);
  if (Below(4) == 0) r.cache_salt = absl::StrCat("salt-", Below(2));
  if (options_.sessions && Below(3) == 0) r.session_id = AnySession();
  if (Below(5) == 0) Resume(&r);
  return r;
}

GenerationBook::Sample GenerationBook::Expected(const GenerationRequest& request,
                                                int32_t sample) const {
  Sample expected;
  std::vector<TokenId> history = request.prompt;
  uint64_t prefix = model_.Empty();
  for (TokenId t : history) prefix = model_.Extend(prefix, t);
  for (bool ended = false; !ended;) {
    const HashSample s = model_.Sample(prefix, request.sampling, sample, history,
                                       static_cast<int32_t>(request.prompt.size()));
    ended = model_.Ends(s.token, static_cast<int32_t>(expected.truth.size()), request.sampling);
    TokenLogprobs& logprobs = expected.logprobs.emplace_back();
    logprobs.logprob = s.logprob;
    for (const auto& [token, logprob] : s.top) logprobs.top.push_back({token, logprob});
    expected.truth.push_back(s.token);
    history.push_back(s.token);
    prefix = model_.Extend(prefix, s.token);
  }
  return expected;
}

void GenerationBook::Submitted(RequestHandle handle, const GenerationRequest& request) {
  Open& open = open_[handle];
  open.request = request;
  for (int32_t s = 0; s < request.num_samples; ++s) {
    Sample& sample = open.samples.emplace_back(Expected(request, s));
    if (request.resumed.empty()) continue;
    const SampleProgress& progress = request.resumed[s];
    sample.received = progress.emitted.size();
    sample.finished = progress.finish != FinishReason::kNone;
    open.output_tokens += static_cast<int32_t>(sample.received);
  }
}

void GenerationBook::MayEnd(RequestHandle handle, absl::StatusCode code) {
  if (open(handle)) open_[handle].may_end.push_back(code);
}

void GenerationBook::Fault(RequestHandle handle, const std::string& what) {
  if (fault_.empty()) fault_ = absl::StrCat("request ", handle, ": ", what);
}

void GenerationBook::TakeDelta(const EngineOutput::Delta& d) {
  const auto it = open_.find(d.request);
  if (it == open_.end()) return Fault(d.request, "a delta behind the last word");
  Open& open = it->second;
  if (d.delta.sample < 0 || d.delta.sample >= static_cast<int32_t>(open.samples.size())) {
    return Fault(d.request, "no such sample");
  }
  Sample& s = open.samples[d.delta.sample];
  if (s.finished) return Fault(d.request, "a delta behind the end of its sample");
  if (d.delta.first_index != static_cast<int32_t>(s.received)) {
    return Fault(d.request,
                 absl::StrCat("first_index ", d.delta.first_index, ", received ", s.received));
  }
  const bool wanted = open.request.sampling.top_logprobs >= 0;
  if (d.delta.logprobs.size() != (wanted ? d.delta.tokens.size() : 0)) {
    return Fault(d.request, absl::StrCat(d.delta.logprobs.size(), " logprobs"));
  }
  for (size_t i = 0; i < d.delta.tokens.size(); ++i, ++s.received) {
    if (s.received >= s.truth.size() || s.truth[s.received] != d.delta.tokens[i]) {
      return Fault(d.request, absl::StrCat("sample ", d.delta.sample, ", output ", s.received,
                                           ": token ", d.delta.tokens[i]));
    }
    if (wanted && d.delta.logprobs[i] != s.logprobs[s.received]) {
      return Fault(d.request, absl::StrCat("logprobs of output ", s.received));
    }
  }
  tokens_ += static_cast<int64_t>(d.delta.tokens.size());
  open.output_tokens += static_cast<int32_t>(d.delta.tokens.size());
  const bool ends = s.received == s.truth.size();
  if (ends != (d.delta.finish != FinishReason::kNone)) {
    return Fault(d.request, absl::StrCat("finish at output ", s.received));
  }
  if (!ends) return;
  s.finished = true;
  SamplingParams unlimited = open.request.sampling;
  unlimited.max_tokens = 2;
  const bool stops = model_.Ends(s.truth.back(), 0, unlimited);
  if (d.delta.finish != (stops ? FinishReason::kStop : FinishReason::kLength)) {
    Fault(d.request, "finish reason");
  }
}

void GenerationBook::TakeFinished(const EngineOutput::Finished& f) {
  const auto it = open_.find(f.request);
  if (it == open_.end()) return Fault(f.request, "a second last word");
  const Open& open = it->second;
  const GenerationUsage& usage = f.usage;
  if (f.status.ok()) {
    if (!std::ranges::all_of(open.samples, &Sample::finished)) Fault(f.request, "a sample is open");
  } else if (std::ranges::find(open.may_end, f.status.code()) == open.may_end.end()) {
    Fault(f.request, f.status.ToString());
  }
  if (usage.output_tokens != open.output_tokens) {
    Fault(f.request, absl::StrCat("usage has ", usage.output_tokens, " output tokens of ",
                                  open.output_tokens));
  }
  const int32_t prompt = static_cast<int32_t>(open.request.prompt.size());
  if (usage.prompt_tokens != prompt || usage.cached_tokens < 0 || usage.cached_tokens > prompt) {
    Fault(f.request, "usage of the prompt");
  }
  if (usage.accepted_tokens > usage.drafted_tokens || usage.total_time < usage.first_token_time) {
    Fault(f.request, "usage");
  }
  if (open.request.decoding == DecodingMode::kPlain && usage.drafted_tokens > 0) {
    Fault(f.request, "drafts for a plain request");
  }
  cached_tokens_ += usage.cached_tokens;
  ++finished_;
  open_.erase(it);
}

void GenerationBook::Take(const EngineOutput& output) {
  for (const EngineOutput::Delta& d : output.deltas) TakeDelta(d);
  for (const EngineOutput::Finished& f : output.finished) TakeFinished(f);
}

}  // namespace paceline

#include "common/types/sampling_params.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

absl::Status Refuse(const char* field, double value, const char* range) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; it must be ", range));
}

absl::Status CheckToken(const char* field, TokenId id, int32_t vocab_size) {
  if (id >= 0 && id < vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " holds token id ", id, "; the vocabulary has ", vocab_size, " ids"));
}

absl::Status CheckDistribution(const SamplingParams& p) {
  // Written so that NaN fails every one of them.
  if (!(p.temperature >= 0 && p.temperature <= 100))
    return Refuse("temperature", p.temperature, "in [0, 100]");
  if (p.top_k < 0) return Refuse("top_k", p.top_k, "0 (all) or positive");
  if (!(p.top_p > 0 && p.top_p <= 1)) return Refuse("top_p", p.top_p, "in (0, 1]");
  if (!(p.min_p >= 0 && p.min_p < 1)) return Refuse("min_p", p.min_p, "in [0, 1)");
  if (!(p.repetition_penalty > 0 && p.repetition_penalty <= 100)) {
    return Refuse("repetition_penalty", p.repetition_penalty, "in (0, 100]");
  }
  if (!(std::abs(p.presence_penalty) <= 2))
    return Refuse("presence_penalty", p.presence_penalty, "in [-2, 2]");
  if (!(std::abs(p.frequency_penalty) <= 2))
    return Refuse("frequency_penalty", p.frequency_penalty, "in [-2, 2]");
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateSamplingParams(const SamplingParams& p, int32_t vocab_size) {
  RETURN_IF_ERROR(CheckDistribution(p));
  if (p.max_tokens < 1) return Refuse("max_tokens", p.max_tokens, "at least 1");
  if (p.min_tokens < 0 || p.min_tokens > p.max_tokens) {
    return Refuse("min_tokens", p.min_tokens, "in [0, max_tokens]");
  }
  if (p.top_logprobs < -1 || p.top_logprobs > kMaxTopLogprobs) {
    return Refuse("top_logprobs", p.top_logprobs, "in [0, 20]");
  }
  if (p.logit_bias.size() > kMaxLogitBias)
    return Refuse("logit_bias", p.logit_bias.size(), "at most 1024 entries");
  for (const auto& [id, bias] : p.logit_bias) {
    RETURN_IF_ERROR(CheckToken("logit_bias", id, vocab_size));
    if (!(std::abs(bias) <= 100)) return Refuse("logit_bias", bias, "in [-100, 100]");
  }
  if (p.stop_token_ids.size() > kMaxStopTokenIds) {
    return Refuse("stop_token_ids", p.stop_token_ids.size(), "at most 64 entries");
  }
  for (TokenId id : p.stop_token_ids) RETURN_IF_ERROR(CheckToken("stop_token_ids", id, vocab_size));
  return absl::OkStatus();
}

}  // namespace paceline

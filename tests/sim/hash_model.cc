#include "tests/sim/hash_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/check.h"
#include "common/hash.h"
#include "kernels/noise.h"

namespace paceline {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Uniform in (0, 1).
double Uniform(uint64_t hash) { return (static_cast<double>(hash >> 11) + 0.5) * 0x1p-53; }

void Penalise(std::span<float> logits, const SamplingParams& params,
              std::span<const TokenId> history, int32_t prompt_len) {
  if (params.repetition_penalty == 1 && params.presence_penalty == 0 &&
      params.frequency_penalty == 0) {
    return;
  }
  std::vector<int32_t> seen(logits.size(), 0);
  std::vector<int32_t> emitted(logits.size(), 0);
  for (size_t i = 0; i < history.size(); ++i) {
    ++seen[history[i]];
    if (i >= static_cast<size_t>(prompt_len)) ++emitted[history[i]];
  }
  for (size_t v = 0; v < logits.size(); ++v) {
    if (seen[v] > 0) {
      logits[v] = logits[v] > 0 ? logits[v] / params.repetition_penalty
                                : logits[v] * params.repetition_penalty;
    }
    if (emitted[v] > 0) {
      logits[v] -= params.presence_penalty + params.frequency_penalty * emitted[v];
    }
  }
}

// Token ids by falling score, ties to the lowest id; the first `count`.
std::vector<TokenId> Best(std::span<const float> scores, size_t count) {
  std::vector<TokenId> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  count = std::min(count, order.size());
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](TokenId a, TokenId b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  });
  order.resize(count);
  return order;
}

void Filter(std::span<float> logits, const SamplingParams& params) {
  if (params.top_k <= 0 && params.top_p >= 1 && params.min_p <= 0) return;
  const std::vector<TokenId> order = Best(logits, logits.size());
  const size_t top_k =
      params.top_k > 0 ? std::min<size_t>(params.top_k, order.size()) : order.size();
  double total = 0;
  for (size_t i = 0; i < top_k; ++i) total += std::exp(logits[order[i]] - logits[order[0]]);
  double before = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const double weight = std::exp(logits[order[i]] - logits[order[0]]);
    const bool keep =
        i < top_k && before < params.top_p * total && (i == 0 || weight >= params.min_p);
    before += weight;
    if (!keep) logits[order[i]] = kMasked;
  }
}

float LogSumExp(std::span<const float> logits) {
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float l : logits) sum += std::exp(l - most);
  return most + static_cast<float>(std::log(sum));
}

}  // namespace

uint64_t HashModel::Empty() const { return Mix64(0x68617368); }

uint64_t HashModel::Extend(uint64_t prefix, TokenId token) const {
  return HashCombine(prefix, static_cast<uint32_t>(token));
}

// Spread so that at temperature 1 a handful of tokens share most of the mass.
std::vector<float> HashModel::Logits(uint64_t prefix) const {
  uint64_t key = HashCombine(prefix, options_.seed);
  if (options_.agreement < 1 && Uniform(Mix64(key ^ 0x636f696e)) >= options_.agreement) {
    key = Mix64(key ^ 0x6f74686572);
  }
  std::vector<float> logits(options_.vocab_size);
  for (int32_t v = 0; v < options_.vocab_size; ++v) {
    logits[v] = static_cast<float>(10 * Uniform(Mix64(key + v)) - 5);
  }
  return logits;
}

bool HashModel::IsStop(TokenId token, const SamplingParams& params) const {
  const auto has = [&](const std::vector<TokenId>& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  return has(params.stop_token_ids) || (!params.ignore_eos && has(options_.eos_token_ids));
}

bool HashModel::Ends(TokenId token, int32_t index, const SamplingParams& params) const {
  return index + 1 >= params.max_tokens || IsStop(token, params);
}

HashSample HashModel::Sample(uint64_t prefix, const SamplingParams& params, int32_t sample,
                             std::span<const TokenId> history, int32_t prompt_len,
                             int32_t num_candidates) const {
  std::vector<float> scores = Logits(prefix);
  HashSample result;
  std::vector<float> raw;
  if (params.top_logprobs >= 0) raw = scores;

  const int32_t emitted = static_cast<int32_t>(history.size()) - prompt_len;
  CHECK_GE(emitted, 0);
  for (const auto& [token, bias] : params.logit_bias) scores[token] += bias;
  Penalise(scores, params, history, prompt_len);
  if (emitted < params.min_tokens) {
    for (TokenId v : params.stop_token_ids) scores[v] = kMasked;
    if (!params.ignore_eos) {
      for (TokenId v : options_.eos_token_ids) scores[v] = kMasked;
    }
  }
  if (params.temperature > 0) {
    for (float& s : scores) s /= params.temperature;
    Filter(scores, params);
    for (int32_t v = 0; v < options_.vocab_size; ++v) {
      if (scores[v] == kMasked) continue;
      scores[v] += kernels::GumbelNoise(params.seed, static_cast<uint32_t>(sample),
                                        static_cast<uint32_t>(history.size()), v);
    }
  }
  result.token =
      static_cast<TokenId>(std::max_element(scores.begin(), scores.end()) - scores.begin());
  if (num_candidates > 0) result.candidates = Best(scores, num_candidates);
  if (params.top_logprobs >= 0) {
    const float norm = LogSumExp(raw);
    result.logprob = raw[result.token] - norm;
    for (TokenId v : Best(raw, params.top_logprobs)) result.top.emplace_back(v, raw[v] - norm);
  }
  return result;
}

std::vector<TokenId> HashModel::Generate(std::span<const TokenId> prompt,
                                         const SamplingParams& params, int32_t sample) const {
  std::vector<TokenId> history(prompt.begin(), prompt.end());
  uint64_t prefix = Empty();
  for (TokenId t : prompt) prefix = Extend(prefix, t);
  std::vector<TokenId> output;
  for (bool ended = false; !ended;) {
    const TokenId token =
        Sample(prefix, params, sample, history, static_cast<int32_t>(prompt.size())).token;
    ended = Ends(token, static_cast<int32_t>(output.size()), params);
    output.push_back(token);
    history.push_back(token);
    prefix = Extend(prefix, token);
  }
  return output;
}

}  // namespace paceline

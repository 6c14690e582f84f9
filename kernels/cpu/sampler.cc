#include "kernels/cpu/sampler.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "kernels/cpu/isa_kernels.h"
#include "kernels/noise.h"

namespace paceline::kernels {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

struct Entry {
  float value = 0;
  int32_t id = 0;
};

// The order of everything here: falling value, ties to the lowest id.
bool Better(const Entry& a, const Entry& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// What one thread needs for a row; kept between rows.
struct Scratch {
  std::vector<float> logits;
  std::vector<float> scores;
  std::vector<int32_t> counts;  // per token: kSeen and the number of times in the output; else 0
  std::vector<int32_t> seen;
  std::vector<Entry> kept;
  std::vector<float> weights;
  std::vector<Entry> best;
};

constexpr int32_t kSeen = 1 << 30;

// The k best of values [count], best first; those of -infinity never. No sort of the whole.
void SelectBest(const float* values, int64_t count, int64_t k, const IsaKernels& kernels,
                std::vector<Entry>* best) {
  best->clear();
  constexpr int64_t kHeapLimit = 2048;
  if (k <= 0) return;
  if (k > kHeapLimit) {
    for (int64_t v = kernels.find_greater(values, 0, count, kMasked); v < count;
         v = kernels.find_greater(values, v + 1, count, kMasked)) {
      best->push_back({values[v], static_cast<int32_t>(v)});
    }
    if (static_cast<int64_t>(best->size()) > k) {
      std::nth_element(best->begin(), best->begin() + k, best->end(), Better);
      best->resize(static_cast<size_t>(k));
    }
    std::sort(best->begin(), best->end(), Better);
    return;
  }
  // A heap of the k best so far, worst on top. Ids rise, so an equal value never displaces one.
  float limit = kMasked;
  for (int64_t v = kernels.find_greater(values, 0, count, limit); v < count;
       v = kernels.find_greater(values, v + 1, count, limit)) {
    if (static_cast<int64_t>(best->size()) == k) {
      std::pop_heap(best->begin(), best->end(), Better);
      best->pop_back();
    }
    best->push_back({values[v], static_cast<int32_t>(v)});
    std::push_heap(best->begin(), best->end(), Better);
    if (static_cast<int64_t>(best->size()) == k) limit = best->front().value;
  }
  std::sort(best->begin(), best->end(), Better);
}

void ApplyAllowed(const uint32_t* allowed, int32_t vocab_size, float* logits) {
  for (int32_t word = 0; word * 32 < vocab_size; ++word) {
    const int32_t end = std::min(vocab_size - word * 32, 32);
    uint32_t denied = ~allowed[word];
    if (end < 32) denied &= (1u << end) - 1;
    while (denied != 0) {
      logits[word * 32 + __builtin_ctz(denied)] = kMasked;
      denied &= denied - 1;
    }
  }
}

void ApplyPenalties(const SampleParams& p, Scratch* scratch) {
  if (p.repetition_penalty == 1.0f && p.presence_penalty == 0.0f && p.frequency_penalty == 0.0f) {
    return;
  }
  const size_t vocab = static_cast<size_t>(p.vocab_size);
  if (scratch->counts.size() < vocab) scratch->counts.resize(vocab, 0);
  scratch->seen.clear();
  const auto count = [&](int32_t id, bool output) {
    if (id < 0 || id >= p.vocab_size) return;
    int32_t& entry = scratch->counts[static_cast<size_t>(id)];
    if (entry == 0) {
      scratch->seen.push_back(id);
      entry = kSeen;
    }
    if (output) ++entry;
  };
  for (int32_t i = 0; i < p.history_len; ++i) count(p.history[i], i >= p.prompt_len);
  for (int32_t i = 0; i < p.path_len; ++i) count(p.path[i], true);
  for (int32_t id : scratch->seen) {
    int32_t& entry = scratch->counts[static_cast<size_t>(id)];
    const int32_t in_output = entry - kSeen;
    entry = 0;
    float& logit = scratch->logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    if (in_output > 0) {
      logit -= p.presence_penalty;
      logit -= p.frequency_penalty * static_cast<float>(in_output);
    }
  }
}

// True if a logit may have changed.
bool ApplyEdits(const SampleParams& p, Scratch* scratch) {
  float* logits = scratch->logits.data();
  if (p.allowed != nullptr) ApplyAllowed(p.allowed, p.vocab_size, logits);
  for (int32_t i = 0; i < p.num_logit_bias; ++i) {
    const auto& [id, bias] = p.logit_bias[i];
    if (id >= 0 && id < p.vocab_size) logits[id] += bias;
  }
  ApplyPenalties(p, scratch);
  for (int32_t i = 0; i < p.num_banned; ++i) {
    if (p.banned[i] >= 0 && p.banned[i] < p.vocab_size) logits[p.banned[i]] = kMasked;
  }
  return p.allowed != nullptr || p.num_logit_bias > 0 || p.num_banned > 0 ||
         p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

void FillWeights(const IsaKernels& kernels, Scratch* scratch) {
  const size_t size = scratch->kept.size();
  scratch->weights.resize(size);
  for (size_t i = 0; i < size; ++i) scratch->weights[i] = scratch->kept[i].value;
  kernels.exponential(scratch->weights.data(), scratch->weights.data(), static_cast<int64_t>(size));
}

// Length of the shortest prefix of kept whose weight reaches top_p * total; 0 if none does.
size_t CrossingPrefix(const Scratch& scratch, float top_p, double total) {
  const double needed = static_cast<double>(top_p) * total;
  double sum = 0;
  for (size_t i = 0; i < scratch.kept.size(); ++i) {
    sum += static_cast<double>(scratch.weights[i]);
    if (sum >= needed) return i + 1;
  }
  return 0;
}

// What top-k, top-p and min-p leave of scratch->logits, already divided by the temperature and with
// a maximum of 0, into kept and weights: best first where top-k or top-p is on.
void Filter(const SampleParams& p, const IsaKernels& kernels, Scratch* scratch) {
  const int64_t vocab = p.vocab_size;
  const float* values = scratch->logits.data();
  const bool use_k = p.top_k > 0 && p.top_k < vocab;
  if (use_k || p.top_p < 1.0f) {
    if (use_k) {
      SelectBest(values, vocab, p.top_k, kernels, &scratch->kept);
      FillWeights(kernels, scratch);
      double total = 0;
      for (float weight : scratch->weights) total += static_cast<double>(weight);
      const size_t prefix = p.top_p < 1.0f ? CrossingPrefix(*scratch, p.top_p, total) : 0;
      if (prefix > 0) scratch->kept.resize(prefix);
    } else {
      const double total = kernels.sum_exp(values, vocab, 0.0f);
      for (int64_t k = 256;; k = k * 8) {
        SelectBest(values, vocab, std::min(k, vocab), kernels, &scratch->kept);
        FillWeights(kernels, scratch);
        const size_t prefix = CrossingPrefix(*scratch, p.top_p, total);
        if (prefix > 0) scratch->kept.resize(prefix);
        if (prefix > 0 || k >= vocab) break;
      }
    }
    scratch->weights.resize(scratch->kept.size());
    if (p.min_p > 0) {  // best first: weights fall, the first is 1
      size_t size = 0;
      while (size < scratch->kept.size() && scratch->weights[size] >= p.min_p) ++size;
      scratch->kept.resize(size);
    }
    return;
  }
  scratch->kept.clear();
  const float limit = std::log(p.min_p) - 0.01f;  // a little low; the weight decides
  for (int64_t v = kernels.find_greater(values, 0, vocab, limit); v < vocab;
       v = kernels.find_greater(values, v + 1, vocab, limit)) {
    scratch->kept.push_back({values[v], static_cast<int32_t>(v)});
  }
  FillWeights(kernels, scratch);
  size_t size = 0;
  for (size_t i = 0; i < scratch->kept.size(); ++i) {
    if (scratch->weights[i] >= p.min_p) scratch->kept[size++] = scratch->kept[i];
  }
  scratch->kept.resize(size);
}

void TakeIds(const std::vector<Entry>& entries, int32_t count, std::vector<int32_t>* ids) {
  ids->clear();
  for (const Entry& entry : entries) {
    if (static_cast<int32_t>(ids->size()) == count) break;
    ids->push_back(entry.id);
  }
}

// Token and candidates by the greatest of `scores`.
void ChooseFrom(const float* scores, const SampleParams& p, const IsaKernels& kernels,
                Scratch* scratch, SampleOutput* out) {
  out->token = static_cast<int32_t>(kernels.argmax(scores, p.vocab_size));
  if (p.num_candidates > 0) {
    SelectBest(scores, p.vocab_size, p.num_candidates, kernels, &scratch->best);
    TakeIds(scratch->best, p.num_candidates, &out->candidates);
  }
}

void Draw(const SampleParams& p, float greatest, const IsaKernels& kernels, Scratch* scratch,
          SampleOutput* out) {
  const int64_t vocab = p.vocab_size;
  float* logits = scratch->logits.data();
  kernels.scale_logits(logits, logits, vocab, greatest, p.temperature);
  const bool filtered = (p.top_k > 0 && p.top_k < p.vocab_size) || p.top_p < 1.0f || p.min_p > 0.0f;
  scratch->scores.resize(static_cast<size_t>(vocab));
  float* scores = scratch->scores.data();
  if (filtered) {
    Filter(p, kernels, scratch);
    if (static_cast<int64_t>(scratch->kept.size()) <= vocab / 16) {
      for (Entry& entry : scratch->kept) {
        entry.value += GumbelNoise(p.seed, p.sample, p.position, static_cast<uint32_t>(entry.id));
      }
      const int64_t wanted = std::max<int64_t>(p.num_candidates, 1);
      const auto middle = scratch->kept.begin() +
                          std::min<int64_t>(wanted, static_cast<int64_t>(scratch->kept.size()));
      std::partial_sort(scratch->kept.begin(), middle, scratch->kept.end(), Better);
      if (!scratch->kept.empty()) out->token = scratch->kept.front().id;
      if (p.num_candidates > 0) TakeIds(scratch->kept, p.num_candidates, &out->candidates);
      return;
    }
    // Many are left: noise for all by vectors costs less.
    std::fill(scratch->scores.begin(), scratch->scores.end(), kMasked);
    for (const Entry& entry : scratch->kept) scores[entry.id] = entry.value;
    logits = scores;
  }
  kernels.add_noise(logits, scores, vocab, p.seed, p.sample, p.position);
  ChooseFrom(scores, p, kernels, scratch, out);
}

void SampleRow(const SampleParams& p, const IsaKernels& kernels, SampleOutput* out) {
  static thread_local Scratch scratch;
  out->token = -1;
  out->logprob = 0;
  out->top_logprobs.clear();
  out->candidates.clear();
  const int64_t vocab = p.vocab_size;
  scratch.logits.resize(static_cast<size_t>(vocab));
  float* logits = scratch.logits.data();
  float greatest = kernels.clean_logits(p.logits, logits, vocab);
  double log_sum = 0;
  if (p.top_logprobs >= 0 && greatest > kMasked) {
    log_sum = static_cast<double>(greatest) + std::log(kernels.sum_exp(logits, vocab, greatest));
    SelectBest(logits, vocab, p.top_logprobs, kernels, &scratch.best);
    for (const Entry& entry : scratch.best) {
      out->top_logprobs.emplace_back(entry.id, static_cast<float>(entry.value - log_sum));
    }
  }
  if (ApplyEdits(p, &scratch)) greatest = kernels.clean_logits(logits, logits, vocab);
  if (greatest == kMasked) return;
  if (p.temperature > 0) {
    Draw(p, greatest, kernels, &scratch, out);
  } else {
    ChooseFrom(logits, p, kernels, &scratch, out);
  }
  if (p.top_logprobs >= 0 && out->token >= 0) {
    const float raw = std::min(p.logits[out->token], FLT_MAX);
    out->logprob = static_cast<float>(raw - log_sum);
  }
}

bool Valid(const SampleParams& p) {
  return p.logits != nullptr && p.vocab_size > 0 && p.temperature >= 0 && p.top_p > 0 &&
         p.top_p <= 1 && p.min_p >= 0 && p.min_p < 1 && p.repetition_penalty > 0 &&
         p.history_len >= 0 && p.path_len >= 0 && p.num_logit_bias >= 0 && p.num_banned >= 0 &&
         (p.history_len == 0 || p.history != nullptr) && (p.path_len == 0 || p.path != nullptr) &&
         (p.num_logit_bias == 0 || p.logit_bias != nullptr) &&
         (p.num_banned == 0 || p.banned != nullptr);
}

}  // namespace

CpuResult Sample(const SampleParams* rows, int64_t num_rows, SampleOutput* outputs,
                 ThreadPool& pool) {
  if (num_rows < 0) return CpuResult::kBadShape;
  for (int64_t i = 0; i < num_rows; ++i) {
    if (!Valid(rows[i])) return CpuResult::kBadShape;
  }
  const IsaKernels& kernels = KernelsFor(pool.isa());
  pool.ParallelFor(num_rows, [&](int64_t i) { SampleRow(rows[i], kernels, &outputs[i]); });
  return CpuResult::kOk;
}

}  // namespace paceline::kernels

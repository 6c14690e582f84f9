#include "cli/bench/workload.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cli/bench/arrivals.h"
#include "cli/bench/trace.h"
#include "common/hash.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

constexpr int64_t kSyntheticRequests = 32;
// Streams of numbers that one seed is spread to.
enum Stream : uint64_t { kRequestSeeds = 1, kPromptTokens, kPromptOrder, kArrivals, kBlockTokens };

uint64_t SeedFor(uint64_t seed, Stream stream) { return HashCombine(seed, stream); }

absl::Status AddFilePrompts(const BenchOptions& o, Workload* w) {
  for (const std::string& path : o.prompts) {
    ASSIGN_OR_RETURN(std::vector<std::string> prompts, ReadPromptFile(path));
    for (std::string& prompt : prompts) {
      if (o.max_prompt_bytes > 0 && prompt.size() > static_cast<size_t>(o.max_prompt_bytes)) {
        ++w->left_out_prompts;
      } else {
        w->texts.push_back(std::move(prompt));
      }
    }
  }
  if (w->texts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("all ", w->left_out_prompts,
                                                   " prompts are longer than --max-prompt-bytes ",
                                                   o.max_prompt_bytes));
  }
  if (o.shuffle) Shuffle(SeedFor(o.seed, kPromptOrder), &w->texts);
  w->max_tokens = {o.max_tokens};
  return absl::OkStatus();
}

absl::Status AddSyntheticPrompts(const BenchOptions& o, const ModelLimits& limits, Workload* w) {
  if (int64_t{o.prompt_tokens} + o.max_tokens > limits.context_length) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt-tokens ", o.prompt_tokens, " and --max-tokens ", o.max_tokens,
                     " exceed the model's context of ", limits.context_length));
  }
  w->synthetic_tokens = {o.prompt_tokens};
  w->max_tokens = {o.max_tokens};
  return absl::OkStatus();
}

// The prompt is cut first: outputs decide how long a request stays.
bool CutToContext(int32_t context, int32_t* prompt, int32_t* output) {
  if (int64_t{*prompt} + *output <= context) return false;
  *output = std::min(*output, context - 1);
  *prompt = std::min(*prompt, context - *output);
  return true;
}

int32_t Scaled(int32_t tokens, double scale) {
  return static_cast<int32_t>(std::clamp(std::round(tokens * scale), 1.0, 1e9));
}

absl::Status AddTrace(const BenchOptions& o, const ModelLimits& limits, Workload* w) {
  ASSIGN_OR_RETURN(const std::vector<TraceRow> rows,
                   ReadTrace(o.trace, o.requests > 0 ? o.requests : Workload::kUnbounded));
  for (const TraceRow& row : rows) {
    const Duration arrival = Seconds(std::min(ToSeconds(row.arrival) / o.trace_speed, 1e9));
    if (o.duration > 0 && arrival >= Seconds(o.duration)) break;
    int32_t prompt = Scaled(row.prompt_tokens, o.length_scale);
    int32_t output = Scaled(row.output_tokens, o.length_scale);
    w->cut_rows += CutToContext(limits.context_length, &prompt, &output) ? 1 : 0;
    w->arrivals.push_back(arrival);
    w->synthetic_tokens.push_back(prompt);
    w->prompt_blocks.push_back(row.blocks);
    w->max_tokens.push_back(output);
  }
  w->block_tokens = Scaled(kTraceBlockTokens, o.length_scale);
  w->request_count = static_cast<int64_t>(w->arrivals.size());
  return absl::OkStatus();
}

void PlanRequests(const BenchOptions& o, Workload* w) {
  w->request_count = o.requests > 0       ? o.requests
                     : o.duration > 0     ? Workload::kUnbounded
                     : !o.prompts.empty() ? static_cast<int64_t>(w->texts.size())
                                          : kSyntheticRequests;
  if (o.rate <= 0) return;
  const Duration limit = o.duration > 0 ? Seconds(o.duration) : Duration::max();
  w->arrivals = PoissonArrivals(o.rate, w->request_count, limit, SeedFor(o.seed, kArrivals));
  w->request_count = static_cast<int64_t>(w->arrivals.size());
}

}  // namespace

BenchPrompt Workload::PromptOf(int64_t request) const {
  const auto i = static_cast<size_t>(request);
  if (!texts.empty()) return {.text = texts[i % texts.size()]};
  const int32_t length = synthetic_tokens[i % synthetic_tokens.size()];
  BenchPrompt prompt;
  if (!prompt_blocks.empty()) {
    prompt.token_ids = TokensOfBlocks(prompt_blocks[i % prompt_blocks.size()], length);
  }
  const auto missing = length - static_cast<int32_t>(prompt.token_ids.size());
  const std::vector<int32_t> own =
      SyntheticPrompt(missing, vocabulary_size, SeedFor(seed, kPromptTokens), request);
  prompt.token_ids.insert(prompt.token_ids.end(), own.begin(), own.end());
  return prompt;
}

std::vector<int32_t> Workload::TokensOfBlocks(const std::vector<int64_t>& blocks,
                                              int32_t length) const {
  std::vector<int32_t> ids;
  for (const int64_t block : blocks) {
    const int32_t missing = length - static_cast<int32_t>(ids.size());
    if (missing == 0) break;
    const std::vector<int32_t> tokens = SyntheticPrompt(
        std::min(block_tokens, missing), vocabulary_size, SeedFor(seed, kBlockTokens), block);
    ids.insert(ids.end(), tokens.begin(), tokens.end());
  }
  return ids;
}

int32_t Workload::MaxTokensOf(int64_t request) const {
  return max_tokens[static_cast<size_t>(request) % max_tokens.size()];
}

uint64_t Workload::SeedOf(int64_t request) const {
  return HashCombine(SeedFor(seed, kRequestSeeds), static_cast<uint64_t>(request));
}

absl::StatusOr<Workload> MakeWorkload(const BenchOptions& options, const ModelLimits& limits) {
  if (limits.context_length < 2 || limits.vocabulary_size < 1) {
    return absl::InvalidArgumentError(absl::StrCat("model ", limits.model, " has a context of ",
                                                   limits.context_length, " and a vocabulary of ",
                                                   limits.vocabulary_size));
  }
  Workload workload;
  workload.seed = options.seed;
  workload.vocabulary_size = limits.vocabulary_size;
  if (!options.trace.empty()) {
    RETURN_IF_ERROR(AddTrace(options, limits, &workload));
  } else {
    RETURN_IF_ERROR(options.prompts.empty() ? AddSyntheticPrompts(options, limits, &workload)
                                            : AddFilePrompts(options, &workload));
    PlanRequests(options, &workload);
  }
  if (workload.request_count == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("no request arrives within --duration ", options.duration));
  }
  return workload;
}

}  // namespace paceline

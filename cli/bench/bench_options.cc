#include "cli/bench/bench_options.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/flags.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

// What flags hold as text and options as lists.
struct Lists {
  std::string prompts, metrics, compare, speculation = "auto";
};

void AddLoadFlags(Flags* flags, BenchOptions* o, Lists* lists) {
  flags->Add("router", &o->router, "the router's address");
  flags->Add("model", &o->model, "the model; default: the cluster's only one");
  flags->Add("prompts", &lists->prompts,
             "prompt files, by commas: .jsonl with \"turns\", \"prompt\" or \"question\", else a "
             "prompt per line");
  flags->Add("max-prompt-bytes", &o->max_prompt_bytes, "leave out longer prompts; 0 = none");
  flags->Add("shuffle", &o->shuffle, "prompts in an order drawn from the seed");
  flags->Add("prompt-tokens", &o->prompt_tokens, "synthetic prompts of this many random token ids");
  flags->Add(
      "trace", &o->trace,
      "CSV with TIMESTAMP,ContextTokens,GeneratedTokens, or .jsonl with timestamp, input_length, "
      "output_length and hash_ids: its arrivals, lengths and shared prefixes, as an "
      "open loop of synthetic prompts");
  flags->Add("trace-speed", &o->trace_speed, "how much faster than recorded the trace is played");
  flags->Add("length-scale", &o->length_scale, "factor on the trace's lengths");
  flags->Add("requests", &o->requests,
             "requests; 0 = each prompt once, 32 synthetic ones, or what the duration allows");
  flags->Add("duration", &o->duration, "seconds after which no request starts; 0 = no limit");
  flags->Add("concurrency", &o->concurrency, "closed loop: requests in flight");
  flags->Add("rate", &o->rate,
             "open loop: Poisson arrivals per second; latencies count from the scheduled arrival");
  flags->Add("warmup", &o->warmup,
             "requests before the measurement, not counted; in a comparison each mode's, by "
             "default as many "
             "as run at once");
  flags->Add("timeout", &o->timeout, "seconds after which a request fails");
  flags->Add("shared-cache", &o->shared_cache,
             "runs may find each other's prefixes in the cache; default: each run has a cache salt "
             "of its own");
}

void AddRequestFlags(Flags* flags, BenchOptions* o, Lists* lists) {
  flags->Add("max-tokens", &o->max_tokens, "output tokens per request");
  flags->Add("temperature", &o->temperature, "0 = greedy");
  flags->Add("top-p", &o->top_p, "nucleus");
  flags->Add("top-k", &o->top_k, "keep k; 0 = all");
  flags->Add("seed", &o->seed, "decides prompts, arrivals and each request's own seed");
  flags->Add("ignore-eos", &o->ignore_eos, "end-of-text is an ordinary token");
  flags->AddChoice("speculation", &lists->speculation, {"auto", "always", "off"}, "drafting");
  flags->Add(
      "draft-length", &o->draft_length,
      "draft tokens per step of the modes draft, sync, chain and enumerate; 0 = the worker's");
  flags->Add("compare", &lists->compare,
             "run the same requests under several modes, in turn: some of "
             "auto,plain,draft,sync,chain,enumerate,ngram; token ids must agree");
  flags->Add("rounds", &o->rounds, "how often each mode of --compare runs");
}

void AddOutputFlags(Flags* flags, BenchOptions* o, Lists* lists) {
  flags->Add("slo-ttft", &o->slo_ttft,
             "count requests whose TTFT is at most this many ms; 0 = all");
  flags->Add("slo-tpot", &o->slo_tpot, "and whose TPOT is at most this many ms; 0 = all");
  flags->Add("target-devices", &o->target_devices,
             "devices of the targets, for tokens/s per device in a comparison; 0 = not told");
  flags->Add("draft-devices", &o->draft_devices, "and of the draft workers");
  flags->Add("metrics", &lists->metrics,
             "metrics addresses of targets and draft workers, by commas: what they counted");
  flags->Add("json", &o->json,
             "write the figures as JSON to this file; - = standard output, "
             "in place of the table");
  flags->Add("svg", &o->svg, "draw tokens/s and where the time went to this file");
  flags->Add("allow-errors", &o->allow_errors, "failed requests do not fail the benchmark");
}

absl::Status InRange(const char* flag, double value, double least, double greatest) {
  if (value >= least && value <= greatest) return absl::OkStatus();  // NaN is in no range
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, " is ", value, "; it must lie in [", least, ", ", greatest, "]"));
}

absl::Status CheckRanges(const Flags& flags, const BenchOptions& o) {
  RETURN_IF_ERROR(InRange("requests", static_cast<double>(o.requests), 0, 1e7));
  RETURN_IF_ERROR(InRange("duration", o.duration, 0, 1e6));
  RETURN_IF_ERROR(InRange("concurrency", o.concurrency, 1, 65536));
  RETURN_IF_ERROR(InRange("rate", o.rate, flags.Given("rate") ? 1e-3 : 0, 1e6));
  RETURN_IF_ERROR(InRange("warmup", o.warmup, 0, 1e6));
  RETURN_IF_ERROR(InRange("timeout", o.timeout, 1e-3, 1e6));
  RETURN_IF_ERROR(
      InRange("prompt-tokens", o.prompt_tokens, flags.Given("prompt-tokens") ? 1 : 0, 1 << 22));
  RETURN_IF_ERROR(InRange("max-prompt-bytes", o.max_prompt_bytes, 0, 1 << 30));
  RETURN_IF_ERROR(InRange("trace-speed", o.trace_speed, 1e-3, 1e6));
  RETURN_IF_ERROR(InRange("length-scale", o.length_scale, 1e-6, 1e3));
  RETURN_IF_ERROR(InRange("max-tokens", o.max_tokens, 1, 1 << 22));
  RETURN_IF_ERROR(InRange("draft-length", o.draft_length, 0, 16));
  RETURN_IF_ERROR(InRange("slo-ttft", o.slo_ttft, 0, 1e9));
  RETURN_IF_ERROR(InRange("slo-tpot", o.slo_tpot, 0, 1e9));
  RETURN_IF_ERROR(InRange("target-devices", o.target_devices, 0, 1 << 20));
  RETURN_IF_ERROR(InRange("draft-devices", o.draft_devices, 0, 1 << 20));
  return InRange("rounds", o.rounds, 1, 1000);
}

absl::Status AtOdds(const char* flag, const char* other) {
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, " and --", other, " exclude each other"));
}

absl::Status CheckCombinations(const Flags& flags, const BenchOptions& o) {
  constexpr std::pair<const char*, const char*> kExclusive[] = {
      {"rate", "concurrency"},    {"trace", "concurrency"},   {"trace", "rate"},
      {"trace", "prompts"},       {"trace", "prompt-tokens"}, {"prompts", "prompt-tokens"},
      {"compare", "speculation"}, {"trace", "max-tokens"}};
  for (const auto& [flag, other] : kExclusive) {
    if (flags.Given(flag) && flags.Given(other)) return AtOdds(flag, other);
  }
  if (o.prompts.empty() && o.trace.empty() && o.prompt_tokens == 0) {
    return absl::InvalidArgumentError("name prompts: --prompts, --prompt-tokens or --trace");
  }
  if (!o.compare.empty() && o.duration > 0) {
    return absl::InvalidArgumentError(
        "--compare runs the same requests in all modes; bound it by --requests, not --duration");
  }
  if (flags.Given("rounds") && o.compare.empty()) {
    return absl::InvalidArgumentError("--rounds belongs to --compare");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BenchOptions> ParseBenchOptions(int argc, const char* const* argv) {
  BenchOptions o;
  Lists lists;
  Flags flags("paceline bench: measures a cluster under load");
  AddLoadFlags(&flags, &o, &lists);
  AddRequestFlags(&flags, &o, &lists);
  AddOutputFlags(&flags, &o, &lists);
  const std::vector<std::string> positional = flags.ParseOrExit(argc, argv);
  if (!positional.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument ", positional[0]));
  }
  o.prompts = SplitList(lists.prompts);
  o.metrics = SplitList(lists.metrics);
  o.mode = lists.speculation == "off"      ? BenchMode::kPlain
           : lists.speculation == "always" ? BenchMode::kDraft
                                           : BenchMode::kAuto;
  if (flags.Given("compare")) {
    ASSIGN_OR_RETURN(o.compare, ParseBenchModes(lists.compare));
  }
  if (!o.compare.empty() && !flags.Given("warmup")) o.warmup = o.concurrency;
  RETURN_IF_ERROR(CheckRanges(flags, o));
  RETURN_IF_ERROR(CheckCombinations(flags, o));
  return o;
}

}  // namespace paceline

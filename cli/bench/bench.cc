#include "cli/bench/bench.h"

#include <grpcpp/client_context.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/bench/bar_chart.h"
#include "cli/bench/bench_options.h"
#include "cli/bench/bench_report.h"
#include "cli/bench/comparison.h"
#include "cli/bench/load_generator.h"
#include "cli/bench/progress_line.h"
#include "cli/bench/run_summary.h"
#include "cli/bench/spec_activity.h"
#include "cli/bench/workload.h"
#include "common/flags.h"
#include "common/rpc/channel.h"
#include "common/rpc/error.h"
#include "common/status_macros.h"
#include "paceline/v1/inference.grpc.pb.h"

namespace paceline {
namespace {

// Set by the first Ctrl-C: the run ends early and is reported. The second one kills.
std::atomic<bool> g_stop = false;
static_assert(std::atomic<bool>::is_always_lock_free);
void OnInterrupt(int) { g_stop = true; }

void CatchInterrupt() {
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
}

// The only model, or the one that was named.
absl::StatusOr<ModelLimits> FetchLimits(const std::shared_ptr<grpc::Channel>& channel,
                                        const BenchOptions& o) {
  v1::ListModelsResponse response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const grpc::Status status =
      v1::InferenceService::NewStub(channel)->ListModels(&context, {}, &response);
  if (!status.ok()) return FromGrpcStatus(status);
  std::vector<std::string> names;
  for (const v1::Model& model : response.models()) {
    names.push_back(model.name());
    if (o.model.empty() ? response.models_size() == 1 : model.name() == o.model) {
      return ModelLimits{model.name(), model.context_length(), model.vocabulary_size()};
    }
  }
  if (names.empty()) return absl::UnavailableError(absl::StrCat(o.router, " serves no model yet"));
  return absl::InvalidArgumentError(
      absl::StrCat(o.model.empty() ? "several models are served; name one with --model: "
                                   : absl::StrCat("--model is '", o.model, "'; served are "),
                   absl::StrJoin(names, ", ")));
}

LoadDescription Describe(const BenchOptions& o, const Workload& w, const ModelLimits& limits) {
  LoadDescription d{.model = limits.model};
  const std::string count = w.request_count == Workload::kUnbounded
                                ? absl::StrFormat("requests for %g s", o.duration)
                                : absl::StrCat(w.request_count, " requests");
  std::vector<std::string> files;
  for (const std::string& path : o.prompts) {
    files.push_back(std::filesystem::path(path).filename().string());
  }
  if (!files.empty()) {
    d.prompts =
        absl::StrCat(count, " from ", w.texts.size(), " prompts of ", absl::StrJoin(files, ", "));
    if (w.left_out_prompts > 0) absl::StrAppend(&d.prompts, " (", w.left_out_prompts, " left out)");
  } else if (!o.trace.empty()) {
    d.prompts = absl::StrCat(count, " of ", std::filesystem::path(o.trace).filename().string());
    if (w.cut_rows > 0) {
      absl::StrAppend(&d.prompts, " (", w.cut_rows, " cut to the context of ",
                      limits.context_length, ")");
    }
  } else {
    d.prompts = absl::StrCat(count, " of ", o.prompt_tokens, " random tokens");
  }
  d.load = !o.trace.empty() ? absl::StrFormat("open loop at %g x the trace's speed", o.trace_speed)
           : o.rate > 0     ? absl::StrFormat("open loop at %g/s", o.rate)
                            : absl::StrFormat("closed loop of %d", o.concurrency);
  d.settings = absl::StrFormat("temperature %g, seed %d", o.temperature, o.seed);
  if (o.trace.empty()) d.settings = absl::StrFormat("%d tokens, %s", o.max_tokens, d.settings);
  if (o.compare.empty()) absl::StrAppend(&d.settings, ", ", BenchModeName(o.mode));
  return d;
}

// Everything that a run needs, and what it told.
class Bench {
 public:
  Bench(const BenchOptions& options, std::shared_ptr<grpc::Channel> channel, ModelLimits limits,
        const Workload& workload)
      : options_(options),
        channel_(std::move(channel)),
        limits_(std::move(limits)),
        workload_(workload),
        progress_(stderr) {}

  struct RunResult {
    std::vector<RequestOutcome> outcomes;
    std::optional<SpecActivity> activity;
  };

  void WarmUp(BenchMode mode) {
    if (options_.warmup == 0) return;
    LoadLimits limits{
        .requests = options_.warmup, .concurrency = options_.concurrency, .stop = &g_stop};
    Load(mode, limits, absl::StrCat(BenchModeName(mode), " warm-up"));
  }

  // UNAVAILABLE where metrics do not come.
  absl::StatusOr<RunResult> Run(BenchMode mode, const std::string& name) {
    LoadLimits limits{.requests = workload_.request_count,
                      .concurrency = options_.open_loop() ? 0 : options_.concurrency,
                      .stop = &g_stop};
    if (options_.duration > 0) limits.duration = Seconds(options_.duration);
    RunResult result;
    SpecActivity before;
    if (!options_.metrics.empty()) {
      ASSIGN_OR_RETURN(before, ScrapeSpecActivity(options_.metrics));
    }
    result.outcomes = Load(mode, limits, name);
    if (!options_.metrics.empty()) {
      ASSIGN_OR_RETURN(const SpecActivity after, ScrapeSpecActivity(options_.metrics));
      result.activity = after.Since(before);
    }
    return result;
  }

 private:
  std::vector<RequestOutcome> Load(BenchMode mode, const LoadLimits& limits,
                                   const std::string& name) {
    RequestSettings settings{.model = limits_.model,
                             .temperature = static_cast<float>(options_.temperature),
                             .top_p = static_cast<float>(options_.top_p),
                             .top_k = options_.top_k,
                             .draft_length = options_.draft_length,
                             .ignore_eos = options_.ignore_eos || !options_.trace.empty(),
                             .mode = mode,
                             .timeout = Seconds(options_.timeout)};
    if (!options_.shared_cache) settings.cache_salt = absl::StrCat(salt_, "-", run_++);
    std::function<void(const LoadProgress&)> progress;
    if (progress_.shown()) {
      progress = [&](const LoadProgress& p) { ShowProgress(name, limits, p); };
    }
    std::vector<RequestOutcome> outcomes = RunLoad(channel_, workload_, settings, limits, progress);
    progress_.Clear();
    return outcomes;
  }

  void ShowProgress(const std::string& name, const LoadLimits& limits, const LoadProgress& p) {
    const double seconds = std::max(1e-3, ToSeconds(p.elapsed));
    const double share = limits.requests == Workload::kUnbounded
                             ? seconds / ToSeconds(limits.duration)
                             : static_cast<double>(p.done) / static_cast<double>(limits.requests);
    progress_.Show(absl::StrFormat("%s %s %d done, %d in flight, %.0f tokens/s%s", name,
                                   ProgressBar(share, 24), p.done, p.in_flight,
                                   static_cast<double>(p.output_tokens) / seconds,
                                   p.failed > 0 ? absl::StrFormat(", %d failed", p.failed) : ""));
  }

  const BenchOptions& options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const ModelLimits limits_;
  const Workload& workload_;
  ProgressLine progress_;
  // Of this process alone, so that no run finds prefixes of an earlier benchmark. Salts change
  // nothing but what the prefix cache shares.
  const std::string salt_ = absl::StrCat("bench-", std::random_device{}());
  int64_t run_ = 0;
};

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  return absl::OkStatus();
}

Bar ThroughputBar(const std::string& name, const Spread& throughput, const Spread& ratio) {
  std::string note = absl::StrFormat(throughput.mean >= 100 ? "%.0f" : "%.1f", throughput.mean);
  if (ratio.mean > 0) absl::StrAppend(&note, absl::StrFormat(" (%.2f x)", ratio.mean));
  return {name, {throughput.mean}, throughput, note};
}

std::string DrawFigures(const LoadDescription& d, const std::vector<ModeFigures>& figures) {
  BarPanel user{"One user's speed", "output tokens/s while a request decodes", {}, {}};
  BarPanel total{"Throughput of the cluster", "output tokens/s, all requests together", {}, {}};
  BarPanel time{"Where the time of a request went",
                "mean ms per request",
                {"queued", "to the first token", "decoding"},
                {}};
  for (const ModeFigures& f : figures) {
    const std::string name = BenchModeName(f.mode);
    const RunSummary& s = f.summary;
    user.bars.push_back(ThroughputBar(name, f.user_throughput, f.user_ratio));
    total.bars.push_back(ThroughputBar(name, f.output_throughput, f.output_ratio));
    time.bars.push_back(
        {name,
         {s.mean_queue, s.mean_prefill, s.mean_decode},
         std::nullopt,
         absl::StrFormat("%.0f ms", s.mean_queue + s.mean_prefill + s.mean_decode)});
  }
  return DrawBarChart(absl::StrCat("paceline bench: ", d.model),
                      absl::StrCat(d.prompts, ", ", d.load, "; ", d.settings),
                      {std::move(user), std::move(total), std::move(time)});
}

// To standard output and the files that were asked for.
absl::Status Publish(const BenchOptions& o, const LoadDescription& d, const std::string& table,
                     nlohmann::ordered_json figures, const std::vector<ModeFigures>& modes) {
  nlohmann::ordered_json json = DescriptionJson(d);
  json["seed"] = o.seed;
  json.update(figures);
  const std::string text =
      json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  if (o.json == "-") {
    std::fputs(text.c_str(), stdout);
  } else {
    std::printf("%s\n%s", FormatDescription(d).c_str(), table.c_str());
    if (!o.json.empty()) RETURN_IF_ERROR(WriteFile(o.json, text));
  }
  if (!o.svg.empty()) RETURN_IF_ERROR(WriteFile(o.svg, DrawFigures(d, modes)));
  return absl::OkStatus();
}

int Interrupted() {
  std::fprintf(stderr, "stopped early by Ctrl-C\n");
  return kExitFailure;
}

absl::StatusOr<int> RunSingle(const BenchOptions& o, const LoadDescription& d, Bench* bench) {
  bench->WarmUp(o.mode);
  ASSIGN_OR_RETURN(const Bench::RunResult run, bench->Run(o.mode, BenchModeName(o.mode)));
  if (g_stop && run.outcomes.empty()) return Interrupted();
  const ServiceLimits limits{.ttft = o.slo_ttft, .tpot = o.slo_tpot};
  const RunSummary summary = Summarize(run.outcomes, limits);
  ModeFigures figures{.mode = o.mode, .summary = summary};
  figures.output_throughput = SpreadOf({&summary.output_throughput, 1});
  figures.user_throughput = SpreadOf({&summary.user_throughput, 1});
  RETURN_IF_ERROR(Publish(o, d, FormatRun(summary, run.activity, limits),
                          RunJson(summary, run.activity), {figures}));
  if (g_stop) return Interrupted();
  return summary.failed() > 0 && !o.allow_errors ? kExitFailure : 0;
}

absl::StatusOr<int> RunComparison(const BenchOptions& o, const LoadDescription& d, Bench* bench) {
  Comparison comparison(o.compare, {.ttft = o.slo_ttft, .tpot = o.slo_tpot},
                        {.targets = o.target_devices, .drafts = o.draft_devices});
  for (BenchMode mode : o.compare) bench->WarmUp(mode);
  for (int32_t round = 0; round < o.rounds && !g_stop; ++round) {
    for (BenchMode mode : comparison.RoundOrder(round)) {
      const std::string name =
          absl::StrFormat("round %d/%d %s", round + 1, o.rounds, BenchModeName(mode));
      ASSIGN_OR_RETURN(Bench::RunResult run, bench->Run(mode, name));
      if (g_stop) break;  // a run cut short compares with none
      comparison.AddRun(mode, round, std::move(run.outcomes), run.activity);
    }
  }
  if (g_stop && comparison.run_count() == 0) return Interrupted();
  const std::vector<ModeFigures> figures = comparison.Figures();
  RETURN_IF_ERROR(Publish(o, d, FormatComparison(comparison), ComparisonJson(comparison), figures));
  if (g_stop) return Interrupted();
  int64_t failed = 0;
  for (const ModeFigures& f : figures) failed += f.summary.failed();
  const bool errors = failed > 0 && !o.allow_errors;
  return errors || !comparison.divergences().empty() ? kExitFailure : 0;
}

absl::StatusOr<int> RunOptions(const BenchOptions& o) {
  const std::shared_ptr<grpc::Channel> channel = NewChannel(o.router);
  ASSIGN_OR_RETURN(const ModelLimits limits, FetchLimits(channel, o));
  ASSIGN_OR_RETURN(const Workload workload, MakeWorkload(o, limits));
  const LoadDescription description = Describe(o, workload, limits);
  Bench bench(o, channel, limits, workload);
  return o.compare.empty() ? RunSingle(o, description, &bench)
                           : RunComparison(o, description, &bench);
}

}  // namespace

int RunBench(int argc, const char* const* argv) {
  CatchInterrupt();
  const absl::StatusOr<BenchOptions> options = ParseBenchOptions(argc, argv);
  if (!options.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(options.status().message()).c_str());
    return kExitUsage;
  }
  const absl::StatusOr<int> status = RunOptions(*options);
  if (status.ok()) return *status;
  std::fprintf(stderr, "error: %s\n", std::string(status.status().message()).c_str());
  return kExitFailure;
}

}  // namespace paceline

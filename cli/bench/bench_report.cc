#include "cli/bench/bench_report.h"

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/bench/text_table.h"

namespace paceline {
namespace {

constexpr size_t kMaxDivergencesShown = 10;

// Three digits that mean something: 1234, 123, 12.3, 1.23.
std::string Figure(double value) {
  const char* format = value >= 99.95 ? "%.0f" : value >= 9.995 ? "%.1f" : "%.2f";
  return absl::StrFormat(*absl::ParsedFormat<'f'>::New(format), value);
}

std::string Percent(double share) { return absl::StrFormat("%.1f %%", 100 * share); }

std::string Ratio(const Spread& ratio) {
  if (ratio.mean == 0) return "-";
  if (ratio.least == ratio.greatest) return absl::StrFormat("%.2f", ratio.mean);
  return absl::StrFormat("%.2f (%.2f-%.2f)", ratio.mean, ratio.least, ratio.greatest);
}

void AddDistribution(const std::string& name, const Distribution& d, TextTable* table) {
  if (d.count == 0) {
    table->AddRow({name, "-", "-", "-", "-", "-", "-"});
    return;
  }
  table->AddRow({name, Figure(d.mean), Figure(d.p50), Figure(d.p90), Figure(d.p95), Figure(d.p99),
                 Figure(d.max)});
}

std::string FormatActivity(const SpecActivity& a) {
  return absl::StrCat("  at step start  ", Percent(a.Share(a.full)), " full, ",
                      Percent(a.Share(a.partial)), " partial, ", Percent(a.Share(a.local)),
                      " local, ", Percent(a.Share(a.none)), " no proposal (",
                      absl::StrFormat("%.0f", a.steps()), " steps)\n", "  proposals      ",
                      Percent(a.late_share()), " late, ", Percent(a.stale_share()), " stale; ",
                      Figure(a.accepted_per_draft()), " tokens accepted of each verified; ",
                      Percent(a.hit_rate()), " of enumerated outcomes hit\n");
}

std::string FormatLimits(const ServiceLimits& limits) {
  std::vector<std::string> parts;
  if (limits.ttft > 0) parts.push_back(absl::StrFormat("TTFT <= %g ms", limits.ttft));
  if (limits.tpot > 0) parts.push_back(absl::StrFormat("TPOT <= %g ms", limits.tpot));
  return absl::StrJoin(parts, ", ");
}

nlohmann::ordered_json DistributionJson(const Distribution& d) {
  return {{"count", d.count}, {"mean", d.mean}, {"p50", d.p50}, {"p90", d.p90},
          {"p95", d.p95},     {"p99", d.p99},   {"max", d.max}};
}

nlohmann::ordered_json SpreadJson(const Spread& s) {
  return {{"mean", s.mean}, {"min", s.least}, {"max", s.greatest}};
}

nlohmann::ordered_json ActivityJson(const SpecActivity& a) {
  return {{"steps", a.steps()},
          {"full_share", a.Share(a.full)},
          {"partial_share", a.Share(a.partial)},
          {"local_share", a.Share(a.local)},
          {"none_share", a.Share(a.none)},
          {"late_share", a.late_share()},
          {"stale_share", a.stale_share()},
          {"outcome_hit_rate", a.hit_rate()},
          {"drafts", a.drafts},
          {"draft_tokens", a.drafted},
          {"accepted_tokens", a.accepted},
          {"accepted_per_draft", a.accepted_per_draft()}};
}

// One line of the comparison: a name and what stands in each mode's column.
using Cell = std::function<std::string(const ModeFigures&)>;
struct Line {
  const char* name;
  Cell cell;
};

Cell Latency(Distribution RunSummary::*which, double Distribution::*quantile) {
  return [=](const ModeFigures& f) {
    const Distribution& d = f.summary.*which;
    return d.count == 0 ? std::string("-") : Figure(d.*quantile);
  };
}

// A figure of the drafts: "-" where nothing was drafted.
Cell Drafts(double (RunSummary::*figure)() const, std::string (*format)(double)) {
  return [=](const ModeFigures& f) {
    return f.summary.drafted_tokens == 0 ? std::string("-") : format((f.summary.*figure)());
  };
}

std::vector<Line> ClientLines() {
  using S = RunSummary;
  using D = Distribution;
  return {
      {"tokens/s per user", [](const ModeFigures& f) { return Figure(f.user_throughput.mean); }},
      {"  ratio (rounds)", [](const ModeFigures& f) { return Ratio(f.user_ratio); }},
      {"tokens/s in total", [](const ModeFigures& f) { return Figure(f.output_throughput.mean); }},
      {"  ratio (rounds)", [](const ModeFigures& f) { return Ratio(f.output_ratio); }},
      {"drafts accepted", Drafts(&S::acceptance, Percent)},
      {"tokens per message",
       [](const ModeFigures& f) { return Figure(f.summary.tokens_per_message()); }},
      {"TTFT p50, ms", Latency(&S::ttft, &D::p50)},
      {"TTFT p99, ms", Latency(&S::ttft, &D::p99)},
      {"ITL p50, ms", Latency(&S::itl, &D::p50)},
      {"ITL p99, ms", Latency(&S::itl, &D::p99)},
      {"TPOT p50, ms", Latency(&S::tpot, &D::p50)},
      {"TPOT p99, ms", Latency(&S::tpot, &D::p99)},
      {"end to end p50, ms", Latency(&S::e2e, &D::p50)},
      {"end to end p99, ms", Latency(&S::e2e, &D::p99)},
      {"failed", [](const ModeFigures& f) { return absl::StrCat(f.summary.failed()); }},
  };
}

// What was asked for by a flag.
std::vector<Line> OptionalLines(const ServiceLimits& limits,
                                const std::vector<ModeFigures>& figures) {
  std::vector<Line> lines;
  if (figures.front().device_throughput > 0) {
    lines.push_back(
        {"tokens/s per device", [](const ModeFigures& f) { return Figure(f.device_throughput); }});
  }
  if (limits.any()) {
    lines.push_back(
        {"goodput, requests/s", [](const ModeFigures& f) { return Figure(f.summary.goodput); }});
  }
  return lines;
}

// "-" where nothing was scraped, or the mode has no such thing.
Cell Activity(double (*figure)(const SpecActivity&), double (*whole)(const SpecActivity&),
              std::string (*format)(double)) {
  return [=](const ModeFigures& f) {
    if (!f.activity.has_value() || whole(*f.activity) == 0) return std::string("-");
    return format(figure(*f.activity));
  };
}

std::vector<Line> WorkerLines() {
  using A = SpecActivity;
  const auto steps = [](const A& a) { return a.steps(); };
  const auto arrived = [](const A& a) { return a.late + a.full + a.partial; };
  return {
      {"at step start: full", Activity([](const A& a) { return a.Share(a.full); }, steps, Percent)},
      {"  partial", Activity([](const A& a) { return a.Share(a.partial); }, steps, Percent)},
      {"  local", Activity([](const A& a) { return a.Share(a.local); }, steps, Percent)},
      {"  none", Activity([](const A& a) { return a.Share(a.none); }, steps, Percent)},
      {"proposals late", Activity([](const A& a) { return a.late_share(); }, arrived, Percent)},
      {"proposals stale", Activity([](const A& a) { return a.stale_share(); },
                                   [](const A& a) { return a.proposals; }, Percent)},
      {"outcomes hit", Activity([](const A& a) { return a.hit_rate(); },
                                [](const A& a) { return a.hits + a.misses; }, Percent)},
      {"accepted per draft", Activity([](const A& a) { return a.accepted_per_draft(); },
                                      [](const A& a) { return a.drafts; }, Figure)},
  };
}

void AddLines(const std::vector<Line>& lines, const std::vector<ModeFigures>& figures,
              TextTable* table) {
  for (const Line& line : lines) {
    std::vector<std::string> row = {line.name};
    for (const ModeFigures& f : figures) row.push_back(line.cell(f));
    table->AddRow(std::move(row));
  }
}

std::string FormatEquality(const Comparison& comparison) {
  const std::vector<Divergence>& list = comparison.divergences();
  if (list.empty()) {
    return absl::StrCat("tokens: all ", comparison.compared(),
                        " outputs equal those of the first run of their request\n");
  }
  std::string out = absl::StrCat("tokens: ", list.size(), " of ", comparison.compared(),
                                 " outputs DIFFER from the first run of their request\n");
  for (size_t i = 0; i < std::min(list.size(), kMaxDivergencesShown); ++i) {
    const Divergence& d = list[i];
    absl::StrAppend(&out, "  request ", d.request, ": ", BenchModeName(d.mode), " (round ",
                    d.round + 1, ") leaves ", BenchModeName(d.reference_mode), " (round ",
                    d.reference_round + 1, ") at output token ", d.position, "\n");
  }
  if (list.size() > kMaxDivergencesShown) {
    absl::StrAppend(&out, "  and ", list.size() - kMaxDivergencesShown, " more\n");
  }
  return out;
}

}  // namespace

std::string FormatDescription(const LoadDescription& d) {
  return absl::StrCat(d.model, ": ", d.prompts, ", ", d.load, "; ", d.settings, "\n");
}

std::string FormatErrors(const RunSummary& summary) {
  std::string out;
  for (const auto& [code, error] : summary.errors) {
    absl::StrAppend(&out, "failed: ", error.count, " x ", code, ": ", error.first_message, "\n");
  }
  return out;
}

std::string FormatRun(const RunSummary& s, const std::optional<SpecActivity>& activity,
                      const ServiceLimits& limits) {
  std::string out = absl::StrFormat("  requests       %d completed, %d failed in %.2f s\n",
                                    s.completed, s.failed(), s.seconds);
  absl::StrAppend(&out, "  throughput     ", Figure(s.output_throughput), " output tokens/s, ",
                  Figure(s.request_throughput), " requests/s; ", Figure(s.user_throughput),
                  " tokens/s per user\n");
  absl::StrAppend(&out, "  tokens         ", s.output_tokens, " out, ", s.prompt_tokens,
                  " in prompts (", s.cached_tokens, " cached); ", Figure(s.tokens_per_message()),
                  " a message\n");
  absl::StrAppend(&out, "  drafts         ", s.accepted_tokens, " of ", s.drafted_tokens,
                  " tokens accepted",
                  s.drafted_tokens > 0 ? absl::StrCat(" (", Percent(s.acceptance()), ")") : "",
                  s.failovers > 0 ? absl::StrCat("; ", s.failovers, " failovers") : "", "\n");
  absl::StrAppend(&out, "  mean time      ", Figure(s.mean_queue), " ms queued, ",
                  Figure(s.mean_prefill), " ms to the first token, ", Figure(s.mean_decode),
                  " ms from there\n");
  if (limits.any()) {
    absl::StrAppend(&out, "  within limits  ", s.within_limits, " requests, ", Figure(s.goodput),
                    " a second (", FormatLimits(limits), ")\n");
  }
  if (activity.has_value()) out += FormatActivity(*activity);
  TextTable table;
  table.AddRow({"ms", "mean", "p50", "p90", "p95", "p99", "max"});
  AddDistribution("TTFT", s.ttft, &table);
  AddDistribution("ITL", s.itl, &table);
  AddDistribution("ITL per token", s.itl_token, &table);
  AddDistribution("TPOT", s.tpot, &table);
  AddDistribution("end to end", s.e2e, &table);
  AddDistribution("send lag", s.send_lag, &table);
  return absl::StrCat(out, "\n", table.ToString(), FormatErrors(s));
}

std::string FormatComparison(const Comparison& comparison) {
  const std::vector<ModeFigures> figures = comparison.Figures();
  TextTable table;
  std::vector<std::string> head = {""};
  bool scraped = false;
  for (const ModeFigures& f : figures) {
    head.push_back(BenchModeName(f.mode));
    scraped |= f.activity.has_value();
  }
  table.AddRow(std::move(head));
  AddLines(ClientLines(), figures, &table);
  AddLines(OptionalLines(comparison.limits(), figures), figures, &table);
  if (scraped) AddLines(WorkerLines(), figures, &table);
  std::string out =
      absl::StrCat(table.ToString(), "ratios to ", BenchModeName(comparison.reference()),
                   " in the same round: mean (least-greatest)\n");
  for (const ModeFigures& f : figures) {
    const std::string errors = FormatErrors(f.summary);
    if (!errors.empty()) absl::StrAppend(&out, BenchModeName(f.mode), " ", errors);
  }
  return out + FormatEquality(comparison);
}

nlohmann::ordered_json RunJson(const RunSummary& s, const std::optional<SpecActivity>& activity) {
  nlohmann::ordered_json errors = nlohmann::ordered_json::object();
  for (const auto& [code, error] : s.errors) {
    errors[code] = {{"count", error.count}, {"first_message", error.first_message}};
  }
  nlohmann::ordered_json json = {{"completed", s.completed},
                                 {"failed", s.failed()},
                                 {"errors", errors},
                                 {"duration", s.seconds},
                                 {"total_input_tokens", s.prompt_tokens},
                                 {"total_cached_tokens", s.cached_tokens},
                                 {"total_output_tokens", s.output_tokens},
                                 {"request_throughput", s.request_throughput},
                                 {"request_goodput", s.goodput},
                                 {"output_throughput", s.output_throughput},
                                 {"user_throughput", s.user_throughput},
                                 {"drafted_tokens", s.drafted_tokens},
                                 {"accepted_tokens", s.accepted_tokens},
                                 {"tokens_per_message", s.tokens_per_message()},
                                 {"failovers", s.failovers},
                                 {"ttft_ms", DistributionJson(s.ttft)},
                                 {"itl_ms", DistributionJson(s.itl)},
                                 {"itl_per_token_ms", DistributionJson(s.itl_token)},
                                 {"tpot_ms", DistributionJson(s.tpot)},
                                 {"e2el_ms", DistributionJson(s.e2e)},
                                 {"send_lag_ms", DistributionJson(s.send_lag)},
                                 {"mean_queue_ms", s.mean_queue},
                                 {"mean_prefill_ms", s.mean_prefill},
                                 {"mean_decode_ms", s.mean_decode}};
  if (activity.has_value()) json["speculation"] = ActivityJson(*activity);
  return json;
}

nlohmann::ordered_json ComparisonJson(const Comparison& comparison) {
  nlohmann::ordered_json modes = nlohmann::ordered_json::array();
  for (const ModeFigures& f : comparison.Figures()) {
    nlohmann::ordered_json mode = {{"mode", BenchModeName(f.mode)},
                                   {"user_throughput_rounds", SpreadJson(f.user_throughput)},
                                   {"user_ratio", SpreadJson(f.user_ratio)},
                                   {"output_throughput_rounds", SpreadJson(f.output_throughput)},
                                   {"output_ratio", SpreadJson(f.output_ratio)},
                                   {"device_throughput", f.device_throughput}};
    mode.update(RunJson(f.summary, f.activity));
    modes.push_back(std::move(mode));
  }
  nlohmann::ordered_json divergences = nlohmann::ordered_json::array();
  for (const Divergence& d : comparison.divergences()) {
    divergences.push_back({{"request", d.request},
                           {"mode", BenchModeName(d.mode)},
                           {"round", d.round},
                           {"reference_mode", BenchModeName(d.reference_mode)},
                           {"reference_round", d.reference_round},
                           {"position", d.position}});
  }
  return {{"reference", BenchModeName(comparison.reference())},
          {"modes", std::move(modes)},
          {"outputs_compared", comparison.compared()},
          {"divergences", std::move(divergences)}};
}

nlohmann::ordered_json DescriptionJson(const LoadDescription& d) {
  return {{"model", d.model}, {"prompts", d.prompts}, {"load", d.load}, {"settings", d.settings}};
}

}  // namespace paceline

#include "cli/bench/comparison.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace paceline {

Comparison::Comparison(std::vector<BenchMode> modes, ServiceLimits limits, DeviceCount devices)
    : modes_(std::move(modes)), limits_(limits), devices_(devices) {
  CHECK(!modes_.empty());
}

std::vector<BenchMode> Comparison::RoundOrder(int32_t round) const {
  std::vector<BenchMode> order = modes_;
  std::rotate(order.begin(), order.begin() + round % static_cast<int32_t>(order.size()),
              order.end());
  return order;
}

BenchMode Comparison::reference() const {
  const bool plain = std::find(modes_.begin(), modes_.end(), BenchMode::kPlain) != modes_.end();
  return plain ? BenchMode::kPlain : modes_.front();
}

int64_t Comparison::run_count() const {
  int64_t count = 0;
  for (const auto& [mode, rounds] : runs_) count += static_cast<int64_t>(rounds.size());
  return count;
}

void Comparison::AddRun(BenchMode mode, int32_t round, std::vector<RequestOutcome> outcomes,
                        std::optional<SpecActivity> activity) {
  for (const RequestOutcome& outcome : outcomes) {
    if (outcome.ok()) CompareTokens(mode, round, outcome);
  }
  RunSummary summary = Summarize(outcomes, limits_);
  const bool added =
      runs_[mode].try_emplace(round, Run{std::move(outcomes), std::move(summary), activity}).second;
  CHECK(added) << BenchModeName(mode) << " ran twice in round " << round;
}

void Comparison::CompareTokens(BenchMode mode, int32_t round, const RequestOutcome& outcome) {
  const auto [it, first] =
      references_.try_emplace(outcome.index, Reference{mode, round, outcome.token_ids});
  if (first) return;
  ++compared_;
  const std::vector<int32_t>& expected = it->second.token_ids;
  const std::vector<int32_t>& got = outcome.token_ids;
  if (got == expected) return;
  const auto differ = std::mismatch(got.begin(), got.end(), expected.begin(), expected.end()).first;
  divergences_.push_back({.request = outcome.index,
                          .mode = mode,
                          .reference_mode = it->second.mode,
                          .round = round,
                          .reference_round = it->second.round,
                          .position = differ - got.begin()});
}

ModeFigures Comparison::FiguresOf(BenchMode mode) const {
  ModeFigures figures{.mode = mode};
  const auto runs = runs_.find(mode);
  if (runs == runs_.end()) return figures;
  const auto reference_runs = runs_.find(reference());
  std::vector<std::vector<RequestOutcome>> rounds;
  std::vector<double> output, user, output_ratio, user_ratio;
  for (const auto& [round, run] : runs->second) {
    rounds.push_back(run.outcomes);
    output.push_back(run.summary.output_throughput);
    user.push_back(run.summary.user_throughput);
    if (run.activity.has_value()) {
      if (!figures.activity.has_value()) figures.activity.emplace();
      *figures.activity += *run.activity;
    }
    if (reference_runs == runs_.end()) continue;
    const auto base = reference_runs->second.find(round);
    if (base == reference_runs->second.end()) continue;
    const RunSummary& plain = base->second.summary;
    if (plain.output_throughput > 0)
      output_ratio.push_back(output.back() / plain.output_throughput);
    if (plain.user_throughput > 0) user_ratio.push_back(user.back() / plain.user_throughput);
  }
  figures.summary = Summarize(rounds, limits_);
  figures.output_throughput = SpreadOf(output);
  figures.user_throughput = SpreadOf(user);
  if (devices_.targets > 0) {
    const int32_t devices = devices_.targets + (UsesDraftWorker(mode) ? devices_.drafts : 0);
    figures.device_throughput = figures.output_throughput.mean / devices;
  }
  figures.output_ratio = SpreadOf(output_ratio);
  figures.user_ratio = SpreadOf(user_ratio);
  return figures;
}

std::vector<ModeFigures> Comparison::Figures() const {
  std::vector<ModeFigures> figures;
  for (BenchMode mode : modes_) figures.push_back(FiguresOf(mode));
  return figures;
}

}  // namespace paceline

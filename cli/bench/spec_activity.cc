#include "cli/bench/spec_activity.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cli/bench/http_get.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

constexpr double SpecActivity::*kCounters[] = {
    &SpecActivity::full, &SpecActivity::partial, &SpecActivity::local,     &SpecActivity::none,
    &SpecActivity::late, &SpecActivity::drafts,  &SpecActivity::drafted,   &SpecActivity::accepted,
    &SpecActivity::hits, &SpecActivity::misses,  &SpecActivity::proposals, &SpecActivity::stale};

constexpr Duration kScrapeLimit = std::chrono::seconds(5);

double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

}  // namespace

double SpecActivity::Share(double part) const { return Ratio(part, steps()); }
double SpecActivity::late_share() const { return Ratio(late, late + full + partial); }
double SpecActivity::stale_share() const { return Ratio(stale, proposals); }
double SpecActivity::hit_rate() const { return Ratio(hits, hits + misses); }
double SpecActivity::accepted_per_draft() const { return Ratio(accepted, drafts); }

SpecActivity& SpecActivity::operator+=(const SpecActivity& other) {
  for (const auto counter : kCounters) this->*counter += other.*counter;
  return *this;
}

SpecActivity SpecActivity::Since(const SpecActivity& before) const {
  SpecActivity difference;
  for (const auto counter : kCounters) {
    difference.*counter = std::max(0.0, this->*counter - before.*counter);
  }
  return difference;
}

SpecActivity ReadSpecActivity(const std::vector<MetricSample>& samples) {
  const auto worker = [&](const char* name) {
    return SumOf(samples, absl::StrCat("paceline_worker_spec_", name));
  };
  const auto steps = [&](const char* proposal) {
    return SumOf(samples, "paceline_worker_spec_steps_total", "proposal", proposal);
  };
  return {.full = steps("full"),
          .partial = steps("partial"),
          .local = steps("local"),
          .none = steps("none"),
          .late = worker("late_proposals_total"),
          .drafts = worker("drafts_total"),
          .drafted = worker("draft_tokens_total"),
          .accepted = worker("accepted_tokens_total"),
          .hits = worker("outcome_hits_total"),
          .misses = worker("outcome_misses_total"),
          .proposals = SumOf(samples, "paceline_draft_proposals_total"),
          .stale = SumOf(samples, "paceline_draft_proposals_total", "outcome", "stale")};
}

absl::StatusOr<SpecActivity> ScrapeSpecActivity(const std::vector<std::string>& addresses) {
  SpecActivity sum;
  for (const std::string& address : addresses) {
    ASSIGN_OR_RETURN(const std::string text, HttpGet(address, "/metrics", kScrapeLimit));
    absl::StatusOr<std::vector<MetricSample>> samples = ParseMetricsText(text);
    if (!samples.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("metrics of ", address, ": ", samples.status().message()));
    }
    sum += ReadSpecActivity(*samples);
  }
  return sum;
}

}  // namespace paceline

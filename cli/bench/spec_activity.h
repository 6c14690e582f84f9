// What targets and draft workers counted of speculation, and over a run: the difference of two
// scrapes.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench/metrics_text.h"

namespace paceline {

// Counters, summed over processes; the metric's name behind each (docs/metrics.md).
struct SpecActivity {
  // What speculating sequences found at a step's start: paceline_worker_spec_steps_total{proposal}.
  double full = 0, partial = 0, local = 0, none = 0;
  double late = 0;                   // paceline_worker_spec_late_proposals_total
  double drafts = 0;                 // paceline_worker_spec_drafts_total
  double drafted = 0, accepted = 0;  // .._spec_draft_tokens_total, .._spec_accepted_tokens_total
  double hits = 0, misses = 0;       // .._spec_outcome_hits_total, .._spec_outcome_misses_total
  double proposals = 0, stale = 0;   // paceline_draft_proposals_total: all, and outcome="stale"

  double steps() const { return full + partial + local + none; }
  // Shares in 0..1; 0 where the whole is 0.
  double Share(double part) const;    // of steps()
  double late_share() const;          // of late and in-time proposals (steps full and partial)
  double stale_share() const;         // of the draft workers' proposals
  double hit_rate() const;            // of the outcomes that were enumerated
  double accepted_per_draft() const;  // accepted tokens per verified proposal

  SpecActivity& operator+=(const SpecActivity& other);
  // Never below 0: a process that was restarted counts from 0 again.
  SpecActivity Since(const SpecActivity& before) const;
};

SpecActivity ReadSpecActivity(const std::vector<MetricSample>& samples);

// GET /metrics of each address (host:port), added up. UNAVAILABLE or INVALID_ARGUMENT naming the
// address.
absl::StatusOr<SpecActivity> ScrapeSpecActivity(const std::vector<std::string>& addresses);

}  // namespace paceline

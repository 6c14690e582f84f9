#include "worker/service/draft_metrics.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

std::string Named(const char* name) { return absl::StrCat("paceline_draft_", name); }

// Of Named("early_exit_depth").
enum ExitReason { kConfidence, kBudget, kMaxDepth, kEos, kCancelled };

}  // namespace

DraftMetrics::DraftMetrics(const std::string& model)
    : set_({{"model", model}}),
      process_(&set_, "draft"),
      discarded_(
          set_.NewCounter(Named("discarded_tokens_total"), "Tokens drafted and thrown away")),
      outcomes_spared_(set_.NewCounter(Named("outcomes_spared_total"),
                                       "Outcomes that there was no time to draft for")),
      chains_instead_(set_.NewCounter(Named("chains_instead_total"),
                                      "Chains sent where an enumeration would have been late")) {
  sessions_ = set_.NewGauge(Named("sessions"), "Open sessions");
  queue_depth_ = set_.NewGauge(Named("queue_depth"), "Sessions with work waiting");
  kv_usage_ = set_.NewGauge(Named("kv_cache_usage_ratio"), "Active blocks over all blocks");
  kv_blocks_ = set_.NewGauges(Named("kv_blocks"), "KV blocks by state", "state",
                              {"active", "cached", "free"});
  batch_size_ = set_.NewHistogram(Named("batch_size"), "Rows per step", TokenBuckets());
  propose_ = set_.NewHistogram(Named("propose_seconds"), "Commit received to proposal sent",
                               StepBuckets());
  proposed_tokens_ =
      set_.NewHistogram(Named("proposed_tokens"), "Draft length sent", DepthBuckets());
  exit_depth_ = set_.NewHistograms(Named("early_exit_depth"), "Where drafting stopped, and why",
                                   DepthBuckets(), "reason",
                                   {"confidence", "budget", "max_depth", "eos", "cancelled"});
  for (prometheus::Counter* counter :
       set_.NewCounters(Named("proposals_total"), "What became of proposals", "outcome",
                        {"used", "stale", "cancelled", "late"})) {
    proposals_.emplace_back(counter);
  }
}

void DraftMetrics::SetEngine(const DraftEngine* engine) {
  std::lock_guard lock(mutex_);
  engine_ = engine;
}

void DraftMetrics::Proposed(Duration since_commit, int32_t length, int32_t wanted) {
  propose_->Observe(ToSeconds(since_commit));
  proposed_tokens_->Observe(length);
  exit_depth_[length >= wanted ? kMaxDepth : kBudget]->Observe(length);
}

void DraftMetrics::ReadEngine() const {
  std::lock_guard lock(mutex_);
  if (engine_ == nullptr) return;
  const DraftEngineCounters counters = engine_->counters();
  const KvOccupancy kv = engine_->kv();
  const double blocks = kv.active_blocks + kv.cached_blocks + kv.free_blocks;
  sessions_->Set(counters.sessions);
  kv_usage_->Set(blocks > 0 ? kv.active_blocks / blocks : 0);
  kv_blocks_[0]->Set(kv.active_blocks);
  kv_blocks_[1]->Set(kv.cached_blocks);
  kv_blocks_[2]->Set(kv.free_blocks);
  // A sample per scrape: the engine keeps sums and its last step only.
  const DraftLoad load = engine_->load();
  if (counters.steps > last_steps_) batch_size_->Observe(load.rows_per_step);
  last_steps_ = counters.steps;
  proposals_[0].Follow(counters.branch_hits);
  proposals_[1].Follow(counters.branch_misses);
  proposals_[3].Follow(counters.stale);
  const uint64_t kept = std::min(counters.draft_rows, counters.chain_kept);
  discarded_.Follow(counters.draft_rows - kept);
  outcomes_spared_.Follow(counters.outcomes_spared);
  chains_instead_.Follow(counters.chains_instead);
}

std::vector<prometheus::MetricFamily> DraftMetrics::Collect() const {
  ReadEngine();
  return set_.Collect();
}

}  // namespace paceline

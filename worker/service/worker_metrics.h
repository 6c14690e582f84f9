// A target worker's metrics: what the engine tells while it runs, and its numbers at each scrape.
// Threads: the probe's calls, the engine's; Collect, any.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include <prometheus/collectable.h>

#include "common/rpc/metric_set.h"
#include "worker/engine/engine.h"
#include "worker/engine/engine_probe.h"
#include "worker/service/process_metrics.h"
#include "worker/spec/spec_counters.h"

namespace paceline {

class WorkerMetrics final : public EngineProbe, public prometheus::Collectable {
 public:
  explicit WorkerMetrics(const std::string& model);

  ProcessMetrics& process() { return process_; }
  // The pool, once it exists. Before the first scrape that should show it.
  void SetPool(const RunnerInfo& runner, const std::string& dtype);
  // Read at every scrape.
  void SetSnapshotSource(std::function<EngineSnapshot()> source);
  // Read on the engine thread behind each step; null: no speculator.
  void SetSpecCounters(std::function<const SpecCounters&()> source);
  // The hop to a draft worker and back; any thread.
  void ObserveRoundTrip(Duration took) { round_trip_->Observe(ToSeconds(took)); }

  // Since the start, for status reports.
  int64_t drafted_tokens() const { return drafted_; }
  int64_t accepted_tokens() const { return accepted_; }

  void StepDone(StepPhase phase, Duration took, int32_t sequences, int32_t rows,
                int32_t output_tokens) override;
  void FirstToken(Duration since_submit) override;
  void NextTokens(Duration since_last, int32_t tokens) override;
  void QueueWait(Duration waited) override;
  void PrefillDone(Duration took, int32_t tokens) override;
  void RequestDone(const GenerationUsage& usage, bool ok) override;
  void Preempted(PreemptReason reason, int32_t tokens_to_recompute) override;
  void Verified(ProposalSource source, int32_t drafted, int32_t accepted) override;

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  void ReadSnapshot() const;
  void FollowControl(const SpecCounters& spec);

  MetricSet set_;
  ProcessMetrics process_;

  prometheus::Gauge *running_, *waiting_, *kv_usage_, *fragmentation_, *live_slots_;
  std::vector<prometheus::Gauge*> kv_blocks_;  // active, cached, free
  mutable FollowedCounter kv_evictions_, kv_alloc_failures_, prefix_queries_, prefix_hits_;

  std::vector<prometheus::Counter*> preemptions_;  // by reason
  prometheus::Counter* recomputed_;
  prometheus::Histogram *first_token_, *inter_token_, *per_output_token_, *duration_, *queue_wait_,
      *prefill_, *decode_;
  std::vector<prometheus::Histogram*> step_;  // by phase
  prometheus::Histogram *batch_size_, *step_tokens_;

  prometheus::Counter *drafts_, *draft_tokens_, *accepted_tokens_;
  std::vector<prometheus::Counter*> accepted_at_;  // by position
  prometheus::Histogram *accepted_length_, *request_acceptance_;
  // Follow the speculator's sums; the engine thread's.
  std::vector<FollowedCounter> spec_steps_;  // full, partial, local, none
  std::vector<FollowedCounter> fallbacks_;   // draft_late, draft_down, low_acceptance, batch_full
  FollowedCounter late_, outcome_hits_, outcome_misses_, planned_;
  std::vector<FollowedCounter> control_;   // probe, engine_off, sync_wait
  std::vector<FollowedCounter> delayed_;   // delayed, answered, overran
  std::vector<FollowedCounter> sessions_;  // open, reopen, move, nack, quarantine, silence
  std::vector<FollowedCounter> drops_;     // by DraftDrop
  prometheus::Gauge* gain_;
  prometheus::Histogram* round_trip_;

  std::atomic<int64_t> drafted_ = 0, accepted_ = 0;
  std::function<const SpecCounters&()> spec_source_;
  mutable std::mutex mutex_;  // source_, and the counters that follow it
  std::function<EngineSnapshot()> source_;
};

}  // namespace paceline

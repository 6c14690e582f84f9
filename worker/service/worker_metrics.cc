#include "worker/service/worker_metrics.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

std::vector<std::string> Positions() {
  std::vector<std::string> positions;
  for (int i = 0; i < kSpecPositions; ++i) positions.push_back(absl::StrCat(i));
  return positions;
}

std::vector<FollowedCounter> Followed(const std::vector<prometheus::Counter*>& counters) {
  return std::vector<FollowedCounter>(counters.begin(), counters.end());
}

std::string Named(const char* name) { return absl::StrCat("paceline_worker_", name); }

}  // namespace

WorkerMetrics::WorkerMetrics(const std::string& model)
    : set_({{"model", model}}),
      process_(&set_, "target"),
      kv_evictions_(
          set_.NewCounter(Named("kv_evictions_total"), "Cached blocks taken for other content")),
      kv_alloc_failures_(set_.NewCounter(Named("kv_alloc_failures_total"),
                                         "Reservations that the pool could not meet")),
      prefix_queries_(set_.NewCounter(Named("prefix_cache_query_tokens_total"),
                                      "Prompt tokens looked up in the prefix cache")),
      prefix_hits_(set_.NewCounter(Named("prefix_cache_hit_tokens_total"),
                                   "Prompt tokens found in the prefix cache")),
      late_(set_.NewCounter(Named("spec_late_proposals_total"),
                            "Proposals for a base already passed")),
      outcome_hits_(set_.NewCounter(Named("spec_outcome_hits_total"),
                                    "Outcomes that an enumeration had foreseen")),
      outcome_misses_(set_.NewCounter(Named("spec_outcome_misses_total"),
                                      "Outcomes that an enumeration had not foreseen")),
      planned_(set_.NewCounter(Named("spec_planned_tokens_total"), "Drafts wanted by plans")) {
  running_ = set_.NewGauge(Named("requests_running"), "Sequences that hold KV");
  waiting_ = set_.NewGauge(Named("requests_waiting"), "Requests queued");
  kv_usage_ = set_.NewGauge(Named("kv_cache_usage_ratio"), "Active blocks over all blocks");
  kv_blocks_ = set_.NewGauges(Named("kv_blocks"), "KV blocks by state", "state",
                              {"active", "cached", "free"});
  fragmentation_ = set_.NewGauge(Named("kv_internal_fragmentation_ratio"),
                                 "1 - live slots / (active blocks x block size)");
  live_slots_ =
      set_.NewGauge(Named("kv_live_token_slots"), "KV entries of committed tokens, active blocks");
  preemptions_ = set_.NewCounters(Named("preemptions_total"), "Sequences put back to the queue",
                                  "reason", {"kv_pressure", "priority"});
  recomputed_ = set_.NewCounter(Named("preempted_tokens_recomputed_total"),
                                "Tokens to compute again after preemptions");
  first_token_ = set_.NewHistogram(Named("time_to_first_token_seconds"), "Submit to first token",
                                   FirstTokenBuckets());
  inter_token_ = set_.NewHistogram(Named("inter_token_latency_seconds"),
                                   "Between two deltas of a sample", InterTokenBuckets());
  per_output_token_ = set_.NewHistogram(Named("time_per_output_token_seconds"),
                                        "(End - first token) / (output tokens - 1), per request",
                                        InterTokenBuckets());
  duration_ =
      set_.NewHistogram(Named("request_duration_seconds"), "Submit to end", RequestBuckets());
  queue_wait_ =
      set_.NewHistogram(Named("queue_wait_seconds"), "Submit to first scheduled", QueueBuckets());
  prefill_ = set_.NewHistogram(Named("prefill_seconds"), "First scheduled to prompt computed",
                               FirstTokenBuckets());
  decode_ = set_.NewHistogram(Named("decode_seconds"), "First token to end", RequestBuckets());
  step_ = set_.NewHistograms(Named("step_seconds"), "Duration of an engine step", StepBuckets(),
                             "phase", {"prefill", "decode", "verify", "mixed"});
  batch_size_ = set_.NewHistogram(Named("step_batch_size"), "Sequences in a step", TokenBuckets());
  step_tokens_ = set_.NewHistogram(Named("step_tokens"), "Rows in a step", TokenBuckets());
  drafts_ = set_.NewCounter(Named("spec_drafts_total"), "Proposals verified");
  draft_tokens_ = set_.NewCounter(Named("spec_draft_tokens_total"), "Draft tokens verified");
  accepted_tokens_ = set_.NewCounter(Named("spec_accepted_tokens_total"), "Draft tokens accepted");
  accepted_at_ =
      set_.NewCounters(Named("spec_accepted_at_position_total"),
                       "Draft tokens accepted, by place in the chain", "position", Positions());
  accepted_length_ = set_.NewHistogram(Named("spec_accepted_length"),
                                       "Accepted drafts per verified proposal", DepthBuckets());
  request_acceptance_ =
      set_.NewHistogram(Named("request_spec_acceptance_ratio"),
                        "Accepted over drafted, per finished request", RatioBuckets());
  spec_steps_ = Followed(set_.NewCounters(Named("spec_steps_total"),
                                          "What a sequence found at a step's start", "proposal",
                                          {"full", "partial", "local", "none"}));
  fallbacks_ = Followed(set_.NewCounters(
      Named("spec_fallback_total"), "Steps that a sequence went without a remote draft", "reason",
      {"draft_late", "draft_down", "low_acceptance", "batch_full"}));
  control_ = Followed(set_.NewCounters(Named("spec_control_total"), "Decisions of the controller",
                                       "decision", {"probe", "engine_off", "sync_wait"}));
  delayed_ = Followed(set_.NewCounters(Named("spec_delayed_plans_total"),
                                       "Plans put off for drafts while a step ran", "result",
                                       {"delayed", "answered", "overran"}));
  sessions_ = Followed(
      set_.NewCounters(Named("spec_sessions_total"), "What became of sessions at draft workers",
                       "event", {"open", "reopen", "move", "nack", "quarantine", "silence"}));
  drops_ = Followed(set_.NewCounters(
      Named("spec_dropped_total"), "Parts of draft workers' frames that were not used", "reason",
      {"unknown_session", "epoch", "incarnation", "stale_base", "bad_base", "prefix_hash",
       "token_range", "size", "quarantined", "frame_size"}));
  gain_ = set_.NewGauge(Named("spec_gain_ratio"), "Tokens per second with drafts over without");
  round_trip_ = set_.NewHistogram("paceline_draft_network_rtt_seconds",
                                  "Target to draft worker and back", StepBuckets());
}

void WorkerMetrics::SetPool(const RunnerInfo& runner, const std::string& dtype) {
  set_.NewGauge(Named("kv_cache_config_info"), "Always 1",
                {{"block_size", absl::StrCat(runner.block_size)},
                 {"num_gpu_blocks", absl::StrCat(runner.num_blocks)},
                 {"dtype", dtype}})
      ->Set(1);
}

void WorkerMetrics::SetSnapshotSource(std::function<EngineSnapshot()> source) {
  std::lock_guard lock(mutex_);
  source_ = std::move(source);
}

void WorkerMetrics::SetSpecCounters(std::function<const SpecCounters&()> source) {
  spec_source_ = std::move(source);
}

void WorkerMetrics::StepDone(StepPhase phase, Duration took, int32_t sequences, int32_t rows,
                             int32_t output_tokens) {
  step_[static_cast<size_t>(phase)]->Observe(ToSeconds(took));
  batch_size_->Observe(sequences);
  step_tokens_->Observe(rows);
  if (!spec_source_) return;
  const SpecCounters& spec = spec_source_();
  const auto fallback = [&](FallbackReason reason) {
    return spec.fallbacks[static_cast<size_t>(reason)];
  };
  const uint64_t steps[] = {spec.steps_full, spec.steps_partial, spec.steps_ngram, spec.steps_none};
  for (size_t i = 0; i < spec_steps_.size(); ++i) spec_steps_[i].Follow(steps[i]);
  late_.Follow(spec.proposals_late);
  outcome_hits_.Follow(spec.outcome_hits);
  outcome_misses_.Follow(spec.outcome_misses);
  const uint64_t reasons[] = {
      fallback(FallbackReason::kLate) + fallback(FallbackReason::kMiss) +
          fallback(FallbackReason::kNotOpen),
      fallback(FallbackReason::kNoLink) + fallback(FallbackReason::kQuarantined),
      fallback(FallbackReason::kController), spec.engine_off};
  for (size_t i = 0; i < fallbacks_.size(); ++i) fallbacks_[i].Follow(reasons[i]);
  FollowControl(spec);
}

void WorkerMetrics::FollowControl(const SpecCounters& spec) {
  const uint64_t control[] = {spec.probes, spec.engine_off, spec.sync_waits};
  for (size_t i = 0; i < control_.size(); ++i) control_[i].Follow(control[i]);
  const uint64_t delayed[] = {spec.plans_delayed, spec.plans_answered, spec.plans_overran};
  for (size_t i = 0; i < delayed_.size(); ++i) delayed_[i].Follow(delayed[i]);
  const uint64_t sessions[] = {spec.opens, spec.reopens,     spec.moves,
                               spec.nacks, spec.quarantines, spec.silences};
  for (size_t i = 0; i < sessions_.size(); ++i) sessions_[i].Follow(sessions[i]);
  for (size_t i = 0; i < drops_.size(); ++i) drops_[i].Follow(spec.drops[i]);
  planned_.Follow(spec.planned);
  gain_->Set(spec.gain);
}

void WorkerMetrics::FirstToken(Duration since_submit) {
  first_token_->Observe(ToSeconds(since_submit));
}

void WorkerMetrics::NextTokens(Duration since_last, int32_t tokens) {
  inter_token_->Observe(ToSeconds(since_last));
}

void WorkerMetrics::QueueWait(Duration waited) { queue_wait_->Observe(ToSeconds(waited)); }

void WorkerMetrics::PrefillDone(Duration took, int32_t tokens) {
  prefill_->Observe(ToSeconds(took));
}

void WorkerMetrics::RequestDone(const GenerationUsage& usage, bool ok) {
  duration_->Observe(ToSeconds(usage.total_time));
  if (usage.output_tokens > 0) {
    const double decode = ToSeconds(usage.total_time - usage.first_token_time);
    decode_->Observe(decode);
    if (usage.output_tokens > 1) per_output_token_->Observe(decode / (usage.output_tokens - 1));
  }
  if (usage.drafted_tokens > 0) {
    request_acceptance_->Observe(static_cast<double>(usage.accepted_tokens) / usage.drafted_tokens);
  }
}

void WorkerMetrics::Preempted(PreemptReason reason, int32_t tokens_to_recompute) {
  preemptions_[static_cast<size_t>(reason)]->Increment();
  recomputed_->Increment(tokens_to_recompute);
}

void WorkerMetrics::Verified(ProposalSource source, int32_t drafted, int32_t accepted) {
  if (drafted == 0) return;
  drafts_->Increment();
  draft_tokens_->Increment(drafted);
  accepted_tokens_->Increment(accepted);
  accepted_length_->Observe(accepted);
  for (int32_t i = 0; i < std::min(accepted, kSpecPositions); ++i) accepted_at_[i]->Increment();
  drafted_ += drafted;
  accepted_ += accepted;
}

void WorkerMetrics::ReadSnapshot() const {
  std::lock_guard lock(mutex_);
  if (!source_) return;
  const EngineSnapshot s = source_();
  running_->Set(s.running);
  waiting_->Set(s.waiting);
  kv_usage_->Set(s.num_blocks > 0 ? static_cast<double>(s.kv.active_blocks) / s.num_blocks : 0);
  kv_blocks_[0]->Set(s.kv.active_blocks);
  kv_blocks_[1]->Set(s.kv.cached_blocks);
  kv_blocks_[2]->Set(s.kv.free_blocks);
  fragmentation_->Set(s.fragmentation);
  live_slots_->Set(static_cast<double>(s.live_slots));
  kv_evictions_.Follow(s.kv_counters.evictions);
  kv_alloc_failures_.Follow(s.kv_counters.alloc_failures);
  prefix_queries_.Follow(s.kv_counters.query_tokens);
  prefix_hits_.Follow(s.kv_counters.hit_tokens);
}

std::vector<prometheus::MetricFamily> WorkerMetrics::Collect() const {
  ReadSnapshot();
  return set_.Collect();
}

}  // namespace paceline

#include "router/service/router_metrics.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

// Clients name models; beyond so many, and for names that nobody serves, the label is "other".
constexpr size_t kMaxModels = 64;
constexpr char kOther[] = "other";

enum Branch { kPrefix, kLeastLoaded, kSticky, kFallback };

// Reasons of ServingError with which a request is refused or given up before a worker has it.
const std::vector<std::string>& Reasons() {
  static const std::vector<std::string> reasons = {"context_length_exceeded",
                                                   "deadline",
                                                   "draining",
                                                   "duplicate_request_id",
                                                   "invalid_field",
                                                   "model_loading",
                                                   "model_not_found",
                                                   "no_worker",
                                                   "queue_full",
                                                   "stream_lost",
                                                   "worker_lost",
                                                   kOther};
  return reasons;
}

std::string Named(const char* name) { return absl::StrCat("paceline_router_", name); }

const char* PoolOf(bool target) { return target ? "target" : "draft"; }

constexpr std::array<const char*, 4> kStates = {"unhealthy", "starting", "ready", "draining"};
constexpr std::array<const char*, 3> kGenerations = {"GenerateText", "StreamGenerateText",
                                                     "ResumeGenerateText"};

const char* FinishLabel(const RequestEnd& end) {
  switch (end.finish) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "none";
}

prometheus::Labels RequestLabels(const std::string& method, const std::string& model,
                                 const std::string& code, const std::string& finish) {
  return {{"method", method}, {"model", model}, {"code", code}, {"finish_reason", finish}};
}

prometheus::Labels FailoverLabels(FailoverPhase phase, bool resumed) {
  return {{"phase", phase == FailoverPhase::kMidStream ? "mid_stream" : "before_first_token"},
          {"outcome", resumed ? "resumed" : "failed"}};
}

prometheus::Labels CancelLabels(const std::string& stage, bool by_deadline) {
  return {{"stage", stage}, {"cause", by_deadline ? "deadline" : "client"}};
}

}  // namespace

RouterMetrics::RouterMetrics(const std::vector<std::string>& models, const std::string& discovery) {
  requests_ = set_.NewCounterFamily(Named("requests_total"), "Client RPCs ended");
  in_flight_ = set_.NewGauge(Named("requests_in_flight"), "Requests admitted and not ended");
  queue_depth_ = set_.NewGauge(Named("queue_depth"), "Requests waiting for a worker");
  queue_wait_ =
      set_.NewHistogram(Named("queue_wait_seconds"), "Admission to submit", QueueBuckets());
  const auto rejected = set_.NewCounters(Named("admission_rejected_total"),
                                         "Requests refused at the door", "reason", Reasons());
  for (size_t i = 0; i < rejected.size(); ++i) rejected_[Reasons()[i]] = rejected[i];
  first_token_ = set_.NewHistogram(Named("time_to_first_token_seconds"),
                                   "Receipt of the RPC to its first token", FirstTokenBuckets());
  inter_token_ = set_.NewHistogram(Named("inter_token_latency_seconds"),
                                   "Between two messages of a sample", InterTokenBuckets());
  per_output_token_ = set_.NewHistogram(Named("time_per_output_token_seconds"),
                                        "(End - first token) / (output tokens - 1), per request",
                                        InterTokenBuckets());
  duration_ =
      set_.NewHistogram(Named("request_duration_seconds"), "Receipt to end", RequestBuckets());
  prompt_tokens_ = set_.NewHistogram(Named("prompt_tokens"), "Prompt lengths", TokenBuckets());
  output_tokens_ =
      set_.NewHistogram(Named("output_tokens"), "Output lengths, all samples", TokenBuckets());
  cancelled_ = set_.NewCounterFamily(Named("cancelled_total"),
                                     "Requests ended by their client or their deadline");
  for (const char* stage : {"queued", "prefill", "decode"}) {
    for (const bool by_deadline : {false, true}) cancelled_->Add(CancelLabels(stage, by_deadline));
  }
  auto* attempts =
      set_.NewCounterFamily(Named("upstream_attempts_total"), "Submits to workers that have ended");
  for (const char* result : {"ok", "refused", "lost", "fault", "cancelled"}) {
    attempts_.push_back(&attempts->Add({{"pool", "target"}, {"result", result}}));
  }
  failovers_ =
      set_.NewCounterFamily(Named("failovers_total"), "Requests carried to another worker");
  for (const auto phase : {FailoverPhase::kBeforeFirstToken, FailoverPhase::kMidStream}) {
    for (const bool resumed : {false, true}) failovers_->Add(FailoverLabels(phase, resumed));
  }
  replayed_ = set_.NewCounter(Named("failover_replayed_tokens_total"),
                              "Prompt and output tokens submitted again by failovers");
  failover_gap_ = set_.NewHistogram(Named("failover_gap_seconds"),
                                    "Loss of a worker to the next token", RequestBuckets());
  workers_ = set_.NewGaugeFamily(Named("workers"), "Workers by state");
  circuits_ = set_.NewGaugeFamily(Named("worker_circuit_state"), "0 closed, 1 half open, 2 open");
  auto* decisions =
      set_.NewCounterFamily(Named("route_decisions_total"), "Why a worker was chosen");
  for (const char* branch : {"prefix", "least_loaded", "sticky", "fallback"}) {
    decisions_.push_back(&decisions->Add({{"policy", "score"}, {"branch", branch}}));
  }
  matched_prefix_ = set_.NewHistogram(Named("route_matched_prefix_tokens"),
                                      "Prefix hit predicted at placement", TokenBuckets());
  listed_ = set_.NewGauge(Named("discovery_last_success_timestamp_seconds"),
                          "Unix time of the last listing of workers", {{"source", discovery}});
  overhead_ = set_.NewHistograms(Named("overhead_seconds"), "The router's own time", StepBuckets(),
                                 "stage", {"parse", "tokenize", "route", "forward"});
  request_overhead_ =
      set_.NewHistogram(Named("request_overhead_seconds"),
                        "The router's own time until a request's first tokens", OverheadBuckets());
  models_.insert(kOther);
  for (const std::string& model : models) models_.insert(model);
  for (const std::string& model : models_) {
    for (const char* method : kGenerations) {
      for (const char* finish : {"stop", "length"}) {
        requests_->Add(RequestLabels(method, model, "OK", finish));
      }
    }
  }
  ShowWorkers({});
}

void RouterMetrics::SetSnapshotSource(std::function<RouterSnapshot()> source) {
  std::lock_guard lock(scrape_mutex_);
  source_ = std::move(source);
}

// ---- The core ----

void RouterMetrics::Placed(const PlacementScore& score, const std::string&) {
  const Branch branch = score.avoided || score.other_numerics ? kFallback
                        : score.session_home                  ? kSticky
                        : score.matched_tokens > 0            ? kPrefix
                                                              : kLeastLoaded;
  decisions_[branch]->Increment();
  matched_prefix_->Observe(static_cast<double>(score.matched_tokens));
}

void RouterMetrics::QueueWait(const std::string&, int32_t, Duration waited) {
  queue_wait_->Observe(ToSeconds(waited));
}

void RouterMetrics::Rejected(const std::string&, const ServingError& error) {
  const auto it = rejected_.find(absl::AsciiStrToLower(error.reason));
  (it == rejected_.end() ? rejected_.at(kOther) : it->second)->Increment();
}

void RouterMetrics::AttemptEnded(AttemptResult result) {
  attempts_[static_cast<size_t>(result)]->Increment();
}

void RouterMetrics::FailedOver(FailoverPhase phase, bool resumed, int64_t replayed_tokens) {
  failovers_->Add(FailoverLabels(phase, resumed)).Increment();
  replayed_->Increment(static_cast<double>(replayed_tokens));
}

void RouterMetrics::FailoverGap(Duration gap) { failover_gap_->Observe(ToSeconds(gap)); }

void RouterMetrics::Cancelled(const std::string& stage, bool by_deadline) {
  cancelled_->Add(CancelLabels(stage, by_deadline)).Increment();
}

// ---- The public API ----

std::string RouterMetrics::ModelLabel(const std::string& model) {
  if (model.empty()) return kOther;
  std::lock_guard lock(models_mutex_);
  if (models_.contains(model)) return model;
  if (models_.size() >= kMaxModels) return kOther;
  models_.insert(model);
  return model;
}

void RouterMetrics::RequestEnded(const RequestEnd& end) {
  requests_
      ->Add(RequestLabels(end.method, ModelLabel(end.model), absl::StatusCodeToString(end.code),
                          FinishLabel(end)))
      .Increment();
  if (!end.generation) return;
  duration_->Observe(ToSeconds(end.total));
  if (end.prompt_tokens > 0) prompt_tokens_->Observe(end.prompt_tokens);
  if (!end.first_token) return;
  output_tokens_->Observe(end.output_tokens);
  if (end.time_per_output_token) per_output_token_->Observe(ToSeconds(*end.time_per_output_token));
}

void RouterMetrics::FirstToken(const std::string&, Duration since_receipt) {
  first_token_->Observe(ToSeconds(since_receipt));
}

void RouterMetrics::NextTokens(const std::string&, Duration since_last, int32_t) {
  inter_token_->Observe(ToSeconds(since_last));
}

void RouterMetrics::RequestOverhead(Duration spent) {
  request_overhead_->Observe(ToSeconds(spent));
}

void RouterMetrics::Overhead(OverheadStage stage, Duration spent) {
  overhead_[static_cast<size_t>(stage)]->Observe(ToSeconds(spent));
}

// ---- Scrapes ----

void RouterMetrics::ShowWorkers(const std::vector<RouterSnapshot::Worker>& workers) const {
  for (const bool target : {true, false}) {
    for (size_t state = 0; state < kStates.size(); ++state) {
      const auto count = std::count_if(workers.begin(), workers.end(), [&](const auto& w) {
        return w.target == target && static_cast<size_t>(w.state) == state;
      });
      workers_->Add({{"pool", PoolOf(target)}, {"state", kStates[state]}})
          .Set(static_cast<double>(count));
    }
  }
  std::map<WorkerKey, prometheus::Gauge*> shown;
  for (const auto& w : workers) {
    const WorkerKey key{w.address, PoolOf(w.target)};
    prometheus::Gauge& gauge = circuits_->Add({{"worker", key.first}, {"pool", key.second}});
    gauge.Set(static_cast<double>(w.circuit));
    shown[key] = &gauge;
  }
  for (const auto& [key, gauge] : shown_circuits_) {
    if (!shown.contains(key)) circuits_->Remove(gauge);
  }
  shown_circuits_ = std::move(shown);
}

std::vector<prometheus::MetricFamily> RouterMetrics::Collect() const {
  std::lock_guard lock(scrape_mutex_);
  if (source_) {
    const RouterSnapshot s = source_();
    in_flight_->Set(static_cast<double>(s.in_flight));
    queue_depth_->Set(static_cast<double>(s.queued));
    listed_->Set(s.listed_unix);
    ShowWorkers(s.workers);
  }
  return set_.Collect();
}

}  // namespace paceline

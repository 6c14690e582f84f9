#include "cli/bench/run_summary.h"

#include <algorithm>
#include <vector>

namespace paceline {
namespace {

double Milliseconds(Duration d) { return ToSeconds(d) * 1e3; }

double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

// Values on their way into distributions.
struct Samples {
  std::vector<double> ttft, itl, itl_token, tpot, e2e, send_lag;
  double queue = 0, prefill = 0, decode = 0;
  double decode_seconds = 0;
  int64_t decode_tokens = 0;
};

// A request of one token keeps any limit on the time per token.
bool KeepsLimits(const RequestOutcome& o, const ServiceLimits& limits) {
  if (o.token_ids.empty()) return false;
  if (limits.ttft > 0 && Milliseconds(o.first_token - o.arrival) > limits.ttft) return false;
  const auto behind_first = static_cast<double>(o.token_ids.size() - 1);
  return limits.tpot <= 0 || Milliseconds(o.ended - o.first_token) <= limits.tpot * behind_first ||
         behind_first == 0;
}

void AddTimes(const RequestOutcome& o, Samples* s) {
  const double e2e = Milliseconds(o.ended - o.arrival);
  s->e2e.push_back(e2e);
  s->send_lag.push_back(Milliseconds(o.started - o.arrival));
  if (o.token_ids.empty()) {
    s->queue += e2e;
    return;
  }
  const double ttft = Milliseconds(o.first_token - o.arrival);
  const double queue = std::min(ttft, Milliseconds(o.queue));
  s->ttft.push_back(ttft);
  s->queue += queue;
  s->prefill += ttft - queue;
  s->decode += e2e - ttft;
  for (const TokenGap& gap : o.gaps) {
    s->itl.push_back(Milliseconds(gap.gap));
    s->itl_token.insert(s->itl_token.end(), static_cast<size_t>(gap.tokens),
                        Milliseconds(gap.gap) / gap.tokens);
  }
  if (o.token_ids.size() < 2) return;
  const auto behind_first = static_cast<int64_t>(o.token_ids.size()) - 1;
  s->tpot.push_back((e2e - ttft) / static_cast<double>(behind_first));
  s->decode_tokens += behind_first;
  s->decode_seconds += (e2e - ttft) / 1e3;
}

void AddCounts(const RequestOutcome& o, RunSummary* summary) {
  ++summary->completed;
  summary->prompt_tokens += o.prompt_tokens;
  summary->cached_tokens += o.cached_tokens;
  summary->output_tokens += static_cast<int64_t>(o.token_ids.size());
  summary->drafted_tokens += o.drafted_tokens;
  summary->accepted_tokens += o.accepted_tokens;
  summary->messages += o.message_count;
  summary->failovers += o.failover_count;
}

}  // namespace

int64_t RunSummary::failed() const {
  int64_t count = 0;
  for (const auto& [code, error] : errors) count += error.count;
  return count;
}

double RunSummary::acceptance() const {
  return Ratio(static_cast<double>(accepted_tokens), static_cast<double>(drafted_tokens));
}

double RunSummary::tokens_per_message() const {
  return Ratio(static_cast<double>(output_tokens), static_cast<double>(messages));
}

RunSummary Summarize(const std::vector<RequestOutcome>& round, const ServiceLimits& limits) {
  return Summarize({&round, 1}, limits);
}

RunSummary Summarize(std::span<const std::vector<RequestOutcome>> rounds,
                     const ServiceLimits& limits) {
  RunSummary summary;
  Samples samples;
  for (const std::vector<RequestOutcome>& round : rounds) {
    if (round.empty()) continue;
    Duration begin = Duration::max(), end = Duration::min();
    for (const RequestOutcome& o : round) {
      begin = std::min(begin, o.arrival);
      end = std::max(end, o.ended);
      if (o.ok()) {
        AddCounts(o, &summary);
        AddTimes(o, &samples);
        summary.within_limits += KeepsLimits(o, limits) ? 1 : 0;
      } else if (ErrorCount& error = summary.errors[o.code]; error.count++ == 0) {
        error.first_message = o.error;
      }
    }
    summary.seconds += ToSeconds(end - begin);
  }
  const auto completed = static_cast<double>(summary.completed);
  summary.request_throughput = Ratio(completed, summary.seconds);
  summary.goodput = Ratio(static_cast<double>(summary.within_limits), summary.seconds);
  summary.output_throughput = Ratio(static_cast<double>(summary.output_tokens), summary.seconds);
  summary.user_throughput =
      Ratio(static_cast<double>(samples.decode_tokens), samples.decode_seconds);
  summary.ttft = Describe(std::move(samples.ttft));
  summary.itl = Describe(std::move(samples.itl));
  summary.itl_token = Describe(std::move(samples.itl_token));
  summary.tpot = Describe(std::move(samples.tpot));
  summary.e2e = Describe(std::move(samples.e2e));
  summary.send_lag = Describe(std::move(samples.send_lag));
  summary.mean_queue = Ratio(samples.queue, completed);
  summary.mean_prefill = Ratio(samples.prefill, completed);
  summary.mean_decode = Ratio(samples.decode, completed);
  return summary;
}

}  // namespace paceline

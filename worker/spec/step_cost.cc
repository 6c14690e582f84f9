#include "worker/spec/step_cost.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace paceline {
namespace {

constexpr double kRate = 0.05;       // of a bucket's average
constexpr double kDriftRate = 0.02;  // of the common level
constexpr double kHuber = 3;         // deviations beyond which a measurement counts as that many
constexpr int32_t kSettled = 4;      // measurements that make a bucket known
constexpr double kLeastSeconds = 1e-9;
constexpr uint64_t kForgotten = 4096;  // steps after which the greatest buckets are measured anew

}  // namespace

// Exact up to 16 rows, then eight buckets per octave.
int StepCost::Bucket(int32_t rows) {
  if (rows <= 16) return std::max(rows, 1) - 1;
  const int octave = std::bit_width(static_cast<uint32_t>(rows)) - 1;
  const int eighth = ((rows - (1 << octave)) * 8) >> octave;
  return std::min(16 + (octave - 4) * 8 + eighth, kBuckets - 1);
}

// One up to 1,024 tokens, then one per octave.
int StepCost::ContextBucket(int64_t context) {
  const auto thousands = static_cast<uint64_t>(std::max<int64_t>(context - 1, 0)) >> 10;
  return std::min(static_cast<int>(std::bit_width(thousands)), kContexts - 1);
}

// Straight between the means measured, never falling; on beyond the last along its line.
double StepCost::Extra(int64_t context) const {
  const auto tokens = static_cast<double>(context);
  const Context* below = nullptr;
  double low = 0, slope = 0;
  for (const Context& c : contexts_) {
    if (c.count == 0) continue;
    if (below == nullptr) {
      low = c.extra;
      if (tokens <= c.tokens) return low;
    } else {
      const double high = std::max(low, c.extra);
      slope = (high - low) / (c.tokens - below->tokens);
      if (tokens <= c.tokens) return low + slope * (tokens - below->tokens);
      low = high;
    }
    below = &c;
  }
  return below == nullptr ? 0 : low + slope * (tokens - below->tokens);
}

void StepCost::Observe(int32_t rows, int64_t context, double seconds) {
  if (!(seconds > 0) || rows < 1) return;
  const int b = Bucket(rows);
  const int at = ContextBucket(context);
  if (steps_++ == 0) anchor_ = at;
  Context& c = contexts_[at];
  const bool context_known = at == anchor_ || c.count >= kSettled;
  const double predicted = Seconds(rows, context);
  if (predicted > 0 && counts_[b] > 0 && context_known) {
    level_ *= std::pow(std::clamp(seconds / predicted, 0.5, 2.0), kDriftRate);
  }
  const double value = seconds / level_;
  const double extra = Extra(context);
  // What is new learns from what is known: else long contexts would be taken for dear rows.
  if (counts_[b] >= kSettled || !context_known || at == anchor_) {
    ObserveContext(at, context, value - Rows(rows), predicted / level_);
  }
  if (context_known) ObserveRows(b, rows, value - extra);
  seen_[b] = steps_;
}

// `usual`: a step's seconds as far as known. The anchor's extra stays 0.
void StepCost::ObserveContext(int bucket, int64_t tokens, double extra, double usual) {
  Context& c = contexts_[bucket];
  c.count = std::min(c.count + 1, static_cast<int32_t>(1 / kRate));
  c.tokens += (static_cast<double>(tokens) - c.tokens) / c.count;
  if (bucket == anchor_) return;
  const double limit = c.count == 1 ? std::abs(extra) : std::max(usual, std::abs(c.extra));
  c.extra += std::clamp(extra - c.extra, -limit, limit) / c.count;
}

void StepCost::ObserveRows(int b, int32_t rows, double value) {
  counts_[b] = std::min(counts_[b] + 1, static_cast<int32_t>(1 / kRate));
  if (counts_[b] == 1) {
    mean_[b] = value;
    mean_rows_[b] = rows;
    deviation_[b] = std::abs(value) / 4;
  } else {
    const double limit = kHuber * deviation_[b];
    const double error = std::clamp(value - mean_[b], -limit, limit);
    mean_[b] += error / counts_[b];
    mean_rows_[b] += (rows - mean_rows_[b]) / counts_[b];
    deviation_[b] += (std::abs(error) - deviation_[b]) / counts_[b];
    deviation_[b] = std::max(deviation_[b], mean_[b] / 100);
  }
  dirty_ = true;
}

// Pool adjacent violators: the closest sequence that never falls.
void StepCost::Smooth() const {
  std::array<double, kBuckets> weight{};
  std::array<int, kBuckets> members{};
  int pools = 0;
  num_points_ = 0;
  std::array<double, kBuckets> value{};
  // One bad measurement must not keep steps of that size from ever being tried again: the greatest
  // buckets are forgotten when they have not been seen for long.
  int most = kBuckets - 1;
  while (most > 0 && (counts_[most] == 0 || steps_ - seen_[most] > kForgotten)) --most;
  for (int b = 0; b < kBuckets; ++b) {
    if (counts_[b] == 0 || b > most) continue;
    rows_[num_points_++] = mean_rows_[b];
    value[pools] = mean_[b];
    weight[pools] = counts_[b];
    members[pools++] = 1;
    while (pools > 1 && value[pools - 2] > value[pools - 1]) {
      const double total = weight[pools - 2] + weight[pools - 1];
      value[pools - 2] =
          (value[pools - 2] * weight[pools - 2] + value[pools - 1] * weight[pools - 1]) / total;
      weight[pools - 2] = total;
      members[pools - 2] += members[pools - 1];
      --pools;
    }
  }
  int point = 0;
  for (int p = 0; p < pools; ++p) {
    for (int m = 0; m < members[p]; ++m) smooth_[point++] = value[p];
  }
  slope_ = Slope();
  dirty_ = false;
}

// Of the upper half of what is known.
double StepCost::Slope() const {
  const int last = num_points_ - 1;
  int half = last;
  while (half > 0 && rows_[half] > rows_[last] / 2) --half;
  if (half == last) return 0;
  return (smooth_[last] - smooth_[half]) / (rows_[last] - rows_[half]);
}

double StepCost::Between(int next, int32_t rows) const {
  if (next == 0) return smooth_[0];
  if (next < num_points_) {
    const double share = (rows - rows_[next - 1]) / (rows_[next] - rows_[next - 1]);
    return smooth_[next - 1] + share * (smooth_[next] - smooth_[next - 1]);
  }
  // Nothing is known here. Where the curve bends upwards the slope is too low, so larger steps get
  // tried and measured; an estimate too high would never be found out. Beyond twice the rows known
  // a row is as dear as the average one, so that a trial costs little.
  const double last = smooth_[num_points_ - 1];
  const double most = rows_[num_points_ - 1];
  const double near = std::min<double>(rows, 2 * most) - most;
  const double far = std::max<double>(rows - 2 * most, 0);
  return last + slope_ * near + std::max(slope_, last / most) * far;
}

double StepCost::Rows(int32_t rows) const {
  if (dirty_) Smooth();
  int next = 0;
  while (next < num_points_ && rows_[next] < rows) ++next;
  return num_points_ == 0 ? 0 : Between(next, rows);
}

double StepCost::Seconds(int32_t rows, int64_t context) const {
  double seconds = 0;
  Seconds(rows, context, std::span(&seconds, 1));
  return seconds;
}

void StepCost::Seconds(int32_t rows, int64_t context, std::span<double> seconds) const {
  if (dirty_) Smooth();
  const double extra = Extra(context);
  int next = 0;
  for (double& s : seconds) {
    while (next < num_points_ && rows_[next] < rows) ++next;
    s = num_points_ == 0 ? 0 : std::max(Between(next, rows) + extra, kLeastSeconds) * level_;
    ++rows;
  }
}

uint64_t StepCost::Age(int32_t rows) const {
  const int b = Bucket(rows);
  // A few rows more or less change kernels only where there are few.
  const int reach = b < 16 ? 0 : 3;
  uint64_t age = uint64_t{1} << 62;
  for (int i = b - reach; i <= std::min(b + reach, kBuckets - 1); ++i) {
    if (counts_[i] > 0) age = std::min(age, steps_ - seen_[i]);
  }
  return age;
}

}  // namespace paceline

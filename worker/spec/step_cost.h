// Seconds of a step by its rows, from measurements: robust averages per bucket of rows, never
// falling with rows, straight lines between. A level common to all buckets follows slow drift
// (longer contexts, a hotter chip), so that buckets not seen for a while stay comparable.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace paceline {

class StepCost {
 public:
  void Observe(int32_t rows, double seconds);
  // 0 while nothing has been measured. Below the least rows measured: as there. Above the most:
  // hopeful up to twice as many, so that larger steps get measured.
  double Seconds(int32_t rows) const;
  // Of rows, rows + 1, ...
  void Seconds(int32_t rows, std::span<double> seconds) const;
  // Steps since about so many rows were last measured; a large number if never.
  uint64_t Age(int32_t rows) const;

 private:
  static constexpr int kBuckets = 96;
  static int Bucket(int32_t rows);
  void Smooth() const;
  // Between measured points `next` - 1 and `next`, or outside of them.
  double Between(int next, int32_t rows) const;
  double Slope() const;

  std::array<double, kBuckets> mean_{};       // seconds over level_
  std::array<double, kBuckets> mean_rows_{};  // of the same steps
  std::array<double, kBuckets> deviation_{};
  std::array<int32_t, kBuckets> counts_{};
  std::array<uint64_t, kBuckets> seen_{};
  double level_ = 1;
  uint64_t steps_ = 0;
  // Of the buckets measured, by rising rows: their rows and seconds over level_.
  mutable std::array<double, kBuckets> rows_{};
  mutable std::array<double, kBuckets> smooth_{};
  mutable int num_points_ = 0;
  mutable double slope_ = 0;  // beyond the last
  mutable bool dirty_ = false;
};

}  // namespace paceline

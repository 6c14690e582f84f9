// Seconds of a step by its rows and the tokens that they attend to, from measurements: robust
// averages per bucket of rows, never falling with rows, straight lines between; and on top what a
// bucket of context adds, in the same way. Context is an addend and no factor: reading KV takes the
// same time whether one row of a sequence reads it or a few do, so that long contexts make drafts
// cheaper against the step. A level common to all buckets follows slow drift (a hotter chip), so
// that buckets not seen for a while stay comparable.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace paceline {

class StepCost {
 public:
  void Observe(int32_t rows, int64_t context, double seconds);
  // 0 while nothing has been measured. Below the least rows measured: as there. Above the most:
  // hopeful up to twice as many, so that larger steps get measured.
  double Seconds(int32_t rows, int64_t context) const;
  // Of rows, rows + 1, ...
  void Seconds(int32_t rows, int64_t context, std::span<double> seconds) const;
  // Steps since about so many rows were last measured; a large number if never.
  uint64_t Age(int32_t rows) const;

 private:
  static constexpr int kBuckets = 96;
  static constexpr int kContexts = 20;
  // What steps of about so much context take more than those of the bucket measured first.
  struct Context {
    int32_t count = 0;
    double tokens = 0;  // mean
    double extra = 0;   // seconds over level_
  };
  static int Bucket(int32_t rows);
  static int ContextBucket(int64_t context);
  double Extra(int64_t context) const;
  double Rows(int32_t rows) const;  // seconds over level_, without extra
  void ObserveRows(int bucket, int32_t rows, double value);
  void ObserveContext(int bucket, int64_t tokens, double extra, double usual);
  void Smooth() const;
  // Between measured points `next` - 1 and `next`, or outside of them; over level_.
  double Between(int next, int32_t rows) const;
  double Slope() const;

  std::array<double, kBuckets> mean_{};       // seconds over level_
  std::array<double, kBuckets> mean_rows_{};  // of the same steps
  std::array<double, kBuckets> deviation_{};
  std::array<int32_t, kBuckets> counts_{};
  std::array<uint64_t, kBuckets> seen_{};
  std::array<Context, kContexts> contexts_{};
  int anchor_ = 0;  // the context bucket measured first: extra 0
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

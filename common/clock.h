// Monotonic time as a value, and the seam that lets simulations own it. Times of different
// processes are never compared.
#pragma once

#include <chrono>
#include <cstdint>

namespace paceline {

using Duration = std::chrono::nanoseconds;

// Nanoseconds since an arbitrary start that is the same for the whole process.
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;

inline constexpr TimePoint kNoDeadline = TimePoint::max();

inline double ToSeconds(Duration d) { return std::chrono::duration<double>(d).count(); }
inline Duration Seconds(double s) { return Duration(static_cast<int64_t>(s * 1e9)); }

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint Now() const = 0;
};

class SteadyClock final : public Clock {
 public:
  TimePoint Now() const override { return std::chrono::steady_clock::now(); }
  static const SteadyClock& Get() {
    static const SteadyClock clock;
    return clock;
  }
};

// Time that moves only when told. Not thread-safe: for single-threaded simulations.
class ManualClock final : public Clock {
 public:
  TimePoint Now() const override { return now_; }
  void Advance(Duration d) { now_ += d; }
  void Set(TimePoint t) { now_ = t; }

 private:
  TimePoint now_{};
};

}  // namespace paceline

// How many requests a router holds: a bound on those at workers and one on those that wait here, so
// that overload is an answer and not a growing queue. A request that failed over keeps its place.
#pragma once

#include <cstdint>

namespace paceline {

struct AdmissionOptions {
  int32_t max_in_flight = 1024;  // at workers (--max-in-flight)
  int32_t max_queue = 1024;      // waiting here (--max-queue)
};

class Admission {
 public:
  explicit Admission(AdmissionOptions options) : options_(options) {}

  // Whether one more may go to a worker now, and whether one more may wait.
  bool CanRun() const { return in_flight_ < options_.max_in_flight; }
  bool CanWait() const { return waiting_ < options_.max_queue; }

  void EnterQueue() { ++waiting_; }
  void LeaveQueue() { --waiting_; }
  void EnterFlight() { ++in_flight_; }
  void LeaveFlight() { --in_flight_; }

  int32_t in_flight() const { return in_flight_; }
  int32_t waiting() const { return waiting_; }
  const AdmissionOptions& options() const { return options_; }

 private:
  AdmissionOptions options_;
  int32_t in_flight_ = 0;
  int32_t waiting_ = 0;
};

}  // namespace paceline

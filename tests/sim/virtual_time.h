// Time that moves from event to event, for simulations of many processes in one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <queue>
#include <tuple>
#include <utility>
#include <vector>

#include "common/clock.h"

namespace paceline {

// Not thread-safe. Events of one time run in the order in which they were added.
class VirtualTime final : public Clock {
 public:
  TimePoint Now() const override { return now_; }

  void At(TimePoint when, std::function<void()> what) {
    events_.push({std::max(when, now_), next_order_++, std::move(what)});
  }
  void In(Duration delay, std::function<void()> what) { At(now_ + delay, std::move(what)); }

  // When the earliest event is; kNoDeadline: there is none.
  TimePoint Next() const { return events_.empty() ? kNoDeadline : events_.top().at; }

  // Runs the earliest event; false when there is none.
  bool Turn() {
    if (events_.empty()) return false;
    Event event = events_.top();
    events_.pop();
    now_ = event.at;
    event.what();
    return true;
  }

 private:
  struct Event {
    TimePoint at;
    int64_t order = 0;
    std::function<void()> what;
    bool operator>(const Event& o) const { return std::tie(at, order) > std::tie(o.at, o.order); }
  };

  TimePoint now_{};
  int64_t next_order_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
};

}  // namespace paceline

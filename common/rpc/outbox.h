// What waits to be written to one stream of gRPC's callback API. gRPC allows one write in flight
// per stream, aborts the process on a second, and may answer before it reports the write done; so
// every write goes through here, and only WriteDone starts the next one. While a write is in
// flight, messages are merged where the owner can, so that a slow peer gets fewer and larger
// frames. The queue is bounded: a peer that does not read costs its own stream only.
//
// Thread-safe. The hooks are called without the lock, one at a time, from Push, Finish, Abort or
// WriteDone; the owner outlives the outbox. After `finish` no hook is called again.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>

#include <grpcpp/support/status.h>

namespace paceline {

template <typename Message>
class Outbox {
 public:
  struct Hooks {
    // Starts a write; the message stays where it is until WriteDone.
    std::function<void(const Message* message)> write;
    // Everything is written or dropped, and no write is in flight. Once.
    std::function<void(const grpc::Status& status)> finish;
    // Moves *next into *last and returns true where they can be one frame. May be null.
    std::function<bool(Message* last, Message* next)> merge;
  };

  // `limit`: summed cost of waiting messages, in the unit that Push is given.
  Outbox(Hooks hooks, int64_t limit) : hooks_(std::move(hooks)), limit_(limit) {}
  Outbox(const Outbox&) = delete;
  Outbox& operator=(const Outbox&) = delete;

  // False, and the message is dropped: the stream has ended or failed, or the queue is over its
  // limit. (One message is always taken, however large.)
  bool Push(Message message, int64_t cost) {
    std::unique_lock lock(mutex_);
    if (broken_ || finish_.has_value()) return false;
    if (waiting_cost_ > 0 && waiting_cost_ + cost > limit_) return false;
    waiting_cost_ += cost;
    if (waiting_.empty() || !hooks_.merge || !hooks_.merge(&waiting_.back().message, &message)) {
      waiting_.push_back({std::move(message), 0});
    }
    waiting_.back().cost += cost;
    Advance(std::move(lock));
    return true;
  }

  // From the reactor: the write in flight is over. Not ok: the stream is broken, nothing more is
  // written, and `finish` waits for Finish or Abort.
  void WriteDone(bool ok) {
    std::unique_lock lock(mutex_);
    writing_ = false;
    if (!ok) Break();
    Advance(std::move(lock));
  }

  // Ends the stream behind what waits (on a broken stream, at once). The first call counts.
  void Finish(grpc::Status status) {
    std::unique_lock lock(mutex_);
    if (finish_.has_value()) return;
    finish_ = std::move(status);
    Advance(std::move(lock));
  }

  // As Finish, but drops what waits; also behind an earlier Finish that has not got through.
  void Abort(grpc::Status status) {
    std::unique_lock lock(mutex_);
    Break();
    if (!finish_.has_value()) finish_ = std::move(status);
    Advance(std::move(lock));
  }

  int64_t waiting_cost() const {
    std::lock_guard lock(mutex_);
    return waiting_cost_;
  }

 private:
  struct Item {
    Message message;
    int64_t cost;
  };

  void Break() {
    broken_ = true;
    waiting_.clear();
    waiting_cost_ = 0;
  }

  void Advance(std::unique_lock<std::mutex> lock) {
    if (writing_ || finished_) return;
    if (!waiting_.empty()) {
      in_flight_ = std::move(waiting_.front().message);
      waiting_cost_ -= waiting_.front().cost;
      waiting_.pop_front();
      writing_ = true;
      lock.unlock();
      hooks_.write(&in_flight_);
    } else if (finish_.has_value()) {
      finished_ = true;
      const grpc::Status status = *finish_;
      // The finish may destroy this outbox with its owner.
      const auto finish = std::move(hooks_.finish);
      lock.unlock();
      finish(status);
    }
  }

  Hooks hooks_;
  const int64_t limit_;
  mutable std::mutex mutex_;
  std::deque<Item> waiting_;
  int64_t waiting_cost_ = 0;
  Message in_flight_;
  bool writing_ = false;
  bool broken_ = false;
  bool finished_ = false;
  std::optional<grpc::Status> finish_;
};

}  // namespace paceline

// What other threads ask of the engine: a bounded queue of commands behind a mutex, and the book of
// handles in flight. Thread-safe.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "worker/engine/engine.h"

namespace paceline {

struct SubmitCommand {
  RequestHandle handle = 0;
  GenerationRequest request;
  TimePoint submitted{};
};

struct CancelCommand {
  RequestHandle handle = 0;
  absl::StatusCode code = absl::StatusCode::kCancelled;
};

struct DropSessionCommand {
  std::string session_id;
};

using Command = std::variant<SubmitCommand, CancelCommand, DropSessionCommand>;

class Inbox {
 public:
  explicit Inbox(int32_t max_waiting) : max_waiting_(max_waiting) {}

  // ALREADY_EXISTS, UNAVAILABLE or RESOURCE_EXHAUSTED as Engine::Submit says.
  absl::Status Submit(SubmitCommand command);
  // Ignored unless the handle is in flight.
  void Cancel(CancelCommand command);
  void DropSession(DropSessionCommand command);

  void StartDrain();
  bool draining() const;
  void Stop();
  bool stopped() const;

  // The engine's side. Moves all commands to *commands (emptied first).
  void Drain(std::vector<Command>* commands);
  // Requests that the scheduler has taken and not yet begun.
  void SetQueued(int32_t queued);
  // The handles have had their last word.
  void Forget(const std::vector<EngineOutput::Finished>& finished);
  // Blocks until a command is there, Stop, or the timeout.
  void WaitForWork(Duration timeout);

 private:
  const int32_t max_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::vector<Command> commands_;
  absl::flat_hash_set<RequestHandle> handles_;
  int32_t queued_ = 0;     // at the scheduler
  int32_t submitted_ = 0;  // among commands_
  bool draining_ = false;
  bool stopped_ = false;
};

}  // namespace paceline

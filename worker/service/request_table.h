// Which router stream each of the engine's requests belongs to: routers choose handles, each its
// own; the engine gets handles of this table. Thread-safe; the engine thread, gRPC's threads and
// the end of a stream meet here.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "common/rpc/outbox.h"
#include "paceline/worker/v1/worker.pb.h"
#include "worker/engine/engine.h"

namespace paceline {

using RouterOutbox = Outbox<worker::v1::OpenStreamResponse>;

// One router's stream, as long as anybody needs it.
struct RouterStreamState {
  std::unique_ptr<RouterOutbox> outbox;

  // Guarded by the table's mutex.
  std::unordered_map<uint64_t, RequestHandle> requests;  // router's handle -> engine's
  bool gone = false;
};

class RequestTable {
 public:
  // The engine's handle for a new request. Empty: the router's handle is in flight on this stream,
  // or the stream has gone.
  std::optional<RequestHandle> Add(const std::shared_ptr<RouterStreamState>& stream,
                                   uint64_t router_handle);
  // The engine refused it.
  void Remove(RequestHandle handle);
  std::optional<RequestHandle> Find(const RouterStreamState& stream, uint64_t router_handle) const;
  // The stream has gone; returns what it leaves in flight (once).
  std::vector<RequestHandle> RemoveStream(const std::shared_ptr<RouterStreamState>& stream);

  // Turns what a step made public into one frame per stream. Requests of streams that have gone are
  // dropped; finished ones are forgotten.
  struct Frame {
    std::shared_ptr<RouterStreamState> stream;
    worker::v1::OpenStreamResponse response;
    int64_t cost = 0;  // about its bytes
  };
  std::vector<Frame> Split(const EngineOutput& output);

  size_t size() const;

 private:
  struct Entry {
    std::shared_ptr<RouterStreamState> stream;  // null: gone
    uint64_t router_handle = 0;
  };

  mutable std::mutex mutex_;
  RequestHandle next_ = 1;
  std::unordered_map<RequestHandle, Entry> entries_;
};

}  // namespace paceline

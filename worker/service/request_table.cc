#include "worker/service/request_table.h"

#include <utility>

#include "common/rpc/generation_proto.h"

namespace paceline {

std::optional<RequestHandle> RequestTable::Add(const std::shared_ptr<RouterStreamState>& stream,
                                               uint64_t router_handle) {
  std::lock_guard lock(mutex_);
  if (stream->gone || !stream->requests.emplace(router_handle, next_).second) return std::nullopt;
  entries_[next_] = {stream, router_handle};
  return next_++;
}

void RequestTable::Remove(RequestHandle handle) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(handle);
  if (it == entries_.end()) return;
  if (it->second.stream != nullptr) it->second.stream->requests.erase(it->second.router_handle);
  entries_.erase(it);
}

std::optional<RequestHandle> RequestTable::Find(const RouterStreamState& stream,
                                                uint64_t router_handle) const {
  std::lock_guard lock(mutex_);
  const auto it = stream.requests.find(router_handle);
  if (it == stream.requests.end()) return std::nullopt;
  return it->second;
}

std::vector<RequestHandle> RequestTable::RemoveStream(
    const std::shared_ptr<RouterStreamState>& stream) {
  std::lock_guard lock(mutex_);
  stream->gone = true;
  std::vector<RequestHandle> handles;
  for (const auto& [router_handle, handle] : stream->requests) {
    entries_[handle].stream = nullptr;
    handles.push_back(handle);
  }
  stream->requests.clear();
  return handles;
}

std::vector<RequestTable::Frame> RequestTable::Split(const EngineOutput& output) {
  std::vector<Frame> frames;
  // A step serves a few routers at most.
  const auto frame_of = [&frames](const std::shared_ptr<RouterStreamState>& stream) -> Frame& {
    for (Frame& frame : frames) {
      if (frame.stream == stream) return frame;
    }
    frames.push_back({stream, {}, 0});
    return frames.back();
  };
  std::lock_guard lock(mutex_);
  for (const EngineOutput::Delta& delta : output.deltas) {
    const auto it = entries_.find(delta.request);
    if (it == entries_.end() || it->second.stream == nullptr) continue;
    Frame& frame = frame_of(it->second.stream);
    auto* proto = frame.response.add_deltas();
    ToProto(it->second.router_handle, delta.delta, proto);
    frame.cost += static_cast<int64_t>(proto->ByteSizeLong());
  }
  for (const EngineOutput::Finished& finished : output.finished) {
    const auto it = entries_.find(finished.request);
    if (it == entries_.end()) continue;
    if (it->second.stream != nullptr) {
      Frame& frame = frame_of(it->second.stream);
      auto* proto = frame.response.add_finished();
      ToProto(it->second.router_handle, finished.status, finished.usage, proto);
      frame.cost += static_cast<int64_t>(proto->ByteSizeLong());
      it->second.stream->requests.erase(it->second.router_handle);
    }
    entries_.erase(it);
  }
  return frames;
}

size_t RequestTable::size() const {
  std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace paceline

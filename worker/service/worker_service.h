// paceline.worker.v1 over an engine. Bound to its port before the model is loaded: until Serve,
// submits are refused as loading. gRPC's threads only hand over; nothing here waits for a step.
#pragma once

#include <functional>

#include <grpcpp/support/server_callback.h>

#include "paceline/worker/v1/worker.grpc.pb.h"
#include "worker/engine/engine.h"
#include "worker/service/process_state.h"
#include "worker/service/request_table.h"
#include "worker/service/status_feed.h"

namespace paceline {

struct WorkerServiceOptions {
  // A router that leaves this much unread loses its stream, and with it its requests.
  int64_t max_outbox_bytes = 64 << 20;
  // What requests that leave it to the worker get (--speculation).
  DecodingMode auto_decoding = DecodingMode::kAuto;
};

class WorkerServiceImpl final : public worker::v1::WorkerService::CallbackService {
 public:
  // `on_drain`: what Drain does besides setting the state.
  WorkerServiceImpl(ProcessState* state, StatusFeed* feed, std::function<void()> on_drain,
                    WorkerServiceOptions options = {});

  // For the engine's constructor: sends what a step made public. Engine thread.
  EngineSink Sink();
  // From now on requests go to this engine, which outlives every call. A draft worker has none.
  void Serve(Engine* engine);
  // Ends all router streams; later ones end at once.
  void Stop();
  // Requests in flight, and routers connected.
  size_t num_requests() const { return table_.size(); }
  size_t num_streams() const;

  grpc::ServerUnaryReactor* GetInfo(grpc::CallbackServerContext* context,
                                    const worker::v1::GetInfoRequest* request,
                                    worker::v1::GetInfoResponse* response) override;
  grpc::ServerBidiReactor<worker::v1::OpenStreamRequest, worker::v1::OpenStreamResponse>*
  OpenStream(grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<worker::v1::WatchStatusResponse>* WatchStatus(
      grpc::CallbackServerContext* context, const worker::v1::WatchStatusRequest* request) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* context,
                                         const worker::v1::ListSessionsRequest* request,
                                         worker::v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* context,
                                          const worker::v1::DeleteSessionRequest* request,
                                          worker::v1::DeleteSessionResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const worker::v1::DrainRequest* request,
                                  worker::v1::DrainResponse* response) override;

 private:
  class RouterStream;

  grpc::Status WhyNoEngine() const;
  void Handle(const std::shared_ptr<RouterStreamState>& stream,
              const worker::v1::OpenStreamRequest& request);
  absl::Status Submit(const std::shared_ptr<RouterStreamState>& stream,
                      const worker::v1::Submit& submit);
  void Send(const std::shared_ptr<RouterStreamState>& stream,
            worker::v1::OpenStreamResponse response, int64_t cost);
  void Disconnect(const std::shared_ptr<RouterStreamState>& stream);

  ProcessState* const state_;
  StatusFeed* const feed_;
  const std::function<void()> on_drain_;
  const WorkerServiceOptions options_;
  std::atomic<Engine*> engine_ = nullptr;
  RequestTable table_;
  mutable std::mutex mutex_;
  std::vector<std::weak_ptr<RouterStreamState>> streams_;
  bool stopped_ = false;
};

}  // namespace paceline

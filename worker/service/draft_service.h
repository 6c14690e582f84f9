// paceline.draft.v1 over a draft engine: one long-lived stream per target. Bound to its port before
// the model is loaded: until Serve, streams are refused as loading.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include <grpcpp/support/server_callback.h>

#include "paceline/draft/v1/draft.grpc.pb.h"
#include "worker/draft/draft_engine.h"
#include "worker/service/draft_probe.h"
#include "worker/service/process_state.h"

namespace paceline {

struct DraftServiceOptions {
  int64_t max_outbox_bytes = 16 << 20;  // a target that leaves more unread loses its stream
};

class DraftServiceImpl final : public draft::v1::DraftService::CallbackService {
 public:
  // `probe` may be null.
  DraftServiceImpl(ProcessState* state, DraftProbe* probe, DraftServiceOptions options = {});

  // The engine outlives every call.
  void Serve(DraftEngine* engine);
  // Tells every target that its sessions should move elsewhere; the state is draining already.
  void AnnounceDrain();
  // Ends all streams; later ones end at once.
  void Stop();
  // Targets connected.
  size_t num_streams() const;

  grpc::ServerUnaryReactor* GetInfo(grpc::CallbackServerContext* context,
                                    const draft::v1::GetInfoRequest* request,
                                    draft::v1::GetInfoResponse* response) override;
  grpc::ServerBidiReactor<draft::v1::OpenStreamRequest, draft::v1::OpenStreamResponse>* OpenStream(
      grpc::CallbackServerContext* context) override;

 private:
  class TargetStream;

  // OK when a target that says this may be served.
  grpc::Status CheckHello(const draft::v1::OpenStreamRequest& first) const;
  std::vector<std::shared_ptr<TargetStream>> Streams() const;

  ProcessState* const state_;
  DraftProbe* const probe_;
  const DraftServiceOptions options_;
  std::atomic<DraftEngine*> engine_ = nullptr;
  mutable std::mutex mutex_;
  std::vector<std::weak_ptr<TargetStream>> streams_;
  bool stopped_ = false;
};

}  // namespace paceline

// A DraftLink over gRPC: one long-lived stream to one draft worker, opened anew with jittered
// backoff whenever it ends. Heartbeats tell a silent drafter within a fraction of a second, which
// HTTP/2's keepalive cannot.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include <grpcpp/channel.h>

#include "common/clock.h"
#include "paceline/draft/v1/draft.grpc.pb.h"
#include "worker/spec/draft_link.h"

namespace paceline {

struct GrpcDraftLinkOptions {
  Duration heartbeat = std::chrono::milliseconds(50);  // between pings
  Duration silence = std::chrono::milliseconds(500);   // nothing heard for so long: down
  Duration greeting = std::chrono::seconds(3);         // open to hello
  Duration first_backoff = std::chrono::milliseconds(50);
  Duration last_backoff = std::chrono::seconds(2);
  int64_t max_outbox_bytes = 16 << 20;
};

class GrpcDraftLink final : public DraftLink {
 public:
  // Both are called on gRPC's threads until Close returns.
  using Deliver = std::function<void(uint64_t incarnation, DraftFrame frame)>;
  using RoundTrip = std::function<void(Duration)>;

  // `hello` is what this target says of itself. Nothing happens before the first Tick.
  GrpcDraftLink(std::string address, draft::v1::Hello hello, Deliver deliver, RoundTrip round_trip,
                GrpcDraftLinkOptions options = {});
  ~GrpcDraftLink() override;

  const std::string& name() const override { return address_; }
  DraftLinkStatus status() const override;
  bool Send(uint64_t incarnation, TargetFrame frame) override;

  // Heartbeats, silence, reconnecting; to be called every few milliseconds from one thread.
  void Tick(TimePoint now);
  // Ends the stream and waits for gRPC to let go of it.
  void Close();
  // Why the last stream ended; empty if none has.
  std::string last_error() const;

 private:
  class Stream;

  void Open(TimePoint now);
  void Heard(Stream* stream, draft::v1::OpenStreamResponse* frame);
  void Ended(Stream* stream, const grpc::Status& status);
  void Beat(const std::shared_ptr<Stream>& stream, TimePoint now);

  const std::string address_;
  const draft::v1::Hello hello_;
  const Deliver deliver_;
  const RoundTrip round_trip_;
  const GrpcDraftLinkOptions options_;
  const std::unique_ptr<draft::v1::DraftService::Stub> stub_;

  mutable std::mutex mutex_;
  std::condition_variable ended_;
  std::shared_ptr<Stream> stream_;  // from Open until gRPC has let go of it
  uint64_t incarnation_ = 0;
  DraftLinkState state_ = DraftLinkState::kDown;
  bool closed_ = false;
  std::string last_error_;
  TimePoint opened_{}, last_heard_{}, reopen_at_{}, pinged_{};
  uint64_t ping_ = 0;
  bool ping_out_ = false;
  Duration backoff_{};
};

}  // namespace paceline

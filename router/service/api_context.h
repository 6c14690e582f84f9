// What the public services share. All of it outlives the server that they are registered with.
#pragma once

#include <string>
#include <utility>

#include <grpcpp/support/server_callback.h>

#include "common/clock.h"
#include "common/rpc/channel.h"
#include "router/core/resume_token.h"
#include "router/service/cluster_directory.h"
#include "router/service/model_catalog.h"
#include "router/service/request_probe.h"
#include "router/service/router_loop.h"
#include "router/service/serving_error_proto.h"
#include "router/service/text_executor.h"
#include "router/service/tokenizer_watch.h"

namespace paceline {

struct ApiOptions {
  int64_t max_outbox_tokens = 4096;  // a client that leaves more unread loses its stream
  // How long a client that was too slow may still fetch the reason, before its call is dropped.
  Duration slow_client_grace = std::chrono::seconds(10);
  int64_t max_answer_bytes = kMaxMessageBytes - 4096;  // of GenerateText: its deltas
  // Requests end so long before the RPC's deadline (at most a tenth of it), so that the client gets
  // the typed error.
  Duration deadline_margin = std::chrono::milliseconds(5);
  Duration ask_limit = std::chrono::seconds(2);  // for answers of workers about sessions and drains
  int64_t resume_max_age_sec = 24 * 3600;
  bool debug_details = false;  // DebugInfo in errors
};

struct ApiContext {
  RouterLoop* loop = nullptr;
  ClusterDirectory* directory = nullptr;
  const ModelCatalog* catalog = nullptr;
  TextExecutor* text = nullptr;
  const ResumeTokenCodec* resume = nullptr;
  RequestProbe* probe = nullptr;
  const Clock* clock = nullptr;
  TokenizerWatch* tokenizers = nullptr;
  ApiOptions options;
};

// One call with one answer, from receipt to end. Copyable, for answers that come later; exactly one
// of the ends is called.
class UnaryEnd {
 public:
  UnaryEnd(const ApiContext* api, grpc::CallbackServerContext* context, std::string method)
      : api_(api),
        context_(context),
        reactor_(context->DefaultReactor()),
        method_(std::move(method)),
        received_(api->clock->Now()) {}

  void SetModel(const std::string& model) { model_ = model; }

  void Finish(const grpc::Status& status) const {
    RequestEnd end;
    end.method = method_;
    end.model = model_;
    end.code = static_cast<absl::StatusCode>(status.error_code());
    end.total = api_->clock->Now() - received_;
    api_->probe->RequestEnded(end);
    reactor_->Finish(status);
  }
  void Fail(const ServingError& error) const {
    AddRetryPushback(error, context_);
    Finish(ToGrpcStatus(error, api_->options.debug_details));
  }

  grpc::ServerUnaryReactor* reactor() const { return reactor_; }

 private:
  const ApiContext* api_;
  grpc::CallbackServerContext* context_;
  grpc::ServerUnaryReactor* reactor_;
  std::string method_, model_;
  TimePoint received_;
};

}  // namespace paceline

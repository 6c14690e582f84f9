#include "cli/cluster_commands.h"

#include <google/protobuf/util/json_util.h>
#include <grpcpp/client_context.h>

#include <cstdio>

#include "cli/router_client.h"
#include "common/flags.h"
#include "paceline/v1/cluster.grpc.pb.h"

namespace paceline {
namespace {

void SetLimit(grpc::ClientContext* context) {
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
}

const char* StateName(v1::WorkerState state) {
  switch (state) {
    case v1::WORKER_STATE_STARTING:
      return "starting";
    case v1::WORKER_STATE_READY:
      return "ready";
    case v1::WORKER_STATE_DRAINING:
      return "draining";
    case v1::WORKER_STATE_UNHEALTHY:
      return "unhealthy";
    default:
      return "unknown";
  }
}

void PrintTable(const v1::GetClusterStatusResponse& status) {
  std::printf("router: %d in flight, %d queued%s\n", status.router().in_flight_request_count(),
              status.router().queued_request_count(),
              status.router().draining() ? ", draining" : "");
  std::printf("%-22s %-7s %-10s %7s %7s %21s %6s %8s %9s\n", "address", "role", "state", "running",
              "waiting", "KV active/cached/free", "frag", "tokens/s", "accepted");
  for (const v1::WorkerStatus& w : status.workers()) {
    char kv[40], accepted[16] = "-";
    std::snprintf(kv, sizeof kv, "%d/%d/%d", w.kv().active_block_count(),
                  w.kv().cached_block_count(), w.kv().free_block_count());
    if (w.drafted_token_count() > 0) {
      std::snprintf(accepted, sizeof accepted, "%.0f %%",
                    100.0 * static_cast<double>(w.accepted_token_count()) /
                        static_cast<double>(w.drafted_token_count()));
    }
    std::printf("%-22s %-7s %-10s %7d %7d %21s %5.1f%% %8.0f %9s\n", w.address().c_str(),
                w.role().c_str(), StateName(w.state()),
                w.role() == "draft" ? w.draft_session_count() : w.running_sequence_count(),
                w.waiting_request_count(), kv, 100 * w.kv().fragmentation_ratio(),
                w.tokens_per_second(), accepted);
  }
}

int PrintJson(const v1::GetClusterStatusResponse& status) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(status, &json, options).ok()) {
    std::fprintf(stderr, "error: the status does not print as JSON\n");
    return kExitFailure;
  }
  std::fputs(json.c_str(), stdout);
  return 0;
}

}  // namespace

int RunStatus(int argc, const char* const* argv) {
  std::string router = "127.0.0.1:50051";
  bool json = false;
  Flags flags("paceline status: the router and its workers");
  flags.Add("router", &router, "the router's address");
  flags.Add("json", &json, "as JSON");
  if (!flags.ParseOrExit(argc, argv).empty()) {
    std::fprintf(stderr, "error: unexpected argument\n");
    return kExitUsage;
  }
  grpc::ClientContext context;
  SetLimit(&context);
  v1::GetClusterStatusResponse response;
  const grpc::Status status =
      v1::ClusterService::NewStub(ConnectRouter(router))->GetClusterStatus(&context, {}, &response);
  if (!status.ok()) return ReportFailure(router, status);
  if (json) return PrintJson(response);
  PrintTable(response);
  return 0;
}

int RunDrain(int argc, const char* const* argv) {
  std::string router = "127.0.0.1:50051";
  Flags flags(
      "paceline drain --router ADDR WORKER: the worker finishes what it has and takes no more");
  flags.Add("router", &router, "the router's address");
  const auto positional = flags.ParseOrExit(argc, argv);
  if (positional.size() != 1) {
    std::fprintf(stderr, "error: name one worker by its address (paceline status lists them)\n");
    return kExitUsage;
  }
  grpc::ClientContext context;
  SetLimit(&context);
  v1::DrainWorkerRequest request;
  request.set_address(positional[0]);
  v1::DrainWorkerResponse response;
  const grpc::Status status =
      v1::ClusterService::NewStub(ConnectRouter(router))->DrainWorker(&context, request, &response);
  if (!status.ok()) return ReportFailure(router, status);
  std::printf("%s drains\n", positional[0].c_str());
  return 0;
}

}  // namespace paceline

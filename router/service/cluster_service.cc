#include "router/service/cluster_service.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

v1::WorkerState StateOf(const ClusterDirectory::Member& member) {
  if (!member.reached) return v1::WORKER_STATE_UNHEALTHY;
  if (member.report.draining()) return v1::WORKER_STATE_DRAINING;
  return member.report.ready() ? v1::WORKER_STATE_READY : v1::WORKER_STATE_STARTING;
}

void ToProto(const ClusterDirectory::Member& member, v1::WorkerStatus* proto) {
  const worker::v1::WatchStatusResponse& report = member.report;
  proto->set_address(member.address);
  proto->set_role(member.role);
  proto->set_state(StateOf(member));
  proto->set_model(report.info().model());
  proto->set_numerics_fingerprint(report.info().numerics_fingerprint());
  proto->set_running_sequence_count(report.running());
  proto->set_waiting_request_count(report.waiting());
  v1::KvStatus* kv = proto->mutable_kv();
  kv->set_active_block_count(report.active_blocks());
  kv->set_cached_block_count(report.cached_blocks());
  kv->set_free_block_count(report.free_blocks());
  kv->set_block_size(report.info().block_size());
  kv->set_fragmentation_ratio(report.fragmentation());
  proto->set_tokens_per_second(report.tokens_per_second());
  proto->set_step_seconds(report.step_seconds());
  proto->set_drafted_token_count(report.drafted_tokens());
  proto->set_accepted_token_count(report.accepted_tokens());
  proto->set_draft_session_count(report.draft_sessions());
  proto->set_report_age_seconds(ToSeconds(member.report_age));
}

ServingError DrainError(const std::string& address, const absl::Status& status) {
  ServingError error = ServingError::NoWorker("");
  error.message = std::string(status.message());
  error.metadata = {{"worker", address}};
  if (status.code() != absl::StatusCode::kNotFound) return error;
  error.code = absl::StatusCode::kNotFound;
  error.reason = "WORKER_NOT_FOUND";
  error.message = absl::StrCat("no worker has the address \"", address, "\"");
  error.resource = ServingError::Resource{"paceline.v1.Worker", address};
  error.retry_after.reset();
  return error;
}

}  // namespace

grpc::ServerUnaryReactor* ClusterServiceImpl::GetClusterStatus(
    grpc::CallbackServerContext* context, const v1::GetClusterStatusRequest*,
    v1::GetClusterStatusResponse* response) {
  UnaryEnd end(&api_, context, "GetClusterStatus");
  for (const ClusterDirectory::Member& member : api_.directory->Members()) {
    ToProto(member, response->add_workers());
  }
  // In a turn of the loop, which is not waited for.
  api_.loop->Post([end, response](RouterCore& core, TimePoint) {
    v1::RouterStatus* router = response->mutable_router();
    router->set_in_flight_request_count(static_cast<int32_t>(core.num_requests()));
    router->set_queued_request_count(core.admission().waiting());
    router->set_draining(core.draining());
    end.Finish(grpc::Status::OK);
  });
  return end.reactor();
}

grpc::ServerUnaryReactor* ClusterServiceImpl::DrainWorker(grpc::CallbackServerContext* context,
                                                          const v1::DrainWorkerRequest* request,
                                                          v1::DrainWorkerResponse*) {
  UnaryEnd end(&api_, context, "DrainWorker");
  if (request->address().empty()) {
    end.Fail(ServingError::InvalidField("address", "it is required"));
    return end.reactor();
  }
  api_.directory->DrainWorker(request->address(), api_.options.ask_limit,
                              [end, request](const absl::Status& status) {
                                if (status.ok()) return end.Finish(grpc::Status::OK);
                                end.Fail(DrainError(request->address(), status));
                              });
  return end.reactor();
}

}  // namespace paceline

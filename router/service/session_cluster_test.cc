// Sessions and cluster status over gRPC, before a directory of made-up workers.
#include "common/types/session_id.h"
#include "router/service/api_fixture.h"

namespace paceline {
namespace {

using testing::ApiServer;
using testing::DetailOf;
using ::testing::ElementsAre;
using ::testing::SizeIs;

worker::v1::SessionBlocks Blocks(const std::string& id, int32_t blocks, int seconds) {
  worker::v1::SessionBlocks proto;
  proto.set_session_id(id);
  proto.set_blocks(blocks);
  proto.mutable_time_left()->set_seconds(seconds);
  return proto;
}

std::string FieldOf(const grpc::Status& status) {
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  return DetailOf<google::rpc::BadRequest>(status).field_violations(0).field();
}

TEST(SessionService, IdsAreDrawn) {
  ApiServer server;
  std::set<std::string> ids;
  for (int i = 0; i < 20; ++i) {
    v1::CreateSessionResponse response;
    grpc::ClientContext context;
    ASSERT_TRUE(server.sessions->CreateSession(&context, {}, &response).ok());
    EXPECT_EQ(response.session().session_id().size(), 32u);
    ids.insert(response.session().session_id());
  }
  EXPECT_THAT(ids, SizeIs(20));
}

TEST(SessionService, AnIdCarriesItsTimeToLive) {
  ApiServer server;
  v1::CreateSessionRequest request;
  request.mutable_time_to_live()->set_seconds(59);
  request.mutable_time_to_live()->set_nanos(1);
  v1::CreateSessionResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(server.sessions->CreateSession(&context, request, &response).ok());
  EXPECT_EQ(response.session().time_to_live().seconds(), 60);
  EXPECT_EQ(SessionTimeToLive(response.session().session_id()), std::chrono::seconds(60));
}

TEST(SessionService, RefusesATimeToLiveOutOfRange) {
  ApiServer server;
  for (const int64_t seconds : {-1, 0, 24 * 3600 + 1}) {
    v1::CreateSessionRequest request;
    request.mutable_time_to_live()->set_seconds(seconds);
    v1::CreateSessionResponse response;
    grpc::ClientContext context;
    EXPECT_EQ(FieldOf(server.sessions->CreateSession(&context, request, &response)),
              "time_to_live");
  }
}

TEST(SessionService, AddsUpWhatWorkersSay) {
  ApiServer server;
  server.directory.sessions = {{"a:1", {}, {Blocks("s", 3, 10), Blocks("t", 1, 5)}},
                               {"b:1", {}, {Blocks("s", 4, 20)}}};
  v1::GetSessionRequest request;
  request.set_session_id("s");
  v1::GetSessionResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(server.sessions->GetSession(&context, request, &response).ok());
  EXPECT_EQ(response.session().session_id(), "s");
  EXPECT_EQ(response.session().block_count(), 7);
  EXPECT_EQ(response.session().time_to_live().seconds(), 20);
  EXPECT_THAT(response.session().workers(), ElementsAre("a:1", "b:1"));
}

TEST(SessionService, SaysNotFoundOnlyWhenEveryWorkerHasAnswered) {
  ApiServer server;
  server.directory.sessions = {{"a:1", {}, {}}};
  v1::GetSessionRequest request;
  request.set_session_id("s");
  v1::GetSessionResponse response;
  grpc::ClientContext first;
  grpc::Status status = server.sessions->GetSession(&first, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(ErrorReason(status), "SESSION_NOT_FOUND");
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(status).resource_name(), "s");
  server.directory.sessions.push_back({"b:1", absl::DeadlineExceededError("silent"), {}});
  grpc::ClientContext second;
  status = server.sessions->GetSession(&second, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(SessionService, ListsInPages) {
  ApiServer server;
  server.directory.sessions = {{"a:1", {}, {Blocks("s3", 1, 1), Blocks("s1", 1, 1)}},
                               {"b:1", {}, {Blocks("s2", 1, 1)}},
                               {"c:1", absl::UnavailableError("gone"), {}}};
  v1::ListSessionsRequest request;
  request.set_page_size(2);
  std::vector<std::string> ids;
  do {
    v1::ListSessionsResponse response;
    grpc::ClientContext context;
    ASSERT_TRUE(server.sessions->ListSessions(&context, request, &response).ok());
    for (const auto& s : response.sessions()) ids.push_back(s.session_id());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_THAT(ids, ElementsAre("s1", "s2", "s3"));
  server.directory.sessions = {{"c:1", absl::UnavailableError("gone"), {}}};
  v1::ListSessionsResponse response;
  grpc::ClientContext context;
  EXPECT_EQ(server.sessions->ListSessions(&context, {}, &response).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST(SessionService, DeletesEverywhere) {
  ApiServer server;
  v1::DeleteSessionRequest request;
  request.set_session_id("s");
  v1::DeleteSessionResponse response;
  grpc::ClientContext first;
  EXPECT_TRUE(server.sessions->DeleteSession(&first, request, &response).ok());
  EXPECT_THAT(server.directory.deleted, ElementsAre("s"));
  server.directory.delete_status = absl::UnavailableError("gone");
  grpc::ClientContext second;
  EXPECT_EQ(server.sessions->DeleteSession(&second, request, &response).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST(SessionService, NamesBadFields) {
  ApiServer server;
  v1::GetSessionRequest get;
  v1::GetSessionResponse got;
  grpc::ClientContext first;
  EXPECT_EQ(FieldOf(server.sessions->GetSession(&first, get, &got)), "session_id");
  v1::DeleteSessionRequest del;
  del.set_session_id(std::string(257, 'x'));
  v1::DeleteSessionResponse deleted;
  grpc::ClientContext second;
  EXPECT_EQ(FieldOf(server.sessions->DeleteSession(&second, del, &deleted)), "session_id");
  v1::ListSessionsRequest list;
  list.set_page_size(1001);
  v1::ListSessionsResponse listed;
  grpc::ClientContext third;
  EXPECT_EQ(FieldOf(server.sessions->ListSessions(&third, list, &listed)), "page_size");
}

TEST(ClusterService, ShowsRouterTargetsAndDrafts) {
  ApiServer server;
  auto target = testing::Target("a:1", "m");
  target.report_age = std::chrono::milliseconds(1500);
  target.report.set_running(3);
  target.report.set_waiting(2);
  target.report.set_active_blocks(10);
  target.report.set_cached_blocks(20);
  target.report.set_free_blocks(30);
  target.report.set_fragmentation(0.25);
  target.report.set_tokens_per_second(99);
  target.report.set_step_seconds(0.5);
  target.report.set_drafted_tokens(8);
  target.report.set_accepted_tokens(6);
  target.report.mutable_info()->set_block_size(16);
  auto silent = testing::Target("b:1", "m");
  silent.reached = false;
  auto draining = testing::Target("c:1", "m");
  draining.report.set_draining(true);
  auto loading = testing::Target("d:1", "m");
  loading.report.set_ready(false);
  auto draft = testing::Target("e:1", "small");
  draft.role = "draft";
  draft.report.set_draft_sessions(5);
  server.directory.SetMembers({target, silent, draining, loading, draft});
  v1::GetClusterStatusResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(server.cluster->GetClusterStatus(&context, {}, &response).ok());
  EXPECT_TRUE(response.has_router());
  EXPECT_EQ(response.router().in_flight_request_count(), 0);
  EXPECT_FALSE(response.router().draining());
  ASSERT_EQ(response.workers_size(), 5);
  const v1::WorkerStatus& w = response.workers(0);
  EXPECT_EQ(w.address(), "a:1");
  EXPECT_EQ(w.role(), "target");
  EXPECT_EQ(w.state(), v1::WORKER_STATE_READY);
  EXPECT_EQ(w.model(), "m");
  EXPECT_EQ(w.numerics_fingerprint(), "cpu-x");
  EXPECT_EQ(w.running_sequence_count(), 3);
  EXPECT_EQ(w.waiting_request_count(), 2);
  EXPECT_EQ(w.kv().active_block_count(), 10);
  EXPECT_EQ(w.kv().cached_block_count(), 20);
  EXPECT_EQ(w.kv().free_block_count(), 30);
  EXPECT_EQ(w.kv().block_size(), 16);
  EXPECT_EQ(w.kv().fragmentation_ratio(), 0.25);
  EXPECT_EQ(w.tokens_per_second(), 99);
  EXPECT_EQ(w.step_seconds(), 0.5);
  EXPECT_EQ(w.drafted_token_count(), 8);
  EXPECT_EQ(w.accepted_token_count(), 6);
  EXPECT_EQ(w.report_age_seconds(), 1.5);
  EXPECT_EQ(response.workers(1).state(), v1::WORKER_STATE_UNHEALTHY);
  EXPECT_EQ(response.workers(2).state(), v1::WORKER_STATE_DRAINING);
  EXPECT_EQ(response.workers(3).state(), v1::WORKER_STATE_STARTING);
  EXPECT_EQ(response.workers(4).role(), "draft");
  EXPECT_EQ(response.workers(4).draft_session_count(), 5);
}

TEST(ClusterService, DrainsWorkersThatItKnows) {
  ApiServer server;
  v1::DrainWorkerRequest request;
  request.set_address("t0:1");
  v1::DrainWorkerResponse response;
  grpc::ClientContext first;
  EXPECT_TRUE(server.cluster->DrainWorker(&first, request, &response).ok());
  EXPECT_THAT(server.directory.drained, ElementsAre("t0:1"));
  request.set_address("nobody:1");
  grpc::ClientContext second;
  const grpc::Status status = server.cluster->DrainWorker(&second, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(status).resource_name(), "nobody:1");
  request.clear_address();
  grpc::ClientContext third;
  EXPECT_EQ(FieldOf(server.cluster->DrainWorker(&third, request, &response)), "address");
}

}  // namespace
}  // namespace paceline

// What a client sees of generations that fail: code, reason, typed details, retry pushback.
#include <future>

#include "router/service/api_fixture.h"

namespace paceline {
namespace {

using testing::Answer;
using testing::ApiServer;
using testing::DetailOf;
using testing::Eventually;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using testing::Spec;
using testing::Stream;

// Empty: none was sent.
std::string Pushback(const grpc::ClientContext& context) {
  const auto& trailers = context.GetServerTrailingMetadata();
  auto it = trailers.find("grpc-retry-pushback-ms");
  return it == trailers.end() ? "" : std::string(it->second.data(), it->second.size());
}

std::string Reason(const grpc::Status& status) {
  const auto info = DetailOf<google::rpc::ErrorInfo>(status);
  EXPECT_EQ(info.domain(), kErrorDomain);
  return info.reason();
}

// A stream that runs until it is told otherwise.
class Running {
 public:
  Running(ApiServer* server, const v1::GenerationSpec& spec)
      : result_(std::async(std::launch::async,
                           [this, server, spec] { return Stream(server, spec, &context); })) {}
  Answer Get() { return result_.get(); }

  grpc::ClientContext context;

 private:
  std::future<Answer> result_;
};

TEST(ApiErrors, InvalidField) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(5);
  spec.mutable_decoding()->mutable_beam();
  const Answer a = Stream(&server, spec);
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Reason(a.status), "INVALID_FIELD");
  const auto bad = DetailOf<google::rpc::BadRequest>(a.status);
  ASSERT_EQ(bad.field_violations_size(), 1);
  EXPECT_EQ(bad.field_violations(0).field(), "generation.decoding.beam");
  EXPECT_EQ(a.starts.size(), 0u);
  ASSERT_TRUE(Eventually([&] { return server.probe.ends().size() == 1; }));
  EXPECT_EQ(server.probe.ends()[0].code, absl::StatusCode::kInvalidArgument);
}

TEST(ApiErrors, InvalidFieldOfAUnaryCall) {
  ApiServer server;
  v1::GenerateTextRequest request;
  v1::GenerateTextResponse response;
  grpc::ClientContext context;
  const grpc::Status status = server.inference->GenerateText(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(status).field_violations(0).field(),
            "generation.prompt");
}

TEST(ApiErrors, FieldsThatTheCoreRefusesHaveTheirPublicNames) {
  ApiServer server;
  server.directory.SetMembers({});  // the API does not know what the core does
  v1::GenerationSpec spec = Spec(5);
  spec.mutable_token_ids()->add_ids(5000);
  Answer a = Stream(&server, spec);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(a.status).field_violations(0).field(),
            "generation.token_ids");
  spec = Spec(5);
  spec.mutable_sampling()->add_stop_token_ids(5000);
  a = Stream(&server, spec);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(a.status).field_violations(0).field(),
            "generation.sampling.stop_token_ids");
  a = Stream(&server, Spec(5000));
  EXPECT_EQ(Reason(a.status), "CONTEXT_LENGTH_EXCEEDED");
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(a.status).field_violations(0).field(),
            "generation.sampling.max_tokens");
}

TEST(ApiErrors, ContextLengthExceeded) {
  ApiServer server;
  const Answer a = Stream(&server, Spec(4089));
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Reason(a.status), "CONTEXT_LENGTH_EXCEEDED");
  const auto info = DetailOf<google::rpc::ErrorInfo>(a.status);
  EXPECT_EQ(info.metadata().at("limit"), "4096");
  EXPECT_EQ(info.metadata().at("got"), "4097");
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(a.status).field_violations(0).field(),
            "generation.sampling.max_tokens");
}

TEST(ApiErrors, ModelNotFound) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(5);
  spec.set_model("other");
  const Answer a = Stream(&server, spec);
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Reason(a.status), "MODEL_NOT_FOUND");
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(a.status).resource_name(), "other");
  v1::GetModelRequest get;
  get.set_name("other");
  v1::GetModelResponse got;
  grpc::ClientContext context;
  EXPECT_EQ(Reason(server.inference->GetModel(&context, get, &got)), "MODEL_NOT_FOUND");
  grpc::ClientContext again;
  EXPECT_EQ(Reason(server.inference->GetModel(&again, {}, &got)), "INVALID_FIELD");
}

TEST(ApiErrors, NoWorker) {
  ApiServer server({.router = {.failover_timeout = std::chrono::milliseconds(20)}, .targets = 0});
  grpc::ClientContext context;
  const Answer a = Stream(&server, Spec(5), &context);
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Reason(a.status), "NO_WORKER");
  EXPECT_EQ(DetailOf<google::rpc::RetryInfo>(a.status).retry_delay().seconds(), 1);
}

TEST(ApiErrors, ModelLoading) {
  ApiServer server({.router = {.failover_timeout = std::chrono::milliseconds(20)}});
  WorkerSnapshot loading = ApiServer::Snapshot();
  loading.ready = false;
  server.loop.Post([&](RouterCore& core, TimePoint now) {
    core.WorkerReported(core.workers().all().front().id, loading, now);
  });
  grpc::ClientContext context;
  const Answer a = Stream(&server, Spec(5), &context);
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Reason(a.status), "MODEL_LOADING");
  EXPECT_EQ(DetailOf<google::rpc::RetryInfo>(a.status).retry_delay().seconds(), 5);
  EXPECT_EQ(Pushback(context), "5000");
}

TEST(ApiErrors, QueueFull) {
  ApiServer server({.router = {.admission = {.max_in_flight = 1, .max_queue = 0}}});
  server.targets[0]->hold_after = 1;
  Running first(&server, Spec(5));
  ASSERT_TRUE(Eventually([&] { return server.targets[0]->submitted == 1; }));
  grpc::ClientContext context;
  const Answer a = Stream(&server, Spec(5), &context);
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Reason(a.status), "QUEUE_FULL");
  EXPECT_TRUE(DetailOf<google::rpc::RetryInfo>(a.status).has_retry_delay());
  EXPECT_EQ(DetailOf<google::rpc::QuotaFailure>(a.status).violations_size(), 1);
  EXPECT_EQ(Pushback(context), "1000");
  server.targets[0]->hold_after = INT32_MAX;
  EXPECT_TRUE(first.Get().status.ok());
}

TEST(ApiErrors, LongTextsWaitInABoundedQueue) {
  ApiServer server({.text = {.num_threads = 1, .max_queue = 0, .inline_bytes = 100}});
  v1::GenerationSpec spec = Spec(5);
  spec.set_text(std::string(1000, 'x'));
  const Answer a = Stream(&server, spec);
  EXPECT_EQ(Reason(a.status), "QUEUE_FULL");
  EXPECT_THAT(a.status.error_message(), HasSubstr("--max-text-queue"));
  v1::TokenizeTextRequest request;
  request.set_text(spec.text());
  v1::TokenizeTextResponse response;
  grpc::ClientContext context;
  EXPECT_EQ(Reason(server.inference->TokenizeText(&context, request, &response)), "QUEUE_FULL");
  EXPECT_TRUE(Stream(&server, Spec(5)).status.ok()) << "short ones need no queue";
}

TEST(ApiErrors, KvCapacityTooSmall) {
  ApiServer server;
  server.targets[0]->answer = absl::FailedPreconditionError("30 blocks; the pool has 20");
  const Answer a = Stream(&server, Spec(5));
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Reason(a.status), "KV_CAPACITY_TOO_SMALL");
  EXPECT_EQ(DetailOf<google::rpc::PreconditionFailure>(a.status).violations_size(), 1);
}

TEST(ApiErrors, Draining) {
  ApiServer server;
  server.loop.StartDrain();
  grpc::ClientContext context;
  const Answer a = Stream(&server, Spec(5), &context);
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Reason(a.status), "DRAINING");
  EXPECT_EQ(Pushback(context), "0");
}

TEST(ApiErrors, WorkerLostBeforeTheFirstToken) {
  ApiServer server({.router = {.max_attempts = 1}});
  server.targets[0]->hold_after = 0;
  Running run(&server, Spec(5));
  ASSERT_TRUE(Eventually([&] { return server.targets[0]->submitted == 1; }));
  server.targets[0]->Die();
  const Answer a = run.Get();
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Reason(a.status), "WORKER_LOST");
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(a.status).metadata().at("attempts"), "1");
}

TEST(ApiErrors, StreamLost) {
  ApiServer server({.router = {.failover_timeout = std::chrono::milliseconds(20)}});
  server.targets[0]->hold_after = 3;
  v1::StreamGenerateTextRequest request;
  *request.mutable_generation() = Spec(5);
  grpc::ClientContext context;
  auto reader = server.inference->StreamGenerateText(&context, request);
  Answer a;
  v1::StreamGenerateTextResponse event;
  while (a.samples.empty() || a.samples[0].token_ids_size() < 3) {
    ASSERT_TRUE(reader->Read(&event));
    Take(event, &a);
  }
  server.targets[0]->Die();
  while (reader->Read(&event)) Take(event, &a);
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Reason(status), "STREAM_LOST");
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).metadata().at("tokens_sent"), "3");
  EXPECT_EQ(Pushback(context), "");
  EXPECT_THAT(a.summaries, SizeIs(0));
}

TEST(ApiErrors, EngineFaultShowsItsCauseOnlyWhereSwitchedOn) {
  for (const bool debug : {false, true}) {
    ApiServer server({.router = {.max_attempts = 1}, .api = {.debug_details = debug}});
    server.targets[0]->answer = absl::InternalError("slot 5 is gone");
    const Answer a = Stream(&server, Spec(5));
    EXPECT_EQ(a.status.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_EQ(Reason(a.status), "ENGINE_FAULT");
    EXPECT_EQ(a.status.error_details().find("slot 5") != std::string::npos, debug);
  }
}

TEST(ApiErrors, TheDeadlineReachesTheWorkerAndEndsTheRequest) {
  ApiServer server({.api = {.deadline_margin = std::chrono::hours(1)}});  // a tenth of what is left
  server.targets[0]->hold_after = 2;
  const TimePoint before = SteadyClock::Get().Now();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
  const Answer a = Stream(&server, Spec(5), &context);
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(Reason(a.status), "DEADLINE");
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(a.status).metadata().at("stage"), "decode");
  EXPECT_LT(server.targets[0]->LastRequest().deadline, before + std::chrono::seconds(3));
  EXPECT_TRUE(Eventually([&] { return server.targets[0]->num_requests() == 0; }));
  ASSERT_TRUE(Eventually([&] { return server.probe.ends().size() == 1; }));
  EXPECT_EQ(server.probe.ends()[0].finish, FinishReason::kDeadline);
}

TEST(ApiErrors, ACancelFreesTheWorker) {
  ApiServer server;
  server.targets[0]->hold_after = 1;
  Running run(&server, Spec(5));
  ASSERT_TRUE(Eventually([&] { return server.targets[0]->num_requests() == 1; }));
  run.context.TryCancel();
  EXPECT_EQ(run.Get().status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return server.targets[0]->num_requests() == 0; }));
  EXPECT_EQ(server.targets[0]->cancelled, 1);
  ASSERT_TRUE(Eventually([&] { return server.probe.ends().size() == 1; }));
  EXPECT_EQ(server.probe.ends()[0].finish, FinishReason::kCancelled);
}

TEST(ApiErrors, ACancelOfAUnaryCallFreesTheWorker) {
  ApiServer server;
  server.targets[0]->hold_after = 1;
  grpc::ClientContext context;
  std::thread canceller([&] {
    EXPECT_TRUE(Eventually([&] { return server.targets[0]->num_requests() == 1; }));
    context.TryCancel();
  });
  v1::GenerateTextRequest request;
  *request.mutable_generation() = Spec(5);
  v1::GenerateTextResponse response;
  EXPECT_EQ(server.inference->GenerateText(&context, request, &response).error_code(),
            grpc::StatusCode::CANCELLED);
  canceller.join();
  EXPECT_TRUE(Eventually([&] { return server.targets[0]->num_requests() == 0; }));
}

TEST(ApiErrors, DuplicateRequestId) {
  ApiServer server;
  server.targets[0]->hold_after = 1;
  v1::GenerationSpec spec = Spec(5);
  spec.set_request_id("twice");
  Running first(&server, spec);
  ASSERT_TRUE(Eventually([&] { return server.targets[0]->submitted == 1; }));
  const Answer a = Stream(&server, spec);
  EXPECT_EQ(a.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(Reason(a.status), "DUPLICATE_REQUEST_ID");
  server.targets[0]->hold_after = INT32_MAX;
  EXPECT_TRUE(first.Get().status.ok());
  EXPECT_TRUE(Stream(&server, spec).status.ok()) << "free again";
}

// Token ids that take many bytes, so that the transport's own buffers fill.
v1::GenerationSpec Wide(int32_t max_tokens) {
  v1::GenerationSpec spec = Spec(max_tokens);
  spec.mutable_sampling()->set_logprobs(true);
  spec.mutable_sampling()->set_top_logprobs(20);
  spec.mutable_sampling()->set_sample_count(16);
  return spec;
}

// A client that takes no more than 64 KiB ahead of its reads.
std::unique_ptr<v1::InferenceService::Stub> NarrowClient(const ApiServer& server) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1 << 16);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return v1::InferenceService::NewStub(
      grpc::CreateCustomChannel(server.address, grpc::InsecureChannelCredentials(), arguments));
}

TEST(ApiErrors, AClientThatDoesNotReadLosesItsStreamOnly) {
  ApiServer server;
  server.targets[0]->burst = 16;
  v1::StreamGenerateTextRequest request;
  *request.mutable_generation() = Wide(4000);
  const auto client = NarrowClient(server);
  grpc::ClientContext context;
  auto reader = client->StreamGenerateText(&context, request);
  ASSERT_TRUE(Eventually([&] { return server.targets[0]->cancelled == 1; }));
  EXPECT_TRUE(Stream(&server, Spec(20)).status.ok());
  Answer a;
  v1::StreamGenerateTextResponse event;
  while (reader->Read(&event)) Take(event, &a);
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(a.misplaced, 0) << "what came can be resumed";
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Reason(status), "CLIENT_TOO_SLOW");
}

TEST(ApiErrors, AClientThatNeverReadsIsDropped) {
  ApiServer server({.api = {.slow_client_grace = std::chrono::milliseconds(20)}});
  server.targets[0]->burst = 16;
  v1::StreamGenerateTextRequest request;
  *request.mutable_generation() = Wide(4000);
  const auto client = NarrowClient(server);
  grpc::ClientContext context;
  auto reader = client->StreamGenerateText(&context, request);
  ASSERT_TRUE(Eventually([&] { return server.targets[0]->cancelled == 1; }));
  // Nothing is left at the server: it can stop without the client's help.
  server.Shutdown(std::chrono::seconds(20));
  v1::StreamGenerateTextResponse event;
  while (reader->Read(&event)) continue;
  EXPECT_FALSE(reader->Finish().ok());
}

// The request may be over before its abort gets through: that is no success.
TEST(ApiErrors, ATooSlowClientNeverSeesAGapAsSuccess) {
  ApiServer server({.api = {.max_outbox_tokens = 1}});
  for (int i = 0; i < 50; ++i) {
    server.targets[0]->burst = 1 + i % 7;
    const Answer a = Stream(&server, Spec(60, 1));
    EXPECT_EQ(a.misplaced, 0);
    if (a.status.ok()) {
      EXPECT_EQ(a.samples[0].token_ids_size(), 60);
    } else {
      EXPECT_EQ(Reason(a.status), "CLIENT_TOO_SLOW");
    }
  }
}

TEST(ApiErrors, AnAnswerThatIsTooLongForOneMessage) {
  ApiServer server({.api = {.max_answer_bytes = 1000}});
  v1::GenerateTextRequest request;
  *request.mutable_generation() = Spec(2000);
  v1::GenerateTextResponse response;
  grpc::ClientContext context;
  const grpc::Status status = server.inference->GenerateText(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("StreamGenerateText"));
  EXPECT_TRUE(Eventually([&] { return server.targets[0]->num_requests() == 0; }));
}

TEST(ApiErrors, WordsOfClientsAreCutToFitHeaders) {
  ApiServer server;
  v1::GetModelRequest request;
  for (int i = 0; i < 20000; ++i) request.mutable_name()->append("語");
  v1::GetModelResponse response;
  grpc::ClientContext context;
  const grpc::Status status = server.inference->GetModel(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_LT(status.error_details().size(), 4000u);
}

TEST(ApiErrors, TextCallsNameTheirFields) {
  ApiServer server;
  v1::DetokenizeTokensRequest ids;
  ids.add_token_ids(testing::kVocab);
  v1::DetokenizeTokensResponse text;
  grpc::ClientContext first;
  EXPECT_EQ(
      DetailOf<google::rpc::BadRequest>(server.inference->DetokenizeTokens(&first, ids, &text))
          .field_violations(0)
          .field(),
      "token_ids");
  for (const char* model : {"", "n"}) {
    server.directory.SetMembers({testing::Target("a:1", "m"), testing::Target("b:1", "n")});
    v1::TokenizeTextRequest request;
    request.set_model(model);
    v1::TokenizeTextResponse response;
    grpc::ClientContext context;
    EXPECT_EQ(DetailOf<google::rpc::BadRequest>(
                  server.inference->TokenizeText(&context, request, &response))
                  .field_violations(0)
                  .field(),
              *model ? "text" : "model");
  }
  for (const int32_t size : {-1, 1001}) {
    v1::ListModelsRequest request;
    request.set_page_size(size);
    v1::ListModelsResponse response;
    grpc::ClientContext context;
    EXPECT_EQ(DetailOf<google::rpc::BadRequest>(
                  server.inference->ListModels(&context, request, &response))
                  .field_violations(0)
                  .field(),
              "page_size");
  }
  v1::ListModelsRequest request;
  request.set_page_token("%%%");
  v1::ListModelsResponse response;
  grpc::ClientContext context;
  EXPECT_EQ(
      DetailOf<google::rpc::BadRequest>(server.inference->ListModels(&context, request, &response))
          .field_violations(0)
          .field(),
      "page_token");
}

}  // namespace
}  // namespace paceline

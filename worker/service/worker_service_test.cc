// The worker's service over real gRPC on a free port, before an engine with a hash model.
#include "worker/service/worker_service.h"

#include <cstdlib>
#include <map>
#include <random>
#include <thread>

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include "common/check.h"
#include "common/rpc/channel.h"
#include "common/rpc/error.h"
#include "common/rpc/generation_proto.h"
#include "common/rpc/rpc_server.h"
#include "tests/sim/hash_runner.h"

namespace paceline {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using worker::v1::OpenStreamRequest;
using worker::v1::OpenStreamResponse;

constexpr Duration kPatience = std::chrono::seconds(20);

template <typename Done>
bool Eventually(Done done) {
  const TimePoint end = SteadyClock::Get().Now() + kPatience;
  while (!done()) {
    if (SteadyClock::Get().Now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// A worker process without the process.
class Worker {
 public:
  explicit Worker(bool load = true) : state_("target", "hash") {
    auto server =
        RpcServer::Start("127.0.0.1:0", {{"paceline.worker.v1.WorkerService", &service_}});
    CHECK(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
    if (load) Load();
  }
  ~Worker() {
    feed_.Stop();
    service_.Stop();
    server_->Shutdown(std::chrono::seconds(1));
    if (loop_.joinable()) {
      engine_->Stop();
      loop_.join();
    }
  }

  void Load() {
    EngineOptions options;
    options.max_waiting = 16;
    auto runner = std::make_unique<HashRunner>(HashRunnerOptions{.model = model_.options()});
    engine_ = std::make_unique<Engine>(options, std::move(runner), nullptr, SteadyClock::Get(),
                                       nullptr, service_.Sink());
    state_.SetLoaded(engine_->runner_info(), "tok");
    feed_.SetSource([this](worker::v1::WatchStatusResponse* status) {
      const EngineSnapshot s = engine_->Snapshot();
      status->set_running(s.running);
      status->set_prefix_epoch(s.prefix_epoch);
      status->mutable_prefix_chunks()->Assign(s.prefix_chunks.begin(), s.prefix_chunks.end());
    });
    service_.Serve(engine_.get());
    state_.SetReady();
  }
  void Run() {
    loop_ = std::thread([this] { CHECK(engine_->Run().ok()); });
  }

  std::unique_ptr<worker::v1::WorkerService::Stub> NewStub() {
    return worker::v1::WorkerService::NewStub(NewChannel(server_->address()));
  }
  std::vector<TokenId> Expected(const GenerationRequest& request, int32_t sample) const {
    return model_.Generate(request.prompt, request.sampling, sample);
  }

  HashModel model_{HashModelOptions{.seed = 5}};
  ProcessState state_;
  StatusFeed feed_{&state_};
  std::atomic<int> drains_ = 0;
  WorkerServiceImpl service_{&state_, &feed_, [this] {
                               ++drains_;
                               engine_->StartDrain();
                             }};
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<Engine> engine_;
  std::thread loop_;
};

// A router's end of one stream, read by whoever waits for something.
class Router {
 public:
  explicit Router(Worker* worker)
      : stub_(worker->NewStub()), stream_(stub_->OpenStream(&context_)) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  }
  ~Router() {
    context_.TryCancel();
    while (stream_->Read(&frame_)) {
    }
    if (!ended_) stream_->Finish();
  }

  static void Add(uint64_t handle, const GenerationRequest& request, OpenStreamRequest* frame) {
    ToProto(handle, request, SteadyClock::Get().Now(), frame->add_submits());
  }
  bool Submit(uint64_t handle, const GenerationRequest& request) {
    OpenStreamRequest frame;
    Add(handle, request, &frame);
    return stream_->Write(frame);
  }
  bool Cancel(uint64_t handle, bool deadline = false) {
    OpenStreamRequest frame;
    auto* cancel = frame.add_cancels();
    cancel->set_handle(handle);
    cancel->set_deadline(deadline);
    return stream_->Write(frame);
  }
  // The next frame; its contents are noted too.
  bool Read() {
    if (!stream_->Read(&frame_)) return false;
    for (const auto& delta : frame_.deltas()) {
      auto& tokens = tokens_[{delta.handle(), delta.sample()}];
      EXPECT_EQ(delta.first_index(), static_cast<int32_t>(tokens.size()));
      tokens.insert(tokens.end(), delta.tokens().begin(), delta.tokens().end());
    }
    for (const auto& finished : frame_.finished()) {
      absl::Status status;
      const auto usage = FromProto(finished, &status);
      EXPECT_TRUE(usage.ok()) << usage.status();
      EXPECT_TRUE(finished_.emplace(finished.handle(), status).second) << "finished twice";
      usage_[finished.handle()] = *usage;
    }
    return true;
  }
  absl::Status AwaitFinished(uint64_t handle) {
    while (!finished_.contains(handle)) {
      if (!Read()) return absl::DataLossError("the stream ended");
    }
    return finished_[handle];
  }
  grpc::Status End() {
    while (Read()) {
    }
    ended_ = true;
    return stream_->Finish();
  }

  grpc::ClientContext context_;
  std::unique_ptr<worker::v1::WorkerService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<OpenStreamRequest, OpenStreamResponse>> stream_;
  OpenStreamResponse frame_;
  std::map<std::pair<uint64_t, int32_t>, std::vector<TokenId>> tokens_;
  std::map<uint64_t, absl::Status> finished_;
  std::map<uint64_t, GenerationUsage> usage_;
  bool ended_ = false;
};

GenerationRequest NewRequest(uint64_t seed, int32_t max_tokens = 20) {
  GenerationRequest request;
  request.request_id = "r" + std::to_string(seed);
  for (int i = 0; i < 10; ++i) request.prompt.push_back(static_cast<TokenId>(1 + (seed + i) % 90));
  request.sampling.seed = seed;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

TEST(WorkerServiceTest, StreamsTheModelsTokensToSeveralRouters) {
  Worker worker;
  worker.Run();
  Router a(&worker), b(&worker);
  std::vector<GenerationRequest> requests;
  // Both routers use the same handles.
  for (uint64_t i = 0; i < 6; ++i) {
    requests.push_back(NewRequest(i));
    requests.back().num_samples = 1 + i % 3;
    (i % 2 ? a : b).Submit(i / 2, requests.back());
  }
  for (uint64_t i = 0; i < 6; ++i) {
    Router& router = i % 2 ? a : b;
    ASSERT_TRUE(router.AwaitFinished(i / 2).ok());
    for (int32_t s = 0; s < requests[i].num_samples; ++s) {
      EXPECT_EQ((router.tokens_[{i / 2, s}]), worker.Expected(requests[i], s));
    }
    EXPECT_EQ(router.usage_[i / 2].prompt_tokens, 10);
    EXPECT_EQ(router.usage_[i / 2].output_tokens, 20 * requests[i].num_samples);
  }
  EXPECT_EQ(worker.service_.num_requests(), 0u);
}

TEST(WorkerServiceTest, AStepIsOneFramePerRouter) {
  Worker worker;
  Router a(&worker), b(&worker);
  OpenStreamRequest frame;
  for (uint64_t i = 0; i < 5; ++i) Router::Add(i, NewRequest(i), &frame);
  ASSERT_TRUE(a.stream_->Write(frame));
  ASSERT_TRUE(b.Submit(0, NewRequest(9)));
  ASSERT_TRUE(Eventually([&] { return worker.service_.num_requests() == 6; }));
  ASSERT_TRUE(*worker.engine_->Step());  // all prompts fit one step
  for (int step = 0; step < 5; ++step) {
    ASSERT_TRUE(a.Read());
    EXPECT_EQ(a.frame_.deltas_size(), 5);
    ASSERT_TRUE(b.Read());
    EXPECT_EQ(b.frame_.deltas_size(), 1);
    ASSERT_TRUE(*worker.engine_->Step());
  }
}

TEST(WorkerServiceTest, ResumesBehindWhatWasEmitted) {
  Worker worker;
  worker.Run();
  Router router(&worker);
  GenerationRequest request = NewRequest(3);
  const auto expected = worker.Expected(request, 0);
  request.resumed = {{std::vector<TokenId>(expected.begin(), expected.begin() + 7)}};
  router.tokens_[{1, 0}] = request.resumed[0].emitted;
  router.Submit(1, request);
  ASSERT_TRUE(router.AwaitFinished(1).ok());
  EXPECT_EQ((router.tokens_[{1, 0}]), expected);
}

TEST(WorkerServiceTest, CancelEndsARequestByItsCause) {
  Worker worker;
  Router router(&worker);
  router.Submit(1, NewRequest(1, 1000));
  router.Submit(2, NewRequest(2, 1000));
  ASSERT_TRUE(Eventually([&] { return worker.service_.num_requests() == 2; }));
  ASSERT_TRUE(worker.engine_->Step().ok());
  worker.Run();
  router.Cancel(99);  // unknown: has finished meanwhile, for all the worker knows
  router.Cancel(1);
  router.Cancel(2, /*deadline=*/true);
  EXPECT_EQ(router.AwaitFinished(1).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(router.AwaitFinished(2).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(WorkerServiceTest, ALostStreamCancelsItsRequestsOnly) {
  Worker worker;
  Router survivor(&worker);
  const GenerationRequest kept = NewRequest(7, 40);
  survivor.Submit(1, kept);
  {
    Router lost(&worker);
    for (uint64_t i = 0; i < 4; ++i) lost.Submit(i, NewRequest(i, 3000));
    ASSERT_TRUE(Eventually([&] { return worker.service_.num_requests() == 5; }));
    ASSERT_TRUE(worker.engine_->Step().ok());
  }
  worker.Run();
  ASSERT_TRUE(survivor.AwaitFinished(1).ok());
  EXPECT_EQ((survivor.tokens_[{1, 0}]), worker.Expected(kept, 0));
  EXPECT_TRUE(Eventually([&] {
    return worker.service_.num_requests() == 0 && worker.engine_->Snapshot().running == 0;
  }));
  EXPECT_LT(worker.engine_->Snapshot().steps, 500u) << "the lost requests ran on";
}

TEST(WorkerServiceTest, AHalfClosedStreamIsALostOne) {
  Worker worker;
  Router router(&worker);
  router.Submit(1, NewRequest(1, 3000));
  ASSERT_TRUE(Eventually([&] { return worker.service_.num_requests() == 1; }));
  worker.Run();
  router.stream_->WritesDone();
  EXPECT_TRUE(router.End().ok());
  EXPECT_TRUE(Eventually([&] { return worker.service_.num_requests() == 0; }));
}

// --- What a broken or hostile router may send ---

TEST(WorkerServiceTest, BadRequestsFailAlone) {
  Worker worker;
  worker.Run();
  Router router(&worker);
  OpenStreamRequest frame;
  frame.add_submits()->set_handle(1);  // nothing else in it
  GenerationRequest bad = NewRequest(2);
  bad.prompt[3] = -7;
  Router::Add(2, bad, &frame);
  bad.prompt[3] = 1 << 30;
  Router::Add(3, bad, &frame);
  bad = NewRequest(4);
  bad.num_samples = 1 << 30;
  Router::Add(4, bad, &frame);
  bad = NewRequest(5, std::numeric_limits<int32_t>::max());
  Router::Add(5, bad, &frame);
  bad = NewRequest(6);
  bad.sampling.temperature = std::numeric_limits<float>::quiet_NaN();
  Router::Add(6, bad, &frame);
  bad = NewRequest(7);
  bad.prompt.clear();
  Router::Add(7, bad, &frame);
  bad = NewRequest(8);
  bad.resumed.resize(9);
  Router::Add(8, bad, &frame);
  const GenerationRequest good = NewRequest(9);
  Router::Add(9, good, &frame);
  ASSERT_TRUE(router.stream_->Write(frame));
  for (uint64_t handle = 1; handle <= 8; ++handle) {
    EXPECT_EQ(router.AwaitFinished(handle).code(), absl::StatusCode::kInvalidArgument) << handle;
  }
  EXPECT_TRUE(router.AwaitFinished(9).ok());
  EXPECT_EQ((router.tokens_[{9, 0}]), worker.Expected(good, 0));
  EXPECT_EQ(worker.service_.num_requests(), 0u);
}

// Frames that parse, with bytes changed at random: the worker answers or ends the stream, and goes
// on serving.
TEST(WorkerServiceTest, MutatedFramesNeverHurtTheWorker) {
  const char* replay = std::getenv("PACELINE_TEST_SEED");
  const uint64_t seed = replay ? std::strtoull(replay, nullptr, 10) : std::random_device{}();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  Worker worker;
  worker.Run();
  const GenerationRequest good = NewRequest(1, 5);
  for (int round = 0; round < 100; ++round) {
    Router hostile(&worker);
    for (int i = 0; i < 10; ++i) {
      OpenStreamRequest frame;
      GenerationRequest request = NewRequest(random(), 5);
      request.resumed = {{{1, 2}, FinishReason::kNone}};
      request.sampling.logit_bias = {{3, 1.0f}};
      request.sampling.stop_token_ids = {9};
      Router::Add(i, request, &frame);
      frame.add_cancels()->set_handle(random() % 10);
      std::string bytes = frame.SerializeAsString();
      for (int k = 1 + random() % 4; k > 0; --k) bytes[random() % bytes.size()] = random();
      if (!frame.ParseFromString(bytes) || !hostile.stream_->Write(frame)) continue;
    }
    if (round % 10 != 0) continue;
    Router router(&worker);
    router.Submit(1, good);
    // A queue full of nonsense is a good reason; a moment later there is room.
    while (router.AwaitFinished(1).code() == absl::StatusCode::kResourceExhausted) {
      router.finished_.clear();
      router.Submit(1, good);
    }
    ASSERT_TRUE(router.finished_[1].ok()) << router.finished_[1];
    EXPECT_EQ((router.tokens_[{1, 0}]), worker.Expected(good, 0));
  }
  EXPECT_TRUE(Eventually([&] { return worker.service_.num_requests() == 0; }));
}

TEST(WorkerServiceTest, AHandleUsedTwiceEndsTheStream) {
  Worker worker;
  Router router(&worker);
  router.Submit(1, NewRequest(1));
  router.Submit(1, NewRequest(2));
  const grpc::Status status = router.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("handle 1 is in flight"));
  worker.Run();
  EXPECT_TRUE(Eventually([&] { return worker.service_.num_requests() == 0; }));
}

TEST(WorkerServiceTest, AHandleIsFreeOnceItsRequestHasFinished) {
  Worker worker;
  worker.Run();
  Router router(&worker);
  router.Submit(1, NewRequest(1));
  ASSERT_TRUE(router.AwaitFinished(1).ok());
  router.finished_.clear();
  router.tokens_.clear();
  router.Submit(1, NewRequest(2));
  EXPECT_TRUE(router.AwaitFinished(1).ok());
}

TEST(WorkerServiceTest, AFullQueueIsResourceExhausted) {
  Worker worker;
  Router router(&worker);
  OpenStreamRequest frame;
  for (uint64_t i = 0; i < 17; ++i) Router::Add(i, NewRequest(i), &frame);
  router.stream_->Write(frame);
  EXPECT_EQ(router.AwaitFinished(16).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(worker.service_.num_requests(), 16u);
}

// --- Loading, draining, status, sessions ---

TEST(WorkerServiceTest, BeforeTheModelIsLoadedRequestsAreRefusedAsLoading) {
  Worker worker(/*load=*/false);
  Router router(&worker);
  router.Submit(1, NewRequest(1));
  const absl::Status status = router.AwaitFinished(1);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ErrorReason(status), "MODEL_LOADING");

  grpc::ClientContext context;
  worker::v1::GetInfoResponse info;
  const grpc::Status got = worker.NewStub()->GetInfo(&context, {}, &info);
  EXPECT_EQ(got.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ErrorReason(got), "MODEL_LOADING");

  worker.Load();
  worker.Run();
  router.finished_.clear();
  router.Submit(1, NewRequest(1));
  EXPECT_TRUE(router.AwaitFinished(1).ok());
}

TEST(WorkerServiceTest, InfoNamesModelAndFingerprints) {
  Worker worker;
  grpc::ClientContext context;
  worker::v1::GetInfoResponse response;
  ASSERT_TRUE(worker.NewStub()->GetInfo(&context, {}, &response).ok());
  const auto& info = response.info();
  EXPECT_NE(info.incarnation(), 0u);
  EXPECT_EQ(info.role(), "target");
  EXPECT_EQ(info.model(), "hash");
  EXPECT_EQ(info.tokenizer_fingerprint(), "tok");
  EXPECT_EQ(info.vocab_size(), 128);
  EXPECT_EQ(info.sampler_version(), kSamplerVersion);
  EXPECT_EQ(info.block_size(), 16);
}

TEST(WorkerServiceTest, WatchersSeePrefixesAndDrain) {
  Worker worker;
  worker.Run();
  grpc::ClientContext context;
  auto stub = worker.NewStub();
  auto reader = stub->WatchStatus(&context, {});
  worker::v1::WatchStatusResponse report;
  ASSERT_TRUE(reader->Read(&report));
  EXPECT_TRUE(report.ready());
  EXPECT_FALSE(report.draining());
  EXPECT_TRUE(report.has_prefixes());
  EXPECT_EQ(report.prefix_chunks_size(), 0);
  EXPECT_EQ(report.info().model(), "hash");

  Router router(&worker);
  router.Submit(1, NewRequest(1, 200));
  ASSERT_TRUE(router.AwaitFinished(1).ok());
  while (report.prefix_chunks_size() < 3) ASSERT_TRUE(reader->Read(&report));

  grpc::ClientContext drain_context;
  worker::v1::DrainResponse drained;
  ASSERT_TRUE(stub->Drain(&drain_context, {}, &drained).ok());
  EXPECT_EQ(worker.drains_, 1);
  // Prefixes that have not changed are not sent again.
  while (!report.draining()) ASSERT_TRUE(reader->Read(&report));
  EXPECT_FALSE(report.has_prefixes());
  EXPECT_EQ(report.prefix_chunks_size(), 0);
  router.Submit(2, NewRequest(2));
  EXPECT_EQ(router.AwaitFinished(2).code(), absl::StatusCode::kUnavailable);
  context.TryCancel();
}

TEST(WorkerServiceTest, SessionsAreListedAndDropped) {
  Worker worker;
  worker.Run();
  Router router(&worker);
  GenerationRequest request = NewRequest(1, 100);
  request.session_id = "s-1";
  router.Submit(1, request);
  ASSERT_TRUE(router.AwaitFinished(1).ok());
  auto stub = worker.NewStub();
  const auto list = [&] {
    grpc::ClientContext context;
    worker::v1::ListSessionsResponse response;
    EXPECT_TRUE(stub->ListSessions(&context, {}, &response).ok());
    return response;
  };
  ASSERT_TRUE(Eventually([&] { return list().sessions_size() == 1; }));
  const auto sessions = list();
  EXPECT_EQ(sessions.sessions(0).session_id(), "s-1");
  EXPECT_GT(sessions.sessions(0).blocks(), 4);
  EXPECT_GT(sessions.sessions(0).time_left().seconds(), 0);

  worker::v1::DeleteSessionResponse deleted;
  worker::v1::DeleteSessionRequest which;
  grpc::ClientContext empty_context;
  EXPECT_EQ(stub->DeleteSession(&empty_context, which, &deleted).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  which.set_session_id("s-1");
  grpc::ClientContext context;
  ASSERT_TRUE(stub->DeleteSession(&context, which, &deleted).ok());
  EXPECT_TRUE(Eventually([&] { return list().sessions_size() == 0; }));
}

TEST(WorkerServiceTest, StopEndsStreamsBehindTheirLastFrames) {
  auto worker = std::make_unique<Worker>();
  worker->Run();
  Router router(worker.get());
  router.Submit(1, NewRequest(1));
  ASSERT_TRUE(router.AwaitFinished(1).ok());
  worker->service_.Stop();
  EXPECT_EQ(router.End().error_code(), grpc::StatusCode::UNAVAILABLE);
  Router late(worker.get());
  EXPECT_EQ(late.End().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(WorkerServerTest, ATakenPortIsAnErrorByName) {
  Worker worker;
  WorkerServiceImpl other(&worker.state_, &worker.feed_, [] {});
  const auto server =
      RpcServer::Start(worker.server_->address(), {{"paceline.worker.v1.WorkerService", &other}});
  ASSERT_FALSE(server.ok());
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("--listen"));
}

}  // namespace
}  // namespace paceline

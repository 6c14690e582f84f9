// The router's process: its flags, and the real binary before a hash worker.
#include "router/router_process.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <fstream>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/bench/http_get.h"
#include "cli/child_process.h"
#include "common/check.h"
#include "common/rpc/channel.h"
#include "common/rpc/error.h"
#include "paceline/v1/cluster.grpc.pb.h"
#include "paceline/v1/inference.grpc.pb.h"
#include "tests/sim/hash_worker.h"

namespace paceline {
namespace {

using ::testing::ElementsAre;
using testing::HashWorker;
using ::testing::HasSubstr;
using ::testing::Pair;

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

TEST(RouterFlags, ModelsHaveNamesAndFolders) {
  EXPECT_THAT(*ParseModels(""), ::testing::IsEmpty());
  EXPECT_THAT(*ParseModels("/models/llama/,small=/x/y,../odd=name"),
              ElementsAre(Pair("llama", "/models/llama/"), Pair("odd=name", "../odd=name"),
                          Pair("small", "/x/y")));
  for (const char* wrong : {"a=", "=dir", "x=/a,x=/b", "/a/m,/b/m"}) {
    EXPECT_THAT(std::string(ParseModels(wrong).status().message()), HasSubstr("--model")) << wrong;
  }
}

TEST(RouterFlags, WhatMakesNoSenseIsRefusedByName) {
  RouterFlags good;
  good.workers = "a:1,[::1]:2";
  EXPECT_TRUE(CheckFlags(good).ok());
  const auto refused = [&](auto change, const std::string& flag) {
    RouterFlags f = good;
    change(&f);
    const absl::Status status = CheckFlags(f);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << flag;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--" + flag));
  };
  refused([](RouterFlags* f) { f->workers = ""; }, "workers");
  refused([](RouterFlags* f) { f->workers = "a"; }, "workers");
  refused([](RouterFlags* f) { f->workers = "a:1,:2"; }, "workers");
  refused([](RouterFlags* f) { f->workers = "a:70000"; }, "workers");
  refused([](RouterFlags* f) { f->drafts = "a:0"; }, "drafts");
  refused([](RouterFlags* f) { f->model = "=x"; }, "model");
  refused([](RouterFlags* f) { f->max_in_flight = 0; }, "max-in-flight");
  refused([](RouterFlags* f) { f->max_attempts = 0; }, "max-attempts");
  refused([](RouterFlags* f) { f->max_outbox_tokens = -1; }, "max-outbox-tokens");
  refused([](RouterFlags* f) { f->text_threads = 0; }, "text-threads");
  refused([](RouterFlags* f) { f->callback_threads = 0; }, "callback-threads");
  refused([](RouterFlags* f) { f->max_queue = -1; }, "max-queue");
  refused([](RouterFlags* f) { f->max_text_queue = -1; }, "max-text-queue");
  refused([](RouterFlags* f) { f->max_replay_tokens = -1; }, "max-replay-tokens");
  refused([](RouterFlags* f) { f->drain_timeout = -1; }, "drain-timeout");
  refused([](RouterFlags* f) { f->queue_timeout = -1; }, "queue-timeout");
  refused([](RouterFlags* f) { f->failover_timeout = 1e300; }, "failover-timeout");
  refused([](RouterFlags* f) { f->silence_timeout = std::numeric_limits<double>::quiet_NaN(); },
          "silence-timeout");
}

// The exit status of the binary with these flags.
int ExitOf(std::vector<std::string> flags) {
  flags.insert(flags.begin(), PACELINE_ROUTER);
  auto process = ChildProcess::Start(flags);
  CHECK(process.ok()) << process.status().ToString();
  CHECK(process->Join(kPatience));
  return WEXITSTATUS(process->exit_status());
}

TEST(RouterBinary, ExitStatusesTellUsageFromFailure) {
  EXPECT_EQ(ExitOf({}), 2);
  EXPECT_EQ(ExitOf({"--nonsense=1"}), 2);
  EXPECT_EQ(ExitOf({"--workers=a:1", "more"}), 2);
  EXPECT_EQ(ExitOf({"--workers=a:1", "--model=/no/such/folder"}), 1);
  EXPECT_EQ(ExitOf({"--workers=a:1", "--listen=256.0.0.1:1"}), 1);
  EXPECT_EQ(ExitOf({"--workers=a:1", "--cluster-listen=256.0.0.1:1"}), 1);
  EXPECT_EQ(ExitOf({"--workers=a:1", "--metrics-listen=256.0.0.1:1"}), 1);
  EXPECT_EQ(ExitOf({"--workers=a:1", "--resume-key-file=/no/such/file"}), 1);
  EXPECT_EQ(ExitOf({"--workers=a:1", "--resume-key-file=/dev/null"}), 1);
}

// A running router and a client's stubs.
class RunningRouter {
 public:
  explicit RunningRouter(std::vector<std::string> flags) : process_(Start(std::move(flags))) {
    const auto address = process_.WaitForLine("router listening on ", kPatience);
    const auto metrics_address = process_.WaitForLine("metrics listening on ", kPatience);
    CHECK(address.ok() && metrics_address.ok());
    channel = NewChannel(*address);
    metrics = *metrics_address;
    inference = v1::InferenceService::NewStub(channel);
  }
  bool Ready() const { return HttpGet(metrics, "/readyz", std::chrono::seconds(5)).ok(); }

  ChildProcess process_;
  std::shared_ptr<grpc::Channel> channel;
  std::string metrics;
  std::unique_ptr<v1::InferenceService::Stub> inference;

 private:
  static ChildProcess Start(std::vector<std::string> flags) {
    flags.insert(flags.begin(), {PACELINE_ROUTER, "--log-level=warn"});
    auto process = ChildProcess::Start(flags);
    CHECK(process.ok()) << process.status().ToString();
    return *std::move(process);
  }
};

v1::StreamGenerateTextRequest Request(int32_t max_tokens) {
  v1::StreamGenerateTextRequest request;
  auto* spec = request.mutable_generation();
  for (int32_t i = 1; i <= 10; ++i) spec->mutable_token_ids()->add_ids(i);
  spec->mutable_sampling()->set_max_tokens(max_tokens);
  spec->mutable_sampling()->set_seed(7);
  spec->mutable_sampling()->set_temperature(1);
  spec->mutable_sampling()->set_ignore_eos(true);
  return request;
}

std::vector<TokenId> Expected(int32_t max_tokens) {
  SamplingParams params;
  params.max_tokens = max_tokens;
  params.seed = 7;
  params.temperature = 1;
  params.ignore_eos = true;
  return HashWorker::Model().Generate(std::vector<TokenId>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, params,
                                      0);
}

TEST(RouterBinary, ADrainFinishesWhatIsHeldAndRefusesTheRest) {
  HashWorker worker;
  RunningRouter router({"--workers=" + worker.address()});
  ASSERT_TRUE(Eventually([&] { return router.Ready(); }));
  grpc::ClientContext context;
  auto stream = router.inference->StreamGenerateText(&context, Request(50));
  ASSERT_TRUE(Eventually([&] { return worker.num_requests() == 1; }));
  for (int i = 0; i < 5; ++i) worker.Step();

  router.process_.Signal(SIGTERM);
  ASSERT_TRUE(Eventually([&] { return !router.Ready(); }));
  grpc::ClientContext late_context;
  v1::StreamGenerateTextResponse response;
  const grpc::Status late = [&] {
    auto refused = router.inference->StreamGenerateText(&late_context, Request(5));
    while (refused->Read(&response)) {
    }
    return refused->Finish();
  }();
  EXPECT_EQ(late.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ErrorReason(late), "DRAINING");

  worker.Run();
  std::vector<TokenId> tokens;
  while (stream->Read(&response)) {
    const auto& ids = response.delta().token_ids();
    tokens.insert(tokens.end(), ids.begin(), ids.end());
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(tokens, Expected(50));
  ASSERT_TRUE(router.process_.Join(kPatience));
  EXPECT_EQ(router.process_.exit_status(), 0);
}

TEST(RouterBinary, BehindTheDrainTimeoutRequestsEndAsDraining) {
  HashWorker worker;
  RunningRouter router({"--workers=" + worker.address(), "--drain-timeout=0"});
  ASSERT_TRUE(Eventually([&] { return router.Ready(); }));
  grpc::ClientContext context;
  auto stream = router.inference->StreamGenerateText(&context, Request(50));
  ASSERT_TRUE(Eventually([&] { return worker.num_requests() == 1; }));
  router.process_.Signal(SIGTERM);
  v1::StreamGenerateTextResponse response;
  while (stream->Read(&response)) {
  }
  EXPECT_EQ(ErrorReason(stream->Finish()), "DRAINING");
  ASSERT_TRUE(router.process_.Join(kPatience));
  EXPECT_EQ(router.process_.exit_status(), 0);
}

TEST(RouterBinary, ASecondSignalEndsItAtOnce) {
  HashWorker worker;
  RunningRouter router({"--workers=" + worker.address()});
  ASSERT_TRUE(Eventually([&] { return router.Ready(); }));
  grpc::ClientContext context;
  auto stream = router.inference->StreamGenerateText(&context, Request(50));
  ASSERT_TRUE(Eventually([&] { return worker.num_requests() == 1; }));
  router.process_.Signal(SIGINT);
  ASSERT_TRUE(Eventually([&] { return !router.Ready(); }));
  router.process_.Signal(SIGINT);
  ASSERT_TRUE(router.process_.Join(kPatience));
  EXPECT_EQ(WEXITSTATUS(router.process_.exit_status()), 1);
}

// Two routers with one key: what one began, the other resumes.
TEST(RouterBinary, ReplicasShareTheResumeKey) {
  char path[] = "/tmp/paceline-key-XXXXXX";
  const int file = mkstemp(path);
  ASSERT_GE(file, 0);
  close(file);
  std::ofstream(path) << "00112233445566778899aabbccddeeff\n";
  HashWorker worker;
  worker.Run();
  const std::string key = std::string("--resume-key-file=") + path;
  RunningRouter first({"--workers=" + worker.address(), key});
  RunningRouter second({"--workers=" + worker.address(), key});
  unlink(path);
  ASSERT_TRUE(Eventually([&] { return first.Ready() && second.Ready(); }));

  v1::ResumeGenerateTextRequest resume;
  *resume.mutable_generation() = Request(40).generation();
  {
    grpc::ClientContext context;
    auto stream = first.inference->StreamGenerateText(&context, Request(40));
    v1::StreamGenerateTextResponse response;
    auto* received = resume.add_received();
    while (received->token_ids_size() < 10 && stream->Read(&response)) {
      if (response.has_start()) resume.set_resume_token(response.start().resume_token());
      for (const int32_t id : response.delta().token_ids()) {
        if (received->token_ids_size() < 10) received->add_token_ids(id);
      }
    }
    first.process_.Signal(SIGKILL);
    while (stream->Read(&response)) {
    }
    stream->Finish();
  }
  grpc::ClientContext context;
  auto stream = second.inference->ResumeGenerateText(&context, resume);
  std::vector<TokenId> tokens(resume.received(0).token_ids().begin(),
                              resume.received(0).token_ids().end());
  v1::ResumeGenerateTextResponse response;
  while (stream->Read(&response)) {
    const auto& ids = response.delta().token_ids();
    tokens.insert(tokens.end(), ids.begin(), ids.end());
  }
  const grpc::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(tokens, Expected(40));
}

TEST(RouterBinary, TheClusterServiceMayListenApart) {
  HashWorker worker;
  RunningRouter router({"--workers=" + worker.address(), "--cluster-listen=127.0.0.1:0"});
  const auto apart = router.process_.WaitForLine("cluster listening on ", kPatience);
  ASSERT_TRUE(apart.ok()) << apart.status();
  const auto ask = [](const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    v1::GetClusterStatusResponse response;
    return v1::ClusterService::NewStub(channel)->GetClusterStatus(&context, {}, &response);
  };
  EXPECT_TRUE(ask(NewChannel(*apart)).ok());
  EXPECT_EQ(ask(router.channel).error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace paceline

// The draft service over real gRPC on a free port, before a draft engine with a hash model.
#include "worker/service/draft_service.h"

#include <thread>

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include "common/check.h"
#include "common/hash.h"
#include "common/rpc/channel.h"
#include "common/rpc/draft_proto.h"
#include "common/rpc/error.h"
#include "common/rpc/rpc_server.h"
#include "tests/sim/hash_runner.h"
#include "worker/service/draft_metrics.h"
#include "worker/service/draft_pairing.h"

namespace paceline {
namespace {

using draft::v1::OpenStreamRequest;
using draft::v1::OpenStreamResponse;
using ::testing::HasSubstr;

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

class Drafter {
 public:
  explicit Drafter(bool load = true) : state_("draft", "hash") {
    auto server = RpcServer::Start("127.0.0.1:0", {{"paceline.draft.v1.DraftService", &service_}});
    CHECK(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
    if (!load) return;
    engine_ = std::make_unique<DraftEngine>(
        DraftEngineOptions{},
        std::make_unique<HashRunner>(HashRunnerOptions{.model = model_.options()}),
        SteadyClock::Get());
    state_.SetLoaded(engine_->runner_info(), "tok");
    metrics_.SetEngine(engine_.get());
    service_.Serve(engine_.get());
    state_.SetReady();
    loop_ = std::thread([this] { CHECK(engine_->Run().ok()); });
  }
  ~Drafter() {
    service_.Stop();
    server_->Shutdown(std::chrono::seconds(1));
    if (!loop_.joinable()) return;
    engine_->Stop();
    loop_.join();
  }

  HashModel model_{HashModelOptions{.seed = 5}};
  ProcessState state_;
  DraftMetrics metrics_{"hash"};
  DraftServiceImpl service_{&state_, &metrics_};
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<DraftEngine> engine_;
  std::thread loop_;
};

class Target {
 public:
  explicit Target(Drafter* drafter)
      : stub_(draft::v1::DraftService::NewStub(NewChannel(drafter->server_->address()))),
        stream_((context_.set_deadline(std::chrono::system_clock::now() + kPatience),
                 stub_->OpenStream(&context_))) {}
  ~Target() {
    context_.TryCancel();
    while (stream_->Read(&frame_)) {
    }
    if (!ended_) stream_->Finish();
  }

  static OpenStreamRequest Greeting() {
    OpenStreamRequest request;
    request.mutable_hello()->set_incarnation(1);
    request.mutable_hello()->set_tokenizer_fingerprint("tok");
    request.mutable_hello()->set_sampler_version(kSamplerVersion);
    request.mutable_hello()->set_vocab_size(128);
    return request;
  }
  bool Greet() {
    stream_->Write(Greeting());
    return stream_->Read(&frame_) && frame_.has_hello();
  }
  bool Send(const TargetFrame& frame) {
    OpenStreamRequest request;
    ToProto(frame, &request);
    return stream_->Write(request);
  }
  grpc::Status End() {
    while (stream_->Read(&frame_)) {
    }
    ended_ = true;
    return stream_->Finish();
  }

  grpc::ClientContext context_;
  std::unique_ptr<draft::v1::DraftService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<OpenStreamRequest, OpenStreamResponse>> stream_;
  OpenStreamResponse frame_;
  bool ended_ = false;
};

DraftOpen NewOpen(uint64_t session) {
  DraftOpen open;
  open.id = {session, 1};
  open.sampling.seed = session;
  for (int i = 0; i < 20; ++i) open.tokens.push_back(1 + i);
  open.prompt_len = 20;
  open.max_len = 400;
  return open;
}

DraftCommit NewCommit(const DraftOpen& open, int32_t want) {
  return {.id = open.id,
          .base_len = static_cast<int32_t>(open.tokens.size()),
          .prefix_hash = HashTokens(open.tokens),
          .want_len = want};
}

TEST(DraftServiceTest, DraftsForSeveralTargets) {
  Drafter drafter;
  Target a(&drafter), b(&drafter);
  for (Target* target : {&a, &b}) {
    ASSERT_TRUE(target->Greet());
    EXPECT_EQ(target->frame_.hello().tokenizer_fingerprint(), "tok");
    const DraftOpen open = NewOpen(target == &a ? 3 : 4);
    TargetFrame frame;
    frame.opens = {open};
    frame.commits = {NewCommit(open, 4)};
    ASSERT_TRUE(target->Send(frame));
    DraftFrame got;
    while (got.proposals.empty()) {
      ASSERT_TRUE(target->stream_->Read(&target->frame_));
      got = FromProto(target->frame_);
      ASSERT_TRUE(got.nacks.empty());
    }
    const DraftProposal& proposal = got.proposals[0];
    EXPECT_EQ(proposal.id, open.id);
    EXPECT_EQ(proposal.base_len, 20);
    ASSERT_FALSE(proposal.branches.empty());
    const auto& tokens = proposal.branches[0].tokens;
    ASSERT_FALSE(tokens.empty());
    // The drafter's model is the target's here, so its chain is the truth.
    SamplingParams sampling = open.sampling;
    sampling.max_tokens = 50;
    const auto truth = drafter.model_.Generate(open.tokens, sampling, 0);
    for (size_t i = 0; i < std::min(tokens.size(), truth.size()); ++i) {
      EXPECT_EQ(tokens[i], truth[i]) << i;
    }
  }
}

TEST(DraftServiceTest, PingsAreAnswered) {
  Drafter drafter;
  Target target(&drafter);
  ASSERT_TRUE(target.Greet());
  OpenStreamRequest ping;
  ping.set_ping(1234);
  ASSERT_TRUE(target.stream_->Write(ping));
  do {
    ASSERT_TRUE(target.stream_->Read(&target.frame_));
  } while (target.frame_.pong() == 0);
  EXPECT_EQ(target.frame_.pong(), 1234u);
  EXPECT_FALSE(target.frame_.draining());
}

TEST(DraftServiceTest, ALostTargetLosesItsSessions) {
  Drafter drafter;
  {
    Target target(&drafter);
    ASSERT_TRUE(target.Greet());
    TargetFrame frame;
    for (uint64_t i = 0; i < 3; ++i) frame.opens.push_back(NewOpen(i));
    ASSERT_TRUE(target.Send(frame));
    ASSERT_TRUE(Eventually([&] { return drafter.engine_->load().sessions == 3; }));
    EXPECT_EQ(drafter.service_.num_streams(), 1u);
  }
  EXPECT_TRUE(Eventually([&] { return drafter.engine_->load().sessions == 0; }));
  EXPECT_TRUE(Eventually([&] { return drafter.service_.num_streams() == 0; }));
}

TEST(DraftServiceTest, DrainIsAnnouncedAtOnce) {
  Drafter drafter;
  Target target(&drafter);
  ASSERT_TRUE(target.Greet());
  drafter.state_.SetDraining();
  drafter.service_.AnnounceDrain();
  do {
    ASSERT_TRUE(target.stream_->Read(&target.frame_));
  } while (!target.frame_.draining());
}

// --- What a broken or hostile target may send ---

grpc::Status Refusal(const OpenStreamRequest& first) {
  Drafter drafter;
  Target target(&drafter);
  target.stream_->Write(first);
  return target.End();
}

TEST(DraftServiceTest, AFirstFrameWithoutHelloIsRefused) {
  const grpc::Status status = Refusal({});
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("no hello"));
}

TEST(DraftServiceTest, MalformedHellosAreRefused) {
  OpenStreamRequest first = Target::Greeting();
  first.mutable_hello()->set_incarnation(0);
  EXPECT_EQ(Refusal(first).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  first = Target::Greeting();
  first.mutable_hello()->set_vocab_size(-1);
  EXPECT_EQ(Refusal(first).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(DraftServiceTest, MismatchesAreRefusedByName) {
  OpenStreamRequest first = Target::Greeting();
  first.mutable_hello()->set_tokenizer_fingerprint("other");
  grpc::Status status = Refusal(first);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("tokenizer_fingerprint"));
  EXPECT_EQ(ErrorReason(status), "DRAFT_PAIRING_MISMATCH");
  first = Target::Greeting();
  first.mutable_hello()->set_sampler_version(kSamplerVersion + 1);
  status = Refusal(first);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("sampler_version"));
  // Padded vocabularies may differ.
  first = Target::Greeting();
  first.mutable_hello()->set_vocab_size(1000);
  Drafter drafter;
  Target target(&drafter);
  target.stream_->Write(first);
  EXPECT_TRUE(target.stream_->Read(&target.frame_));
}

TEST(DraftServiceTest, ASecondHelloEndsTheStream) {
  Drafter drafter;
  Target target(&drafter);
  ASSERT_TRUE(target.Greet());
  target.stream_->Write(Target::Greeting());
  EXPECT_EQ(target.End().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(DraftServiceTest, AMalformedPartCostsItsSessionOnly) {
  Drafter drafter;
  Target target(&drafter);
  ASSERT_TRUE(target.Greet());
  OpenStreamRequest request;
  TargetFrame frame;
  frame.opens = {NewOpen(1)};
  frame.commits = {NewCommit(frame.opens[0], 3)};
  ToProto(frame, &request);
  auto* odd = request.add_opens();
  *odd = request.opens(0);
  odd->set_session(2);
  odd->set_tokens("123");
  auto* huge = request.add_opens();
  *huge = request.opens(0);
  huge->set_session(3);
  const int32_t id = 1 << 30;
  huge->set_tokens(std::string(reinterpret_cast<const char*>(&id), 4));
  ASSERT_TRUE(target.stream_->Write(request));
  std::vector<uint64_t> refused;
  bool proposed = false;
  while (!proposed || refused.size() < 2) {
    ASSERT_TRUE(target.stream_->Read(&target.frame_));
    const DraftFrame got = FromProto(target.frame_);
    for (const DraftNack& nack : got.nacks) {
      EXPECT_EQ(nack.reason, DraftNackReason::kInvalid);
      refused.push_back(nack.id.session);
    }
    for (const DraftProposal& p : got.proposals) proposed |= p.id.session == 1;
  }
  EXPECT_THAT(refused, ::testing::UnorderedElementsAre(2, 3));
}

TEST(DraftServiceTest, BeforeTheModelIsLoadedTargetsAreRefusedAsLoading) {
  Drafter drafter(/*load=*/false);
  Target target(&drafter);
  target.stream_->Write(Target::Greeting());
  const grpc::Status status = target.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ErrorReason(status), "MODEL_LOADING");
}

}  // namespace
}  // namespace paceline

// The target's end of the draft stream, before a drafter that does as a test tells it.
#include "worker/service/grpc_draft_link.h"

#include <deque>
#include <random>
#include <thread>

#include <gmock/gmock.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include "common/check.h"
#include "common/rpc/channel.h"
#include "worker/service/draft_links.h"

namespace paceline {
namespace {

using draft::v1::OpenStreamRequest;
using draft::v1::OpenStreamResponse;
using ::testing::Contains;
using ::testing::HasSubstr;
using Stream = grpc::ServerReaderWriter<OpenStreamResponse, OpenStreamRequest>;

constexpr Duration kPatience = std::chrono::seconds(20);

draft::v1::Hello NewHello(const std::string& tokenizer = "tok", int sampler = kSamplerVersion) {
  draft::v1::Hello hello;
  hello.set_incarnation(77);
  hello.set_tokenizer_fingerprint(tokenizer);
  hello.set_sampler_version(sampler);
  hello.set_vocab_size(100);
  return hello;
}

// Answers the hello and then pings; everything else goes to on_frame.
class FakeDrafter final : public draft::v1::DraftService::Service {
 public:
  explicit FakeDrafter(int port = 0) {
    grpc::ServerBuilder builder;
    ConfigureServer(&builder, false);
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    CHECK(server_ != nullptr);
  }
  ~FakeDrafter() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  int port() const { return port_; }

  grpc::Status OpenStream(grpc::ServerContext*, Stream* stream) override {
    OpenStreamRequest request;
    if (!stream->Read(&request) || !request.has_hello()) return grpc::Status::CANCELLED;
    ++streams_;
    if (!refusal_.ok()) return refusal_;
    OpenStreamResponse response;
    *response.mutable_hello() = hello_;
    if (greets_) stream->Write(response);
    while (stream->Read(&request)) {
      if (hangs_up_) return grpc::Status::OK;
      if (stalls_) std::this_thread::sleep_for(std::chrono::seconds(1));
      response.Clear();
      response.set_draining(draining_);
      response.set_pong(request.ping());
      if (on_frame_) on_frame_(request, &response);
      stream->Write(response);
    }
    return grpc::Status::OK;
  }

  draft::v1::Hello hello_ = NewHello();
  grpc::Status refusal_;
  std::function<void(const OpenStreamRequest&, OpenStreamResponse*)> on_frame_;
  std::atomic<bool> greets_ = true, draining_ = false, hangs_up_ = false, stalls_ = false;
  std::atomic<int> streams_ = 0;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class LinkTest : public ::testing::Test {
 protected:
  void Open(const std::string& address) {
    GrpcDraftLinkOptions options;
    options.heartbeat = std::chrono::milliseconds(10);
    options.silence = std::chrono::milliseconds(300);
    options.greeting = std::chrono::seconds(1);
    link_ = std::make_unique<GrpcDraftLink>(
        address, NewHello(),
        [this](uint64_t incarnation, DraftFrame frame) {
          std::lock_guard lock(mutex_);
          frames_.emplace_back(incarnation, std::move(frame));
        },
        [this](Duration) { ++round_trips_; }, options);
  }
  template <typename Done>
  bool TickUntil(Done done) {
    const TimePoint end = SteadyClock::Get().Now() + kPatience;
    while (!done()) {
      if (SteadyClock::Get().Now() > end) return false;
      link_->Tick(SteadyClock::Get().Now());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }
  bool Up() const { return link_->status().state == DraftLinkState::kUp; }
  bool Down() const { return link_->status().state == DraftLinkState::kDown; }
  size_t NumFrames() {
    std::lock_guard lock(mutex_);
    return frames_.size();
  }

  std::mutex mutex_;
  std::vector<std::pair<uint64_t, DraftFrame>> frames_;
  std::atomic<int> round_trips_ = 0;
  std::unique_ptr<GrpcDraftLink> link_;
};

TEST_F(LinkTest, GreetsBeatsAndCarriesFrames) {
  FakeDrafter drafter;
  drafter.on_frame_ = [](const OpenStreamRequest& request, OpenStreamResponse* response) {
    for (const auto& commit : request.commits()) {
      auto* proposal = response->add_proposals();
      proposal->set_session(commit.session());
      proposal->set_kind(draft::v1::PROPOSAL_KIND_CHAIN);
      proposal->set_base_len(commit.base_len());
      proposal->add_branches();
    }
  };
  Open(drafter.address());
  EXPECT_TRUE(Down());
  EXPECT_FALSE(link_->Send(0, {}));
  ASSERT_TRUE(TickUntil([&] { return Up(); })) << link_->last_error();
  const uint64_t incarnation = link_->status().incarnation;
  TargetFrame frame;
  frame.commits.push_back({.id = {9, 1}, .base_len = 33});
  EXPECT_TRUE(link_->Send(incarnation, frame));
  EXPECT_FALSE(link_->Send(incarnation + 1, frame)) << "another stream's";
  ASSERT_TRUE(TickUntil([&] { return NumFrames() > 0; }));
  EXPECT_EQ(frames_[0].first, incarnation);
  EXPECT_EQ(frames_[0].second.proposals.at(0).id.session, 9u);
  EXPECT_EQ(frames_[0].second.proposals.at(0).base_len, 33);
  EXPECT_TRUE(TickUntil([&] { return round_trips_ >= 3; }));
  EXPECT_EQ(link_->name(), drafter.address());
}

TEST_F(LinkTest, ComesBackWhenTheDrafterDoes) {
  auto drafter = std::make_unique<FakeDrafter>();
  const int port = drafter->port();
  Open(drafter->address());
  ASSERT_TRUE(TickUntil([&] { return Up(); }));
  const uint64_t first = link_->status().incarnation;
  drafter.reset();
  ASSERT_TRUE(TickUntil([&] { return Down(); }));
  EXPECT_FALSE(link_->Send(first, {}));
  drafter = std::make_unique<FakeDrafter>(port);
  ASSERT_TRUE(TickUntil([&] { return Up(); })) << link_->last_error();
  EXPECT_GT(link_->status().incarnation, first);
  EXPECT_FALSE(link_->Send(first, {}));
  EXPECT_TRUE(link_->Send(link_->status().incarnation, {}));
}

TEST_F(LinkTest, ADrafterThatHangsUpIsTriedAgain) {
  FakeDrafter drafter;
  drafter.hangs_up_ = true;
  Open(drafter.address());
  EXPECT_TRUE(TickUntil([&] { return drafter.streams_ >= 3; }));
}

TEST_F(LinkTest, ASilentDrafterIsDown) {
  FakeDrafter drafter;
  Open(drafter.address());
  ASSERT_TRUE(TickUntil([&] { return Up(); }));
  drafter.stalls_ = true;
  ASSERT_TRUE(TickUntil([&] { return Down(); }));
  ASSERT_TRUE(TickUntil([&] { return !link_->last_error().empty(); }));
  EXPECT_THAT(link_->last_error(), HasSubstr("silent"));
}

TEST_F(LinkTest, ADrafterThatNeverGreetsIsGivenUp) {
  FakeDrafter drafter;
  drafter.greets_ = false;
  Open(drafter.address());
  ASSERT_TRUE(TickUntil([&] { return drafter.streams_ >= 2; }));
  EXPECT_TRUE(Down());
}

TEST_F(LinkTest, ADrainingDrafterStillWorks) {
  FakeDrafter drafter;
  Open(drafter.address());
  ASSERT_TRUE(TickUntil([&] { return Up(); }));
  drafter.draining_ = true;
  ASSERT_TRUE(TickUntil([&] { return link_->status().state == DraftLinkState::kDraining; }));
  EXPECT_TRUE(link_->Send(link_->status().incarnation, {}));
}

TEST_F(LinkTest, AnotherTokenizerIsRefusedByName) {
  FakeDrafter drafter;
  drafter.hello_ = NewHello("other");
  Open(drafter.address());
  ASSERT_TRUE(TickUntil([&] { return !link_->last_error().empty(); }));
  EXPECT_THAT(link_->last_error(), HasSubstr("tokenizer_fingerprint: \"tok\" here, \"other\""));
  EXPECT_TRUE(Down());
}

TEST_F(LinkTest, AnotherSamplerIsRefusedByName) {
  FakeDrafter drafter;
  drafter.hello_ = NewHello("tok", kSamplerVersion + 1);
  Open(drafter.address());
  ASSERT_TRUE(TickUntil([&] { return !link_->last_error().empty(); }));
  EXPECT_THAT(link_->last_error(), HasSubstr("sampler_version"));
}

TEST_F(LinkTest, AMalformedHelloIsRefused) {
  FakeDrafter drafter;
  drafter.hello_.set_vocab_size(-3);
  Open(drafter.address());
  ASSERT_TRUE(TickUntil([&] { return !link_->last_error().empty(); }));
  EXPECT_THAT(link_->last_error(), HasSubstr("malformed hello"));
}

TEST_F(LinkTest, TheDraftersOwnRefusalIsKept) {
  FakeDrafter drafter;
  drafter.refusal_ = grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "not you");
  Open(drafter.address());
  ASSERT_TRUE(TickUntil([&] { return !link_->last_error().empty(); }));
  EXPECT_EQ(link_->last_error(), "not you");
}

TEST_F(LinkTest, ClosesWhileFramesFly) {
  FakeDrafter drafter;
  Open(drafter.address());
  ASSERT_TRUE(TickUntil([&] { return Up(); }));
  std::atomic<bool> stop = false;
  std::thread sender([&] {
    while (!stop) link_->Send(link_->status().incarnation, {});
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  link_->Close();
  stop = true;
  sender.join();
  EXPECT_TRUE(Down());
  link_->Close();
}

// An address may vanish from the name server at the moment in which its stream is being opened.
TEST_F(LinkTest, ClosesWhileItOpens) {
  FakeDrafter drafter;
  constexpr int kRounds = 500;
  std::minstd_rand random{1};
  for (int round = 0; round < kRounds; ++round) {
    Open(drafter.address());
    std::atomic<bool> ready = false;
    std::thread ticker([&] {
      ready = true;
      link_->Tick(SteadyClock::Get().Now());
    });
    while (!ready) {
    }
    for (volatile int left = static_cast<int>(random() % 20'000); left > 0;) left = left - 1;
    link_->Close();
    ticker.join();
    ASSERT_TRUE(Down());
  }
}

TEST(ResolveAddressTest, KeepsNumbersAndRefusesNonsense) {
  EXPECT_EQ(*ResolveAddress("127.0.0.1:80"), std::vector<std::string>{"127.0.0.1:80"});
  EXPECT_EQ(*ResolveAddress("[::1]:80"), std::vector<std::string>{"[::1]:80"});
  EXPECT_THAT(*ResolveAddress("localhost:80"), Contains("127.0.0.1:80"));
  for (const char* bad : {"", ":", "host", "host:", ":80"}) {
    EXPECT_EQ(ResolveAddress(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace paceline

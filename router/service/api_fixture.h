// The public API on a free port, before a RouterLoop with fake targets.
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include "common/rpc/channel.h"
#include "common/rpc/error.h"
#include "router/service/cluster_service.h"
#include "router/service/fake_target.h"
#include "router/service/inference_service.h"
#include "router/service/router_test_parts.h"
#include "router/service/session_service.h"

namespace paceline::testing {

template <typename Done>
bool Eventually(Done done) {
  const TimePoint end = SteadyClock::Get().Now() + std::chrono::seconds(20);
  while (!done()) {
    if (SteadyClock::Get().Now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

class CountingProbe final : public RequestProbe {
 public:
  void RequestEnded(const RequestEnd& end) override {
    std::lock_guard lock(mutex_);
    ends_.push_back(end);
  }
  std::vector<RequestEnd> ends() const {
    std::lock_guard lock(mutex_);
    return ends_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<RequestEnd> ends_;
};

struct ApiSettings {
  RouterOptions router;
  ApiOptions api;
  TextExecutorOptions text;
  int targets = 1;
};

class ApiServer {
 public:
  explicit ApiServer(ApiSettings settings = {})
      : loop(settings.router, nullptr, SteadyClock::Get()), text(settings.text) {
    catalog.Add("m", {ByteTokenizer(), "tok"});
    std::vector<ClusterDirectory::Member> members;
    std::vector<WorkerAddress> addresses;
    for (int i = 0; i < settings.targets; ++i) {
      addresses.push_back({"t" + std::to_string(i) + ":1"});
      members.push_back(Target(addresses.back().address, "m"));
      targets.push_back(std::make_shared<FakeTarget>(&loop));
    }
    directory.SetMembers(members);
    loop.Relist(addresses, [this](WorkerId id, const WorkerAddress&) {
      auto target = targets.at(next_++);
      target->Connect(id, Snapshot());
      return target;
    });
    context_ = {.loop = &loop,
                .directory = &directory,
                .catalog = &catalog,
                .text = &text,
                .resume = &codec,
                .probe = &probe,
                .clock = &SteadyClock::Get(),
                .options = settings.api};
    inference_ = std::make_unique<InferenceServiceImpl>(context_);
    sessions_ = std::make_unique<SessionServiceImpl>(context_);
    cluster_ = std::make_unique<ClusterServiceImpl>(context_);
    grpc::ServerBuilder builder;
    ConfigureServer(&builder, false);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(inference_.get());
    builder.RegisterService(sessions_.get());
    builder.RegisterService(cluster_.get());
    server_ = builder.BuildAndStart();
    CHECK(server_ != nullptr);
    address = WithPort("127.0.0.1:0", port);
    channel = NewChannel(address);
    inference = v1::InferenceService::NewStub(channel);
    sessions = v1::SessionService::NewStub(channel);
    cluster = v1::ClusterService::NewStub(channel);
    // So that a request finds its worker at once.
    CHECK(Eventually([&] {
      bool serving = false;
      loop.Read([&](const RouterCore& core, TimePoint) { serving = core.Serving(); });
      return serving || targets.empty();
    }));
  }
  ~ApiServer() {
    Shutdown(std::chrono::seconds(1));
    for (auto& t : targets) t->Stop();
    loop.Stop();
  }

  // Calls that are not over after `limit` are cancelled.
  void Shutdown(Duration limit) {
    server_->Shutdown(std::chrono::system_clock::now() +
                      std::chrono::duration_cast<std::chrono::system_clock::duration>(limit));
  }

  static WorkerSnapshot Snapshot() {
    WorkerSnapshot s;
    s.model = "m";
    s.fingerprint = "cpu-x";
    s.tokenizer_fingerprint = "tok";
    s.max_context = kContext;
    s.vocab_size = kVocab;
    s.ready = true;
    s.num_blocks = s.free_blocks = 10000;
    s.block_size = 16;
    return s;
  }

  RouterLoop loop;
  FakeDirectory directory;
  ModelCatalog catalog;
  TextExecutor text;
  ResumeTokenCodec codec{SipKey{7}};
  CountingProbe probe;
  std::vector<std::shared_ptr<FakeTarget>> targets;
  std::string address;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::InferenceService::Stub> inference;
  std::unique_ptr<v1::SessionService::Stub> sessions;
  std::unique_ptr<v1::ClusterService::Stub> cluster;

 private:
  size_t next_ = 0;
  ApiContext context_;
  std::unique_ptr<InferenceServiceImpl> inference_;
  std::unique_ptr<SessionServiceImpl> sessions_;
  std::unique_ptr<ClusterServiceImpl> cluster_;
  std::unique_ptr<grpc::Server> server_;
};

// All of a stream.
struct Answer {
  std::vector<v1::GenerationStart> starts;
  std::vector<v1::SampleOutput> samples;
  std::vector<v1::GenerationSummary> summaries;
  std::map<int32_t, int32_t> next_index;
  int misplaced = 0;  // events out of order, deltas with a gap
  grpc::Status status;
};

template <typename Event>
void Take(const Event& event, Answer* a) {
  if (event.has_start()) {
    if (!a->starts.empty() || !a->samples.empty()) ++a->misplaced;
    a->starts.push_back(event.start());
  }
  if (event.has_summary()) a->summaries.push_back(event.summary());
  if (!event.has_delta()) return;
  const v1::SampleDelta& d = event.delta();
  if (a->starts.empty() || !a->summaries.empty()) ++a->misplaced;
  while (static_cast<int>(a->samples.size()) <= d.sample()) {
    a->samples.emplace_back().set_sample(static_cast<int32_t>(a->samples.size()) - 1);
  }
  const auto [next, first] = a->next_index.emplace(d.sample(), d.first_index());
  if (next->second != d.first_index()) ++a->misplaced;
  next->second += d.token_ids_size();
  v1::SampleOutput& s = a->samples[d.sample()];
  if (s.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) ++a->misplaced;
  s.mutable_text()->append(d.text());
  s.mutable_token_ids()->MergeFrom(d.token_ids());
  s.mutable_logprobs()->MergeFrom(d.logprobs());
  s.set_finish_reason(d.finish_reason());
}

inline Answer Stream(ApiServer* server, const v1::GenerationSpec& spec,
                     grpc::ClientContext* context) {
  v1::StreamGenerateTextRequest request;
  *request.mutable_generation() = spec;
  Answer answer;
  auto reader = server->inference->StreamGenerateText(context, request);
  v1::StreamGenerateTextResponse event;
  while (reader->Read(&event)) Take(event, &answer);
  answer.status = reader->Finish();
  return answer;
}
inline Answer Stream(ApiServer* server, const v1::GenerationSpec& spec) {
  grpc::ClientContext context;
  return Stream(server, spec, &context);
}

inline v1::GenerationSpec Spec(int32_t max_tokens, uint64_t seed = 0) {
  v1::GenerationSpec spec;
  spec.set_text("the prompt");
  spec.mutable_sampling()->set_max_tokens(max_tokens);
  spec.mutable_sampling()->set_seed(seed);
  return spec;
}

inline std::vector<int32_t> FakeTokens(uint64_t seed, int32_t sample, int32_t count) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < count; ++i) ids.push_back(FakeToken(seed, sample, i));
  return ids;
}

template <typename Detail>
Detail DetailOf(const grpc::Status& status) {
  google::rpc::Status rpc;
  Detail detail;
  EXPECT_TRUE(rpc.ParseFromString(status.error_details()));
  EXPECT_TRUE(FindDetail(rpc, &detail)) << rpc.DebugString();
  return detail;
}

}  // namespace paceline::testing

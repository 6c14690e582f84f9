// The load generator and the whole command over real gRPC, before an inference service that does as
// it is told.
#include "cli/bench/load_generator.h"

#include <gmock/gmock.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/bench/bench.h"
#include "cli/bench/test_files.h"
#include "common/check.h"
#include "common/rpc/channel.h"
#include "paceline/v1/inference.grpc.pb.h"

namespace paceline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Writer = grpc::ServerWriter<v1::StreamGenerateTextResponse>;
using Answer =
    std::function<grpc::Status(const v1::GenerationSpec&, grpc::ServerContext*, Writer*)>;

void WriteDelta(Writer* writer, int32_t first, std::vector<int32_t> ids,
                v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED) {
  v1::StreamGenerateTextResponse message;
  message.mutable_delta()->set_first_index(first);
  message.mutable_delta()->mutable_token_ids()->Assign(ids.begin(), ids.end());
  message.mutable_delta()->set_finish_reason(finish);
  writer->Write(message);
}

void WriteSummary(Writer* writer, int32_t output_tokens) {
  v1::StreamGenerateTextResponse message;
  v1::GenerationSummary* summary = message.mutable_summary();
  summary->mutable_usage()->set_output_token_count(output_tokens);
  summary->mutable_usage()->set_prompt_token_count(5);
  summary->mutable_usage()->set_drafted_token_count(4);
  summary->mutable_usage()->set_accepted_token_count(3);
  summary->mutable_timings()->mutable_queue()->set_nanos(1000);
  writer->Write(message);
}

// What a request's output is: a function of its seed.
int32_t TokenAt(const v1::GenerationSpec& spec, int32_t position) {
  return static_cast<int32_t>((spec.sampling().seed() >> 8) % 1000) + position;
}

// max_tokens tokens, two per message behind the first.
grpc::Status Good(const v1::GenerationSpec& spec, grpc::ServerContext*, Writer* writer) {
  v1::StreamGenerateTextResponse start;
  start.mutable_start()->set_seed(spec.sampling().seed());
  writer->Write(start);
  const int32_t count = spec.sampling().max_tokens();
  for (int32_t i = 0; i < count;) {
    std::vector<int32_t> ids;
    for (int32_t n = std::min(i == 0 ? 1 : 2, count - i); n > 0; --n) {
      ids.push_back(TokenAt(spec, i + static_cast<int32_t>(ids.size())));
    }
    const int32_t next = i + static_cast<int32_t>(ids.size());
    WriteDelta(writer, i, ids,
               next == count ? v1::FINISH_REASON_LENGTH : v1::FINISH_REASON_UNSPECIFIED);
    i = next;
  }
  WriteSummary(writer, count);
  return grpc::Status::OK;
}

class FakeInference final : public v1::InferenceService::Service {
 public:
  explicit FakeInference(Answer answer) : answer_(std::move(answer)) {
    grpc::ServerBuilder builder;
    ConfigureServer(&builder, /*reflection=*/false);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    CHECK(server_ != nullptr);
    address_ = WithPort("127.0.0.1:0", port);
  }
  ~FakeInference() { server_->Shutdown(); }

  const std::string& address() const { return address_; }
  int64_t calls() const { return calls_; }
  int64_t most_at_once() const { return most_; }

  grpc::Status StreamGenerateText(grpc::ServerContext* context,
                                  const v1::StreamGenerateTextRequest* request,
                                  Writer* writer) override {
    ++calls_;
    const int64_t now = ++at_once_;
    for (int64_t most = most_; now > most && !most_.compare_exchange_weak(most, now);) {
    }
    const grpc::Status status = answer_(request->generation(), context, writer);
    --at_once_;
    return status;
  }
  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    v1::Model* model = response->add_models();
    model->set_name("fake");
    model->set_context_length(1000);
    model->set_vocabulary_size(50);
    return grpc::Status::OK;
  }

 private:
  const Answer answer_;
  std::atomic<int64_t> calls_ = 0, at_once_ = 0, most_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

Workload SyntheticWorkload(int64_t requests, int32_t tokens = 5) {
  BenchOptions o;
  o.prompt_tokens = 3;
  o.max_tokens = tokens;
  o.requests = requests;
  o.seed = 11;
  auto workload = MakeWorkload(o, {"fake", 100, 50});
  CHECK(workload.ok()) << workload.status().ToString();
  return *std::move(workload);
}

std::vector<RequestOutcome> RunClosed(const std::string& address, int64_t requests,
                                      int32_t concurrency, const RequestSettings& settings = {}) {
  return RunLoad(NewChannel(address), SyntheticWorkload(requests), settings,
                 {.requests = requests, .concurrency = concurrency}, nullptr);
}

TEST(LoadGenerator, ClosedLoopKeepsItsConcurrency) {
  // Answers wait for one another in threes: fewer than 3 in flight would hang.
  std::mutex mutex;
  std::condition_variable arrived;
  int64_t count = 0;
  FakeInference fake([&](const v1::GenerationSpec& spec, grpc::ServerContext* c, Writer* w) {
    std::unique_lock lock(mutex);
    const int64_t goal = count++ / 3 * 3 + 3;
    arrived.notify_all();
    arrived.wait(lock, [&] { return count >= goal; });
    lock.unlock();
    return Good(spec, c, w);
  });
  const auto outcomes = RunClosed(fake.address(), 30, 3);
  ASSERT_EQ(outcomes.size(), 30u);
  EXPECT_LE(fake.most_at_once(), 3);
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const RequestOutcome& o = outcomes[i];
    EXPECT_EQ(o.index, static_cast<int64_t>(i));
    EXPECT_TRUE(o.ok()) << o.error;
    EXPECT_EQ(o.token_ids.size(), 5u);
    EXPECT_EQ(o.message_count, 3);
    ASSERT_EQ(o.gaps.size(), 2u);
    EXPECT_EQ(o.gaps[0].tokens, 2);
    EXPECT_EQ(o.prompt_tokens, 5);
    EXPECT_EQ(o.accepted_tokens, 3);
    EXPECT_EQ(o.queue, std::chrono::microseconds(1));
    EXPECT_LE(o.arrival, o.started);
    EXPECT_LE(o.started, o.first_token);
    EXPECT_LE(o.first_token, o.ended);
  }
}

TEST(LoadGenerator, RequestsCarryTheSettings) {
  std::mutex mutex;
  std::vector<v1::GenerationSpec> seen;
  FakeInference fake([&](const v1::GenerationSpec& spec, grpc::ServerContext* c, Writer* w) {
    {
      std::lock_guard lock(mutex);
      seen.push_back(spec);
    }
    return Good(spec, c, w);
  });
  RequestSettings settings;
  settings.model = "m";
  settings.temperature = 0.5;
  settings.cache_salt = "salt";
  settings.ignore_eos = true;
  settings.draft_length = 4;
  const auto strategy = [&](BenchMode mode) {
    settings.mode = mode;
    EXPECT_TRUE(RunClosed(fake.address(), 1, 1, settings)[0].ok());
    return seen.back().decoding().draft().strategy();
  };
  EXPECT_EQ(strategy(BenchMode::kSync), v1::DRAFT_STRATEGY_SYNC);
  EXPECT_EQ(strategy(BenchMode::kChain), v1::DRAFT_STRATEGY_CHAIN);
  EXPECT_EQ(strategy(BenchMode::kEnumerate), v1::DRAFT_STRATEGY_ENUMERATE);
  EXPECT_EQ(strategy(BenchMode::kDraft), v1::DRAFT_STRATEGY_UNSPECIFIED);
  EXPECT_EQ(seen.back().decoding().draft().draft_length(), 4);
  EXPECT_EQ(seen.back().model(), "m");
  EXPECT_EQ(seen.back().cache_salt(), "salt");
  EXPECT_EQ(seen.back().token_ids().ids_size(), 3);
  EXPECT_EQ(seen.back().sampling().temperature(), 0.5f);
  EXPECT_TRUE(seen.back().sampling().ignore_eos());
  EXPECT_EQ(seen.back().sampling().seed(), SyntheticWorkload(1).SeedOf(0));
  strategy(BenchMode::kPlain);
  EXPECT_TRUE(seen.back().decoding().has_plain());
  strategy(BenchMode::kNgram);
  EXPECT_TRUE(seen.back().decoding().has_ngram());
  strategy(BenchMode::kAuto);
  EXPECT_TRUE(seen.back().decoding().has_auto_());
}

TEST(LoadGenerator, OpenLoopWaitsForNobody) {
  // No answer before all have arrived: a closed loop would hang.
  constexpr int64_t kRequests = 12;
  std::mutex mutex;
  std::condition_variable arrived;
  int64_t count = 0;
  FakeInference fake([&](const v1::GenerationSpec& spec, grpc::ServerContext* c, Writer* w) {
    std::unique_lock lock(mutex);
    ++count;
    arrived.notify_all();
    arrived.wait(lock, [&] { return count == kRequests; });
    lock.unlock();
    return Good(spec, c, w);
  });
  Workload workload = SyntheticWorkload(kRequests);
  for (int64_t i = 0; i < kRequests; ++i) workload.arrivals.push_back(Seconds(0.005 * i));
  LoadProgress last;
  const auto outcomes = RunLoad(NewChannel(fake.address()), workload, {}, {.requests = kRequests},
                                [&](const LoadProgress& p) { last = p; });
  ASSERT_EQ(outcomes.size(), static_cast<size_t>(kRequests));
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const RequestOutcome& o = outcomes[i];
    EXPECT_TRUE(o.ok()) << o.error;
    EXPECT_EQ(o.arrival, workload.arrivals[i]);  // whenever it was really sent
    EXPECT_GE(o.started, o.arrival);
    EXPECT_GE(o.first_token, workload.arrivals.back());  // it has waited for the last
  }
  EXPECT_EQ(last.done, kRequests);
  EXPECT_EQ(last.in_flight, 0);
  EXPECT_EQ(last.output_tokens, 5 * kRequests);
}

TEST(LoadGenerator, FailuresAreOutcomes) {
  std::atomic<int> call = 0;
  FakeInference fake([&](const v1::GenerationSpec& spec, grpc::ServerContext* c, Writer* w) {
    switch (call++) {
      case 0:
        return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue full");
      case 1:  // a gap
        WriteDelta(w, 0, {1, 2});
        WriteDelta(w, 3, {4}, v1::FINISH_REASON_LENGTH);
        WriteSummary(w, 3);
        return grpc::Status::OK;
      case 2:  // no summary
        WriteDelta(w, 0, {1, 2}, v1::FINISH_REASON_LENGTH);
        return grpc::Status::OK;
      case 3:  // a token lost
        WriteDelta(w, 0, {1, 2}, v1::FINISH_REASON_LENGTH);
        WriteSummary(w, 3);
        return grpc::Status::OK;
      case 4:
        WriteDelta(w, 0, {1}, v1::FINISH_REASON_ERROR);
        WriteSummary(w, 1);
        return grpc::Status::OK;
      default:
        return Good(spec, c, w);
    }
  });
  const auto outcomes = RunClosed(fake.address(), 6, 1);
  std::vector<std::string> codes;
  for (const RequestOutcome& o : outcomes) codes.push_back(o.code);
  EXPECT_THAT(codes, ElementsAre("RESOURCE_EXHAUSTED", "DATA_LOSS", "DATA_LOSS", "DATA_LOSS",
                                 "DATA_LOSS", "OK"));
  EXPECT_EQ(outcomes[0].error, "queue full");
  EXPECT_THAT(outcomes[1].error, HasSubstr("begins at token 3 of sample 0 behind 2"));
  EXPECT_THAT(outcomes[2].error, HasSubstr("without a summary"));
  EXPECT_THAT(outcomes[3].error, HasSubstr("2 tokens came; the summary counts 3"));
  EXPECT_THAT(outcomes[4].error, HasSubstr("FINISH_REASON_ERROR"));
}

TEST(LoadGenerator, SilenceEndsAtTheTimeout) {
  FakeInference fake([](const v1::GenerationSpec&, grpc::ServerContext* context, Writer*) {
    while (!context->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return grpc::Status::CANCELLED;
  });
  RequestSettings settings;
  settings.timeout = std::chrono::milliseconds(50);
  const auto outcomes = RunClosed(fake.address(), 2, 2, settings);
  ASSERT_EQ(outcomes.size(), 2u);
  EXPECT_EQ(outcomes[0].code, "DEADLINE_EXCEEDED");
  EXPECT_EQ(outcomes[1].code, "DEADLINE_EXCEEDED");
}

TEST(LoadGenerator, NobodyThere) {
  const auto outcomes = RunClosed("127.0.0.1:1", 3, 2);
  ASSERT_EQ(outcomes.size(), 3u);
  for (const RequestOutcome& o : outcomes) EXPECT_EQ(o.code, "UNAVAILABLE");
}

TEST(LoadGenerator, ClosedLoopGivesUpOnADeadRouter) {
  const auto outcomes = RunLoad(NewChannel("127.0.0.1:1"), SyntheticWorkload(1), {},
                                {.requests = Workload::kUnbounded, .concurrency = 2}, nullptr);
  EXPECT_GE(outcomes.size(), 64u);
  EXPECT_LE(outcomes.size(), 66u);
}

TEST(LoadGenerator, DurationEndsAnUnboundedRun) {
  FakeInference fake(Good);
  const auto outcomes = RunLoad(
      NewChannel(fake.address()), SyntheticWorkload(1), {},
      {.requests = Workload::kUnbounded, .concurrency = 2, .duration = Seconds(0.05)}, nullptr);
  EXPECT_EQ(static_cast<int64_t>(outcomes.size()), fake.calls());
  for (const RequestOutcome& o : outcomes) EXPECT_TRUE(o.ok()) << o.error;
}

TEST(LoadGenerator, StopsEarlyWhenTold) {
  std::atomic<bool> stop = false;
  FakeInference fake([&](const v1::GenerationSpec& spec, grpc::ServerContext* c, Writer* w) {
    stop = true;  // with the first request
    return Good(spec, c, w);
  });
  Workload workload = SyntheticWorkload(2);
  workload.arrivals = {Duration::zero(), std::chrono::hours(1)};
  const auto outcomes =
      RunLoad(NewChannel(fake.address()), workload, {}, {.requests = 2, .stop = &stop}, nullptr);
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_TRUE(outcomes[0].ok()) << outcomes[0].error;
}

int RunCommand(std::vector<std::string> arguments) {
  std::vector<const char*> argv = {"bench"};
  for (const std::string& a : arguments) argv.push_back(a.c_str());
  return RunBench(static_cast<int>(argv.size()), argv.data());
}

std::string ContentOf(const std::string& path) {
  std::ifstream file(path);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

TEST(BenchCommand, SingleRunWritesItsFigures) {
  FakeInference fake(Good);
  const TestFile json("bench.json", ""), svg("bench.svg", "");
  EXPECT_EQ(RunCommand({"--router", fake.address(), "--prompt-tokens=4", "--max-tokens=7",
                        "--requests=10", "--concurrency=4", "--warmup=3", "--json", json.path(),
                        "--svg", svg.path()}),
            0);
  EXPECT_EQ(fake.calls(), 13);
  const auto figures = nlohmann::json::parse(ContentOf(json.path()));
  EXPECT_EQ(figures["model"], "fake");
  EXPECT_EQ(figures["completed"], 10);
  EXPECT_EQ(figures["total_output_tokens"], 70);
  EXPECT_EQ(figures["ttft_ms"]["count"], 10);
  EXPECT_THAT(ContentOf(svg.path()), HasSubstr("</svg>"));
}

TEST(BenchCommand, OpenLoopByRate) {
  FakeInference fake(Good);
  EXPECT_EQ(RunCommand({"--router", fake.address(), "--prompt-tokens=4", "--requests=10",
                        "--rate=500", "--max-tokens=4"}),
            0);
  EXPECT_EQ(fake.calls(), 10);
}

TEST(BenchCommand, ComparisonOfModesThatAgree) {
  FakeInference fake(Good);
  const TestFile json("compare.json", ""), svg("compare.svg", "");
  EXPECT_EQ(RunCommand({"--router", fake.address(), "--prompt-tokens=4", "--requests=3",
                        "--compare=plain,sync,chain,enumerate", "--rounds=2", "--json", json.path(),
                        "--svg", svg.path()}),
            0);
  EXPECT_EQ(fake.calls(), 28);  // a warm-up request per mode
  const auto figures = nlohmann::json::parse(ContentOf(json.path()));
  EXPECT_EQ(figures["modes"].size(), 4u);
  EXPECT_EQ(figures["outputs_compared"], 21);
  EXPECT_TRUE(figures["divergences"].empty());
}

TEST(BenchCommand, AModeThatChangesTokensFails) {
  FakeInference fake([](const v1::GenerationSpec& spec, grpc::ServerContext* c, Writer* w) {
    if (spec.decoding().has_plain()) return Good(spec, c, w);
    WriteDelta(w, 0, {TokenAt(spec, 0), -1}, v1::FINISH_REASON_LENGTH);
    WriteSummary(w, 2);
    return grpc::Status::OK;
  });
  EXPECT_EQ(RunCommand({"--router", fake.address(), "--prompt-tokens=4", "--requests=2",
                        "--max-tokens=2", "--compare=plain,chain", "--rounds=1", "--allow-errors"}),
            1);
}

TEST(BenchCommand, ExitStatuses) {
  FakeInference fake([](const v1::GenerationSpec& spec, grpc::ServerContext* c, Writer* w) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "no worker");
  });
  const std::vector<std::string> flags = {"--router", fake.address(), "--prompt-tokens=4",
                                          "--requests=2"};
  EXPECT_EQ(RunCommand(flags), 1);
  auto allowed = flags;
  allowed.push_back("--allow-errors");
  EXPECT_EQ(RunCommand(allowed), 0);
  auto wrong = flags;
  wrong.push_back("--concurrency=0");
  EXPECT_EQ(RunCommand(wrong), 2);
  auto model = flags;
  model.push_back("--model=other");
  EXPECT_EQ(RunCommand(model), 1);
  auto long_prompts = flags;
  long_prompts.push_back("--max-tokens=997");
  EXPECT_EQ(RunCommand(long_prompts), 1);
  EXPECT_EQ(RunCommand({"--router=127.0.0.1:1", "--prompt-tokens=4"}), 1);
  auto metrics = allowed;
  metrics.push_back("--metrics=127.0.0.1:1");
  EXPECT_EQ(RunCommand(metrics), 1);
  auto unwritable = allowed;
  unwritable.push_back("--json=/nonexistent/x.json");
  EXPECT_EQ(RunCommand(unwritable), 1);
}

}  // namespace
}  // namespace paceline

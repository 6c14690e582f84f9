// The public API over gRPC: what a client sees of generations that go well.
#include "router/service/inference_service.h"

#include <atomic>

#include "router/service/api_fixture.h"

namespace paceline {
namespace {

using testing::Answer;
using testing::ApiServer;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using testing::Eventually;
using testing::FakeTokens;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::Spec;
using testing::Stream;

std::string TextOf(const ApiServer& server, const std::vector<int32_t>& ids) {
  return server.catalog.Find("m")->tokenizer->Decode(ids, true);
}

TEST(InferenceService, StreamsStartDeltasSummary) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(40, 3);
  spec.set_request_id("mine");
  const Answer a = Stream(&server, spec);
  ASSERT_TRUE(a.status.ok()) << a.status.error_message();
  EXPECT_EQ(a.misplaced, 0);
  ASSERT_THAT(a.starts, SizeIs(1));
  EXPECT_EQ(a.starts[0].request_id(), "mine");
  EXPECT_EQ(a.starts[0].seed(), 3u);
  EXPECT_EQ(a.starts[0].model(), "m");
  EXPECT_EQ(a.starts[0].numerics_fingerprint(), "cpu-x");
  EXPECT_FALSE(a.starts[0].resume_token().empty());
  EXPECT_EQ(a.starts[0].prompt_token_count(), 8);  // "the", 7 bytes
  ASSERT_THAT(a.samples, SizeIs(1));
  EXPECT_THAT(a.samples[0].token_ids(), ElementsAreArray(FakeTokens(3, 0, 40)));
  EXPECT_EQ(a.samples[0].text(), TextOf(server, FakeTokens(3, 0, 40)));
  EXPECT_EQ(a.samples[0].finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_THAT(a.samples[0].logprobs(), IsEmpty());
  ASSERT_THAT(a.summaries, SizeIs(1));
  const v1::Usage& usage = a.summaries[0].usage();
  EXPECT_EQ(usage.prompt_token_count(), 8);
  EXPECT_EQ(usage.cached_token_count(), 1);
  EXPECT_EQ(usage.output_token_count(), 40);
  EXPECT_EQ(usage.drafted_token_count(), 4);
  EXPECT_EQ(usage.accepted_token_count(), 3);
  EXPECT_TRUE(a.summaries[0].has_timings());
  EXPECT_TRUE(a.summaries[0].timings().has_first_token());
  EXPECT_EQ(a.summaries[0].failover_count(), 0);
  EXPECT_TRUE(a.summaries[0].failover_exact());
  ASSERT_TRUE(Eventually([&] { return server.probe.ends().size() == 1; }));
  const RequestEnd end = server.probe.ends()[0];
  EXPECT_EQ(end.method, "StreamGenerateText");
  EXPECT_EQ(end.model, "m");
  EXPECT_EQ(end.code, absl::StatusCode::kOk);
  EXPECT_EQ(end.finish, FinishReason::kLength);
  EXPECT_EQ(end.output_tokens, 40);
  EXPECT_TRUE(end.first_token.has_value());
  EXPECT_TRUE(end.time_per_output_token.has_value());
}

TEST(InferenceService, AnswersInOneMessage) {
  ApiServer server;
  v1::GenerateTextRequest request;
  *request.mutable_generation() = Spec(10, 9);
  request.mutable_generation()->mutable_sampling()->set_sample_count(2);
  v1::GenerateTextResponse response;
  grpc::ClientContext context;
  const grpc::Status status = server.inference->GenerateText(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.start().seed(), 9u);
  ASSERT_EQ(response.samples_size(), 2);
  for (int s = 0; s < 2; ++s) {
    EXPECT_EQ(response.samples(s).sample(), s);
    EXPECT_THAT(response.samples(s).token_ids(), ElementsAreArray(FakeTokens(9, s, 10)));
    EXPECT_EQ(response.samples(s).text(), TextOf(server, FakeTokens(9, s, 10)));
    EXPECT_EQ(response.samples(s).finish_reason(), v1::FINISH_REASON_LENGTH);
  }
  EXPECT_EQ(response.summary().usage().output_token_count(), 20);
}

TEST(InferenceService, SamplesInterleaveInOneStream) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(25, 1);
  spec.mutable_sampling()->set_sample_count(4);
  const Answer a = Stream(&server, spec);
  ASSERT_TRUE(a.status.ok());
  EXPECT_EQ(a.misplaced, 0);
  ASSERT_THAT(a.samples, SizeIs(4));
  for (int s = 0; s < 4; ++s) {
    EXPECT_THAT(a.samples[s].token_ids(), ElementsAreArray(FakeTokens(1, s, 25)));
    EXPECT_EQ(a.samples[s].text(), TextOf(server, FakeTokens(1, s, 25)));
  }
}

TEST(InferenceService, AStopStringEndsTextTokensAndWork) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(1000);
  spec.mutable_sampling()->add_stop_strings("END");
  spec.mutable_sampling()->add_stop_strings("never");
  server.targets[0]->burst = 7;
  const Answer a = Stream(&server, spec);
  ASSERT_TRUE(a.status.ok());
  ASSERT_THAT(a.samples, SizeIs(1));
  EXPECT_EQ(a.samples[0].text(), "the naïve 語 rode behind. ");
  EXPECT_EQ(a.samples[0].finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(TextOf(server, {a.samples[0].token_ids().begin(), a.samples[0].token_ids().end()}),
            "the naïve 語 rode behind. END");
  EXPECT_TRUE(Eventually([&] { return server.targets[0]->num_requests() == 0; }));
}

TEST(InferenceService, GivesLogprobsOnePerToken) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(6);
  spec.mutable_sampling()->set_logprobs(true);
  spec.mutable_sampling()->set_top_logprobs(2);
  const Answer a = Stream(&server, spec);
  ASSERT_TRUE(a.status.ok());
  ASSERT_EQ(a.samples[0].logprobs_size(), 6);
  EXPECT_FLOAT_EQ(a.samples[0].logprobs(1).logprob(), -0.5f);
  ASSERT_EQ(a.samples[0].logprobs(5).top_size(), 2);
  EXPECT_EQ(a.samples[0].logprobs(5).top(1).token_id(), 1);
  EXPECT_FLOAT_EQ(a.samples[0].logprobs(5).top(1).logprob(), -1.f);
}

TEST(InferenceService, TokenIdPromptsGoAsTheyAre) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(3);
  for (int32_t id : {5, 261, 0}) spec.mutable_token_ids()->add_ids(id);
  spec.set_session_id("s1");
  spec.set_cache_salt("salt");
  spec.set_priority(4);
  spec.mutable_decoding()->mutable_plain();
  ASSERT_TRUE(Stream(&server, spec).status.ok());
  const GenerationRequest sent = server.targets[0]->LastRequest();
  EXPECT_THAT(sent.prompt, ElementsAre(5, 261, 0));
  EXPECT_EQ(sent.session_id, "s1");
  EXPECT_EQ(sent.cache_salt, "salt");
  EXPECT_EQ(sent.priority, 4);
  EXPECT_EQ(sent.decoding, DecodingMode::kPlain);
  EXPECT_EQ(sent.deadline, kNoDeadline);
}

TEST(InferenceService, SendsNoHeadersBeforeTheFirstToken) {
  ApiServer server;
  server.targets[0]->hold_after = 0;
  v1::StreamGenerateTextRequest request;
  *request.mutable_generation() = Spec(3);
  grpc::ClientContext context;
  auto reader = server.inference->StreamGenerateText(&context, request);
  std::atomic<bool> headers = false;
  std::thread waiter([&] {
    reader->WaitForInitialMetadata();
    headers = true;
  });
  ASSERT_TRUE(Eventually([&] { return server.targets[0]->submitted == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(headers);
  server.targets[0]->hold_after = INT32_MAX;
  waiter.join();
  v1::StreamGenerateTextResponse event;
  while (reader->Read(&event)) continue;
  EXPECT_TRUE(reader->Finish().ok());
}

TEST(InferenceService, LongTextsAreTokenizedAndStream) {
  ApiServer server({.text = {.inline_bytes = 16}});
  v1::GenerationSpec spec = Spec(5);
  spec.set_text(std::string(3000, 'x'));
  const Answer a = Stream(&server, spec);
  ASSERT_TRUE(a.status.ok()) << a.status.error_message();
  EXPECT_EQ(a.starts[0].prompt_token_count(), 3000);
}

TEST(InferenceService, AStreamSurvivesItsWorker) {
  ApiServer server({.targets = 2});
  for (auto& t : server.targets) t->hold_after = 20;
  v1::StreamGenerateTextRequest request;
  *request.mutable_generation() = Spec(60, 2);
  grpc::ClientContext context;
  auto reader = server.inference->StreamGenerateText(&context, request);
  Answer a;
  v1::StreamGenerateTextResponse event;
  while (a.samples.empty() || a.samples[0].token_ids_size() < 20) {
    ASSERT_TRUE(reader->Read(&event));
    Take(event, &a);
  }
  const bool first = server.targets[0]->submitted == 1;
  for (auto& t : server.targets) t->hold_after = INT32_MAX;
  server.targets[first ? 0 : 1]->Die();
  while (reader->Read(&event)) Take(event, &a);
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(a.misplaced, 0);
  EXPECT_THAT(a.samples[0].token_ids(), ElementsAreArray(FakeTokens(2, 0, 60)));
  EXPECT_EQ(a.samples[0].text(), TextOf(server, FakeTokens(2, 0, 60)));
  EXPECT_EQ(a.summaries[0].failover_count(), 1);
  EXPECT_TRUE(a.summaries[0].failover_exact());
}

TEST(InferenceService, ManyStreamsAtOnce) {
  ApiServer server({.targets = 2});
  std::vector<std::thread> clients;
  std::atomic<int> good = 0;
  for (int c = 0; c < 16; ++c) {
    clients.emplace_back([&server, &good, c] {
      for (int i = 0; i < 5; ++i) {
        const Answer a = Stream(&server, Spec(50, c));
        if (a.status.ok() && a.samples.size() == 1 &&
            std::equal(a.samples[0].token_ids().begin(), a.samples[0].token_ids().end(),
                       FakeTokens(c, 0, 50).begin())) {
          ++good;
        }
      }
    });
  }
  for (auto& c : clients) c.join();
  EXPECT_EQ(good, 80);
}

TEST(InferenceService, TokenizesAndDetokenizes) {
  ApiServer server;
  v1::TokenizeTextRequest text;
  text.set_text("the a語");
  v1::TokenizeTextResponse ids;
  grpc::ClientContext first;
  ASSERT_TRUE(server.inference->TokenizeText(&first, text, &ids).ok());
  EXPECT_THAT(ids.token_ids(), ElementsAre(257, 258, 0xe8, 0xaa, 0x9e));
  v1::DetokenizeTokensRequest back;
  *back.mutable_token_ids() = ids.token_ids();
  back.add_token_ids(0xe8);
  back.add_token_ids(261);
  v1::DetokenizeTokensResponse again;
  grpc::ClientContext second;
  ASSERT_TRUE(server.inference->DetokenizeTokens(&second, back, &again).ok());
  EXPECT_EQ(again.text(), "the a語\xef\xbf\xbd<|end|>");
  back.set_skip_special_tokens(true);
  grpc::ClientContext third;
  ASSERT_TRUE(server.inference->DetokenizeTokens(&third, back, &again).ok());
  EXPECT_EQ(again.text(), "the a語\xef\xbf\xbd");
}

TEST(InferenceService, ListsModelsInPages) {
  ApiServer server;
  auto other = testing::Target("u:1", "m");
  other.report.mutable_info()->set_numerics_fingerprint("cpu-y");
  auto loading = testing::Target("w:1", "a");
  loading.report.set_ready(false);
  auto gone = testing::Target("x:1", "gone");
  gone.reached = false;
  server.directory.SetMembers({testing::Target("t:1", "m"), other, loading, gone});
  v1::ListModelsRequest request;
  request.set_page_size(1);
  std::vector<v1::Model> models;
  do {
    v1::ListModelsResponse response;
    grpc::ClientContext context;
    ASSERT_TRUE(server.inference->ListModels(&context, request, &response).ok());
    ASSERT_EQ(response.models_size(), 1);
    models.push_back(response.models(0));
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  ASSERT_THAT(models, SizeIs(2));
  EXPECT_EQ(models[0].name(), "a");
  EXPECT_EQ(models[0].ready_worker_count(), 0);
  EXPECT_EQ(models[1].name(), "m");
  EXPECT_EQ(models[1].context_length(), testing::kContext);
  EXPECT_EQ(models[1].vocabulary_size(), testing::kVocab);
  EXPECT_EQ(models[1].tokenizer_fingerprint(), "tok");
  EXPECT_EQ(models[1].ready_worker_count(), 2);
  EXPECT_THAT(models[1].numerics_fingerprints(), ElementsAre("cpu-x", "cpu-y"));
  v1::GetModelRequest get;
  get.set_name("m");
  v1::GetModelResponse got;
  grpc::ClientContext context;
  ASSERT_TRUE(server.inference->GetModel(&context, get, &got).ok());
  EXPECT_EQ(got.model().ready_worker_count(), 2);
}

}  // namespace
}  // namespace paceline

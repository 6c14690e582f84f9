// Streams that break and go on, at the same router or another one with the same key.
#include <random>

#include "router/service/api_fixture.h"

namespace paceline {
namespace {

using testing::Answer;
using testing::ApiServer;
using testing::DetailOf;
using ::testing::ElementsAreArray;
using testing::Eventually;
using testing::FakeTokens;
using ::testing::SizeIs;
using testing::Spec;
using testing::Stream;

// Reads until every sample has `tokens`, then breaks the stream.
Answer ReadSome(ApiServer* server, const v1::GenerationSpec& spec, int32_t samples,
                int32_t tokens) {
  v1::StreamGenerateTextRequest request;
  *request.mutable_generation() = spec;
  grpc::ClientContext context;
  auto reader = server->inference->StreamGenerateText(&context, request);
  Answer a;
  v1::StreamGenerateTextResponse event;
  auto enough = [&] {
    if (static_cast<int32_t>(a.samples.size()) < samples) return false;
    for (const auto& s : a.samples) {
      if (s.token_ids_size() < tokens && s.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) {
        return false;
      }
    }
    return true;
  };
  while (!enough() && reader->Read(&event)) Take(event, &a);
  context.TryCancel();
  reader->Finish();
  return a;
}

v1::ResumeGenerateTextRequest ResumeOf(const v1::GenerationSpec& spec, const Answer& a,
                                       bool text_bytes) {
  v1::ResumeGenerateTextRequest request;
  *request.mutable_generation() = spec;
  request.set_resume_token(a.starts.at(0).resume_token());
  for (const v1::SampleOutput& s : a.samples) {
    v1::ReceivedSample* r = request.add_received();
    r->set_sample(s.sample());
    *r->mutable_token_ids() = s.token_ids();
    r->set_finish_reason(s.finish_reason());
    if (text_bytes) r->set_text_byte_count(static_cast<int32_t>(s.text().size()));
  }
  return request;
}

Answer Resume(ApiServer* server, const v1::ResumeGenerateTextRequest& request) {
  grpc::ClientContext context;
  auto reader = server->inference->ResumeGenerateText(&context, request);
  Answer a;
  v1::ResumeGenerateTextResponse event;
  while (reader->Read(&event)) Take(event, &a);
  a.status = reader->Finish();
  return a;
}

std::string ReasonOf(const grpc::Status& status) { return ErrorReason(status); }

TEST(Resume, GoesOnWhereItBroke) {
  ApiServer first, second;
  v1::GenerationSpec spec = Spec(70);
  spec.clear_sampling();
  spec.mutable_sampling()->set_max_tokens(70);
  spec.mutable_sampling()->set_sample_count(2);
  spec.mutable_sampling()->set_logprobs(true);
  spec.mutable_sampling()->add_stop_strings("behind. END of it, the");
  for (const int32_t broken_at : {1, 7, 8, 9, 11, 12, 25, 40}) {
    for (auto& t : first.targets) t->hold_after = broken_at;
    const Answer head = ReadSome(&first, spec, 2, broken_at);
    ASSERT_THAT(head.samples, SizeIs(2));
    const Answer tail = Resume(&second, ResumeOf(spec, head, broken_at % 2 == 0));
    ASSERT_TRUE(tail.status.ok()) << tail.status.error_message();
    EXPECT_EQ(tail.misplaced, 0);
    ASSERT_THAT(tail.starts, SizeIs(1));
    EXPECT_EQ(tail.starts[0].seed(), head.starts[0].seed());
    EXPECT_EQ(tail.starts[0].numerics_fingerprint(), "cpu-x");
    v1::GenerationSpec whole_spec = spec;
    whole_spec.mutable_sampling()->set_seed(head.starts[0].seed());
    const Answer whole = Stream(&second, whole_spec);
    ASSERT_TRUE(whole.status.ok());
    for (int s = 0; s < 2; ++s) {
      v1::SampleOutput joined = head.samples[s];
      if (s < static_cast<int>(tail.samples.size())) {
        joined.mutable_text()->append(tail.samples[s].text());
        joined.mutable_token_ids()->MergeFrom(tail.samples[s].token_ids());
        joined.mutable_logprobs()->MergeFrom(tail.samples[s].logprobs());
        if (joined.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) {
          joined.set_finish_reason(tail.samples[s].finish_reason());
        }
      }
      EXPECT_EQ(joined.DebugString(), whole.samples[s].DebugString())
          << "broken at " << broken_at << ", seed " << head.starts[0].seed();
    }
    EXPECT_EQ(tail.summaries[0].usage().output_token_count(),
              whole.summaries[0].usage().output_token_count());
    EXPECT_TRUE(tail.summaries[0].failover_exact());
  }
}

TEST(Resume, ASecondBreakIsResumedWithTheNewToken) {
  ApiServer server;
  const v1::GenerationSpec spec = Spec(30, 4);
  server.targets[0]->hold_after = 10;
  Answer got = ReadSome(&server, spec, 1, 10);
  server.targets[0]->hold_after = INT32_MAX;
  Answer tail = Resume(&server, ResumeOf(spec, got, true));
  ASSERT_TRUE(tail.status.ok());
  got.starts = tail.starts;
  for (int i = 0; i < 10; ++i) got.samples[0].add_token_ids(tail.samples[0].token_ids(i));
  tail = Resume(&server, ResumeOf(spec, got, false));
  ASSERT_TRUE(tail.status.ok()) << tail.status.error_message();
  auto want = FakeTokens(4, 0, 30);
  want.erase(want.begin(), want.begin() + 20);
  EXPECT_THAT(tail.samples[0].token_ids(), ElementsAreArray(want));
}

TEST(Resume, SamplesThatHadNothingStartAnew) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(10, 4);
  spec.mutable_sampling()->set_sample_count(3);
  server.targets[0]->hold_after = 5;
  const Answer head = ReadSome(&server, spec, 3, 5);
  server.targets[0]->hold_after = INT32_MAX;
  auto request = ResumeOf(spec, head, true);
  request.mutable_received()->DeleteSubrange(0, 2);
  const Answer tail = Resume(&server, request);
  ASSERT_TRUE(tail.status.ok()) << tail.status.error_message();
  EXPECT_EQ(tail.samples[0].token_ids_size(), 10);
  EXPECT_EQ(tail.samples[1].token_ids_size(), 10);
  EXPECT_EQ(tail.samples[2].token_ids_size(), 5);
}

TEST(Resume, TellsTheEndOfSamplesThatHadAllTheirTokens) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(8, 4);
  spec.mutable_sampling()->add_stop_strings("e 語 ");  // " naïv" and so on; held back at the end
  const Answer whole = Stream(&server, spec);
  ASSERT_TRUE(whole.status.ok());
  // All tokens, but neither the end nor the text that comes with it.
  auto request = ResumeOf(spec, whole, false);
  request.mutable_received(0)->clear_finish_reason();
  request.mutable_received(0)->set_text_byte_count(2);
  Answer tail = Resume(&server, request);
  ASSERT_TRUE(tail.status.ok()) << tail.status.error_message();
  ASSERT_THAT(tail.samples, SizeIs(1));
  EXPECT_EQ(tail.samples[0].token_ids_size(), 0);
  EXPECT_EQ(whole.samples[0].text().substr(0, 2) + tail.samples[0].text(), whole.samples[0].text());
  EXPECT_EQ(tail.samples[0].finish_reason(), v1::FINISH_REASON_LENGTH);
  ASSERT_THAT(tail.summaries, SizeIs(1));
  // All of it: nothing but start and summary.
  tail = Resume(&server, ResumeOf(spec, whole, true));
  ASSERT_TRUE(tail.status.ok());
  EXPECT_THAT(tail.starts, SizeIs(1));
  EXPECT_THAT(tail.samples, SizeIs(0));
  EXPECT_THAT(tail.summaries, SizeIs(1));
}

TEST(Resume, AStopStringThatTheTokensCompleteEndsTheSample) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(20);
  spec.mutable_sampling()->add_stop_strings("naï");
  const Answer whole = Stream(&server, spec);
  auto request = ResumeOf(spec, whole, true);
  request.mutable_received(0)->clear_finish_reason();
  const Answer tail = Resume(&server, request);
  ASSERT_TRUE(tail.status.ok()) << tail.status.error_message();
  ASSERT_THAT(tail.samples, SizeIs(1));
  EXPECT_EQ(tail.samples[0].finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(tail.samples[0].text(), "");
}

struct Spoiled {
  const char* what;
  const char* field;  // null: RESUME_TOKEN_INVALID
  std::function<void(v1::ResumeGenerateTextRequest*)> spoil;
};

TEST(Resume, RefusesWhatIsNotOfThisStream) {
  ApiServer server;
  v1::GenerationSpec spec = Spec(30, 4);
  spec.mutable_sampling()->set_sample_count(2);
  spec.mutable_sampling()->add_stop_strings("rode");
  server.targets[0]->hold_after = 10;
  const auto good = ResumeOf(spec, ReadSome(&server, spec, 2, 10), true);
  server.targets[0]->hold_after = INT32_MAX;
  ASSERT_TRUE(Resume(&server, good).status.ok());
  using Request = v1::ResumeGenerateTextRequest;
  const std::vector<Spoiled> all = {
      {"no token", nullptr, [](Request* r) { r->clear_resume_token(); }},
      {"flipped", nullptr, [](Request* r) { (*r->mutable_resume_token())[9] ^= 1; }},
      {"binary", nullptr, [](Request* r) { r->set_resume_token(std::string(100, '\0')); }},
      {"huge", nullptr, [](Request* r) { r->set_resume_token(std::string(1 << 20, 'A')); }},
      {"other key", nullptr,
       [](Request* r) {
         r->set_resume_token(ResumeTokenCodec(SipKey{8}).Encode({.seed = 4, .model = "m"}));
       }},
      {"expired", nullptr,
       [](Request* r) {
         r->set_resume_token(ResumeTokenCodec(SipKey{7}).Encode({.seed = 4, .model = "m"}));
       }},
      {"prompt", nullptr, [](Request* r) { r->mutable_generation()->set_text("another"); }},
      {"seed", nullptr,
       [](Request* r) { r->mutable_generation()->mutable_sampling()->set_seed(5); }},
      {"temperature", nullptr,
       [](Request* r) { r->mutable_generation()->mutable_sampling()->set_temperature(0.5); }},
      {"max_tokens", nullptr,
       [](Request* r) { r->mutable_generation()->mutable_sampling()->set_max_tokens(31); }},
      {"stop", nullptr,
       [](Request* r) { r->mutable_generation()->mutable_sampling()->add_stop_strings("x"); }},
      {"sample", "received[0].sample", [](Request* r) { r->mutable_received(0)->set_sample(2); }},
      {"sample", "received[0].sample", [](Request* r) { r->mutable_received(0)->set_sample(-1); }},
      {"twice", "received[1].sample", [](Request* r) { r->mutable_received(1)->set_sample(0); }},
      {"ids", "received[1].token_ids",
       [](Request* r) { r->mutable_received(1)->add_token_ids(testing::kVocab); }},
      {"too many", "received[0].token_ids",
       [](Request* r) {
         for (int i = 0; i < 30; ++i) r->mutable_received(0)->add_token_ids(65);
       }},
      {"behind a stop", "received[0].text_byte_count",
       [](Request* r) {
         for (const char c : std::string("rode on")) r->mutable_received(0)->add_token_ids(c);
       }},
      {"finish", "received[0].finish_reason",
       [](Request* r) { r->mutable_received(0)->set_finish_reason(v1::FINISH_REASON_ERROR); }},
      {"exit layers", "received[0].exit_layers",
       [](Request* r) { r->mutable_received(0)->add_exit_layers(1); }},
      {"text", "received[0].text_byte_count",
       [](Request* r) { r->mutable_received(0)->set_text_byte_count(100); }},
      {"text", "received[0].text_byte_count",
       [](Request* r) { r->mutable_received(0)->set_text_byte_count(-1); }},
      {"spec", "generation.sampling.top_p",
       [](Request* r) { r->mutable_generation()->mutable_sampling()->set_top_p(2); }},
  };
  for (const Spoiled& spoiled : all) {
    Request request = good;
    spoiled.spoil(&request);
    const Answer a = Resume(&server, request);
    EXPECT_EQ(a.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << spoiled.what;
    EXPECT_EQ(ReasonOf(a.status), spoiled.field ? "INVALID_FIELD" : "RESUME_TOKEN_INVALID")
        << spoiled.what;
    EXPECT_EQ(DetailOf<google::rpc::BadRequest>(a.status).field_violations(0).field(),
              spoiled.field ? spoiled.field : "resume_token")
        << spoiled.what;
  }
  // What does not decide the tokens may change.
  auto other = good;
  other.mutable_generation()->set_request_id("another");
  other.mutable_generation()->set_priority(3);
  other.mutable_generation()->set_session_id("s");
  other.mutable_generation()->mutable_decoding()->mutable_plain();
  EXPECT_TRUE(Resume(&server, other).status.ok());
}

}  // namespace
}  // namespace paceline

// Requests of random shape: every one gets an answer or a typed refusal, and the server lives on.
#include <random>

#include <google/protobuf/reflection.h>

#include "router/service/api_fixture.h"

namespace paceline {
namespace {

using testing::Answer;
using testing::ApiServer;
using testing::Spec;
using testing::Stream;

class RandomMessage {
 public:
  explicit RandomMessage(uint64_t seed) : random_(seed) {}

  size_t Below(size_t n) { return static_cast<size_t>(random_() % n); }

  // Sets some fields to values at and around their limits.
  void Fill(google::protobuf::Message* message, int depth = 0) {
    const auto* descriptor = message->GetDescriptor();
    for (int i = 0; i < descriptor->field_count(); ++i) {
      if (Below(4) != 0 || depth > 5) continue;
      const auto* field = descriptor->field(i);
      if (field->is_map()) continue;
      if (!field->is_repeated()) {
        Set(message, field, depth, false);
      } else {
        for (size_t n = Below(4); n > 0; --n) Set(message, field, depth, true);
      }
    }
  }

 private:
  using Field = google::protobuf::FieldDescriptor;

  int64_t Integer() {
    static constexpr int64_t kEdges[] = {-1, 0, 1, 2, 16, 17, 101, 261, 262, INT32_MAX, INT32_MIN};
    return kEdges[Below(std::size(kEdges))];
  }
  double Real() {
    static const double kEdges[] = {-1, 0, 0.5, 1, 2, 100, 1e30, -1e30, NAN, INFINITY};
    return kEdges[Below(std::size(kEdges))];
  }
  std::string Text() {
    static const char* const kTexts[] = {"", "m", "the", "語", "END", "\n", "%s%n"};
    return Below(20) == 0 ? std::string(Below(5000), 'y') : kTexts[Below(std::size(kTexts))];
  }
  void Set(google::protobuf::Message* m, const Field* f, int depth, bool repeated) {
    const auto* r = m->GetReflection();
    switch (f->cpp_type()) {
      case Field::CPPTYPE_INT32:
        return repeated ? r->AddInt32(m, f, Integer()) : r->SetInt32(m, f, Integer());
      case Field::CPPTYPE_INT64:
        return repeated ? r->AddInt64(m, f, Integer()) : r->SetInt64(m, f, Integer());
      case Field::CPPTYPE_UINT64:
        return repeated ? r->AddUInt64(m, f, random_()) : r->SetUInt64(m, f, random_());
      case Field::CPPTYPE_FLOAT:
        return repeated ? r->AddFloat(m, f, Real()) : r->SetFloat(m, f, Real());
      case Field::CPPTYPE_DOUBLE:
        return repeated ? r->AddDouble(m, f, Real()) : r->SetDouble(m, f, Real());
      case Field::CPPTYPE_BOOL:
        return repeated ? r->AddBool(m, f, true) : r->SetBool(m, f, Below(2));
      case Field::CPPTYPE_ENUM:
        return repeated ? r->AddEnumValue(m, f, Below(9)) : r->SetEnumValue(m, f, Below(9));
      case Field::CPPTYPE_STRING:
        return repeated ? r->AddString(m, f, Text()) : r->SetString(m, f, Text());
      case Field::CPPTYPE_MESSAGE:
        return Fill(repeated ? r->AddMessage(m, f) : r->MutableMessage(m, f), depth + 1);
      default:
        return;
    }
  }

  std::mt19937_64 random_;
};

bool Typed(const grpc::Status& status) { return status.ok() || !ErrorReason(status).empty(); }

TEST(RandomRequests, AreAnsweredOrRefused) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  RandomMessage random(seed);
  ApiServer server;
  server.targets[0]->burst = 64;
  int answered = 0;
  for (int round = 0; round < testing::TestRounds(400); ++round) {
    // Half of them valid but for what is changed.
    v1::ResumeGenerateTextRequest request;
    if (round % 2 == 0) *request.mutable_generation() = Spec(16);
    random.Fill(&request);
    if (request.generation().sampling().max_tokens() > 64) {
      request.mutable_generation()->mutable_sampling()->set_max_tokens(64);
    }
    request.mutable_generation()->clear_model();
    const Answer a = Stream(&server, request.generation());
    ASSERT_TRUE(Typed(a.status)) << a.status.error_message() << request.DebugString();
    ASSERT_EQ(a.misplaced, 0);
    if (a.status.ok()) ++answered;
    grpc::ClientContext unary;
    v1::GenerateTextRequest whole;
    *whole.mutable_generation() = request.generation();
    v1::GenerateTextResponse response;
    const grpc::Status status = server.inference->GenerateText(&unary, whole, &response);
    ASSERT_EQ(status.error_code(), a.status.error_code()) << request.DebugString();
    // With the token of the stream that this would be, where there is one.
    if (a.status.ok() && random.Below(4) != 0) {
      request.set_resume_token(a.starts[0].resume_token());
      request.mutable_generation()->mutable_sampling()->set_seed(a.starts[0].seed());
    }
    grpc::ClientContext context;
    auto reader = server.inference->ResumeGenerateText(&context, request);
    v1::ResumeGenerateTextResponse event;
    while (reader->Read(&event)) continue;
    const grpc::Status resumed = reader->Finish();
    ASSERT_TRUE(Typed(resumed)) << resumed.error_message() << request.DebugString();
  }
  EXPECT_GT(answered, 0);
  EXPECT_TRUE(Stream(&server, Spec(16)).status.ok());
}

TEST(RandomRequests, OfTheOtherMethodsToo) {
  const uint64_t seed = testing::TestSeed();
  SCOPED_TRACE("PACELINE_TEST_SEED=" + std::to_string(seed));
  RandomMessage random(seed);
  ApiServer server;
  auto call = [&](auto* stub, auto method, auto request, auto response) {
    random.Fill(&request);
    grpc::ClientContext context;
    const grpc::Status status = (stub->*method)(&context, request, &response);
    EXPECT_TRUE(Typed(status)) << status.error_message() << request.DebugString();
  };
  using Inference = v1::InferenceService::Stub;
  using Sessions = v1::SessionService::Stub;
  using Cluster = v1::ClusterService::Stub;
  Inference* inference = server.inference.get();
  Sessions* sessions = server.sessions.get();
  for (int round = 0; round < testing::TestRounds(200); ++round) {
    call(inference, &Inference::TokenizeText, v1::TokenizeTextRequest(),
         v1::TokenizeTextResponse());
    call(inference, &Inference::DetokenizeTokens, v1::DetokenizeTokensRequest(),
         v1::DetokenizeTokensResponse());
    call(inference, &Inference::ListModels, v1::ListModelsRequest(), v1::ListModelsResponse());
    call(inference, &Inference::GetModel, v1::GetModelRequest(), v1::GetModelResponse());
    call(sessions, &Sessions::CreateSession, v1::CreateSessionRequest(),
         v1::CreateSessionResponse());
    call(sessions, &Sessions::GetSession, v1::GetSessionRequest(), v1::GetSessionResponse());
    call(sessions, &Sessions::ListSessions, v1::ListSessionsRequest(), v1::ListSessionsResponse());
    call(sessions, &Sessions::DeleteSession, v1::DeleteSessionRequest(),
         v1::DeleteSessionResponse());
    call(server.cluster.get(), &Cluster::DrainWorker, v1::DrainWorkerRequest(),
         v1::DrainWorkerResponse());
  }
}

}  // namespace
}  // namespace paceline

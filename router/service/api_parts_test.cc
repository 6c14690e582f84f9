// The small parts of the public API: errors as statuses, text threads, catalog, pages, merging.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/rpc/error.h"
#include "router/service/generation_events.h"
#include "router/service/paging.h"
#include "router/service/random_id.h"
#include "router/service/router_test_parts.h"
#include "router/service/serving_error_proto.h"
#include "router/service/text_executor.h"

namespace paceline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// ---- Errors ----

template <typename Detail>
bool Has(const grpc::Status& status) {
  google::rpc::Status rpc;
  Detail detail;
  return rpc.ParseFromString(status.error_details()) && FindDetail(rpc, &detail);
}

struct Row {
  ServingError error;
  grpc::StatusCode code;
  const char* reason;
  bool bad_request, resource, quota, precondition, retry;
};

TEST(ServingErrorProto, EveryRowOfTheTable) {
  using E = ServingError;
  using C = grpc::StatusCode;
  const std::vector<Row> rows = {
      {E::InvalidField("f", "d"), C::INVALID_ARGUMENT, "INVALID_FIELD", true, false, false, false,
       false},
      {E::ContextLengthExceeded(1, 2), C::INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED", true, false,
       false, false, false},
      {E::ModelNotFound("m"), C::NOT_FOUND, "MODEL_NOT_FOUND", false, true, false, false, false},
      {E::ModelLoading("m"), C::UNAVAILABLE, "MODEL_LOADING", false, false, false, false, true},
      {E::QueueFull(1, 1, "--f"), C::RESOURCE_EXHAUSTED, "QUEUE_FULL", false, false, true, false,
       true},
      {E::QuotaExceeded("c", "d"), C::RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", false, false, true,
       false, true},
      {E::KvCapacityTooSmall("m", "d"), C::FAILED_PRECONDITION, "KV_CAPACITY_TOO_SMALL", false,
       false, false, true, false},
      {E::NoWorker("m"), C::UNAVAILABLE, "NO_WORKER", false, false, false, false, true},
      {E::Draining(), C::UNAVAILABLE, "DRAINING", false, false, false, false, false},
      {E::WorkerLost(2, "c"), C::UNAVAILABLE, "WORKER_LOST", false, false, false, false, false},
      {E::StreamLost(2, "c"), C::UNAVAILABLE, "STREAM_LOST", false, false, false, false, false},
      {E::Deadline("decode"), C::DEADLINE_EXCEEDED, "DEADLINE", false, false, false, false, false},
      {E::Cancelled(), C::CANCELLED, "CANCELLED", false, false, false, false, false},
      {E::DuplicateRequestId("r"), C::ALREADY_EXISTS, "DUPLICATE_REQUEST_ID", false, false, false,
       false, false},
      {E::CredentialsMissing(), C::UNAUTHENTICATED, "CREDENTIALS_MISSING", false, false, false,
       false, false},
      {E::CredentialsInvalid(), C::UNAUTHENTICATED, "CREDENTIALS_INVALID", false, false, false,
       false, false},
      {E::NotAllowed("w"), C::PERMISSION_DENIED, "NOT_ALLOWED", false, false, false, false, false},
      {E::SessionNotFound("s"), C::NOT_FOUND, "SESSION_NOT_FOUND", false, true, false, false,
       false},
      {E::ResumeTokenInvalid("d"), C::INVALID_ARGUMENT, "RESUME_TOKEN_INVALID", true, false, false,
       false, false},
      {E::EngineFault("c"), C::INTERNAL, "ENGINE_FAULT", false, false, false, false, false},
      {E::NotImplemented("w"), C::UNIMPLEMENTED, "NOT_IMPLEMENTED", false, false, false, false,
       false},
  };
  for (const Row& row : rows) {
    const grpc::Status status = ToGrpcStatus(row.error);
    EXPECT_EQ(status.error_code(), row.code) << row.reason;
    EXPECT_EQ(status.error_message(), row.error.message);
    EXPECT_EQ(ErrorReason(status), row.reason);
    EXPECT_EQ(Has<google::rpc::BadRequest>(status), row.bad_request) << row.reason;
    EXPECT_EQ(Has<google::rpc::ResourceInfo>(status), row.resource) << row.reason;
    EXPECT_EQ(Has<google::rpc::QuotaFailure>(status), row.quota) << row.reason;
    EXPECT_EQ(Has<google::rpc::PreconditionFailure>(status), row.precondition) << row.reason;
    EXPECT_EQ(Has<google::rpc::RetryInfo>(status), row.retry) << row.reason;
    EXPECT_FALSE(Has<google::rpc::DebugInfo>(status)) << row.reason;
  }
  EXPECT_TRUE(Has<google::rpc::DebugInfo>(ToGrpcStatus(E::EngineFault("c"), true)));
}

TEST(ServingErrorProto, FieldsGetTheirPublicNames) {
  const auto field = [](const char* name) {
    const ServingError error = WithPublicFields(ServingError::InvalidField(name, "d"));
    EXPECT_EQ(error.metadata.at("field"), error.fields[0].field);
    return error.fields[0].field;
  };
  EXPECT_EQ(field("temperature"), "generation.sampling.temperature");
  EXPECT_EQ(field("n"), "generation.sampling.sample_count");
  EXPECT_EQ(field("samples"), "received");
  EXPECT_EQ(field("request"), "generation");
  EXPECT_EQ(field("generation.decoding.beam"), "generation.decoding.beam");
  EXPECT_EQ(field("received[2].sample"), "received[2].sample");
}

TEST(ServingErrorProto, LongAndBrokenWordsStayWhole) {
  std::string words = "x";
  while (words.size() < 1000) words += "語";
  const grpc::Status longer = ToGrpcStatus(ServingError::ModelNotFound(words));
  EXPECT_TRUE(IsUtf8(longer.error_message()));
  EXPECT_LT(longer.error_message().size(), 500u);
  EXPECT_TRUE(Has<google::rpc::ResourceInfo>(longer));
  const grpc::Status broken = ToGrpcStatus(ServingError::ModelNotFound("\xff\xfe"));
  EXPECT_TRUE(IsUtf8(broken.error_message()));
}

// ---- Text threads ----

TEST(TextExecutor, ShortInputsRunAtOnceAndLongOnesElsewhere) {
  TextExecutor executor({.num_threads = 1, .max_queue = 2, .inline_bytes = 10});
  std::thread::id at_once, elsewhere;
  EXPECT_TRUE(executor.Run(10, [&] { at_once = std::this_thread::get_id(); }));
  EXPECT_EQ(at_once, std::this_thread::get_id());
  std::promise<void> done;
  EXPECT_TRUE(executor.Run(11, [&] {
    elsewhere = std::this_thread::get_id();
    done.set_value();
  }));
  done.get_future().wait();
  EXPECT_NE(elsewhere, std::this_thread::get_id());
}

TEST(TextExecutor, TheQueueIsBoundedAndNoTaskIsLost) {
  std::atomic<int> ran = 0;
  std::promise<void> gate;
  {
    TextExecutor executor({.num_threads = 1, .max_queue = 2, .inline_bytes = 0});
    std::promise<void> begun;
    EXPECT_TRUE(executor.Run(1, [&] {
      begun.set_value();
      gate.get_future().wait();
      ++ran;
    }));
    begun.get_future().wait();
    EXPECT_TRUE(executor.Run(1, [&] { ++ran; }));
    EXPECT_TRUE(executor.Run(1, [&] { ++ran; }));
    EXPECT_EQ(executor.waiting(), 2);
    EXPECT_FALSE(executor.Run(1, [&] { ++ran; }));
    gate.set_value();
  }
  EXPECT_EQ(ran, 3);
}

// ---- Catalog ----

TEST(ModelCatalog, LoadsTokenizersAndNamesWhatIsMissing) {
  const auto dir = std::filesystem::path(::testing::TempDir()) / RandomId();
  std::filesystem::create_directories(dir);
  const auto missing = ModelCatalog::Load({{"m", dir.string()}});
  EXPECT_THAT(missing.status().message(), HasSubstr(dir.string()));
  std::ofstream(dir / "tokenizer.json") << testing::ByteLevelFile().dump();
  const auto catalog = ModelCatalog::Load({{"m", dir.string()}});
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  ASSERT_NE(catalog->Find("m"), nullptr);
  EXPECT_EQ(catalog->Find("m")->fingerprint.size(), 16u);
  EXPECT_EQ(catalog->Find("n"), nullptr);
  EXPECT_THAT(catalog->Names(), ElementsAre("m"));
  std::filesystem::remove_all(dir);
}

// ---- Pages ----

TEST(Paging, TokensLeadBehindAName) {
  Page page;
  ASSERT_FALSE(ParsePage(0, "", &page));
  EXPECT_EQ(page.size, 100);
  EXPECT_EQ(page.after, "");
  for (const std::string name : {"m", "語", "a/b c"}) {
    ASSERT_FALSE(ParsePage(7, PageTokenAfter(name), &page));
    EXPECT_EQ(page.size, 7);
    EXPECT_EQ(page.after, name);
  }
  EXPECT_EQ(ParsePage(-1, "", &page)->fields[0].field, "page_size");
  EXPECT_EQ(ParsePage(1001, "", &page)->fields[0].field, "page_size");
  EXPECT_EQ(ParsePage(1, "bQ", &page)->fields[0].field, "page_token");
  EXPECT_EQ(ParsePage(1, "\xff", &page)->fields[0].field, "page_token");
}

// ---- Events ----

v1::SampleDelta Delta(int32_t sample, int32_t first, std::vector<TokenId> tokens,
                      const std::string& text) {
  SampleDelta delta;
  delta.sample = sample;
  delta.first_index = first;
  delta.logprobs.resize(tokens.size());
  delta.tokens = std::move(tokens);
  return ToPublic(delta, text);
}

TEST(GenerationEvents, DeltasOfOneSampleMergeWithoutGap) {
  v1::SampleDelta last = Delta(1, 5, {7, 8}, "ab");
  v1::SampleDelta other = Delta(0, 7, {9}, "c"), gap = Delta(1, 8, {9}, "c");
  EXPECT_FALSE(MergeDeltas(&last, &other));
  EXPECT_FALSE(MergeDeltas(&last, &gap));
  v1::SampleDelta next = Delta(1, 7, {9}, "c");
  next.set_finish_reason(v1::FINISH_REASON_STOP);
  ASSERT_TRUE(MergeDeltas(&last, &next));
  EXPECT_EQ(last.first_index(), 5);
  EXPECT_THAT(last.token_ids(), ElementsAre(7, 8, 9));
  EXPECT_EQ(last.text(), "abc");
  EXPECT_EQ(last.logprobs_size(), 3);
  EXPECT_EQ(last.finish_reason(), v1::FINISH_REASON_STOP);
}

}  // namespace
}  // namespace paceline

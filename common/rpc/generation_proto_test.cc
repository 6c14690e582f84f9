#include "common/rpc/generation_proto.h"

#include <cstdlib>
#include <limits>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/rpc/duration.h"
#include "common/rpc/error.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

constexpr TimePoint kNow = TimePoint(std::chrono::hours(5));

class GenerationProtoTest : public ::testing::Test {
 protected:
  GenerationProtoTest() {
    const char* replay = std::getenv("PACELINE_TEST_SEED");
    const uint64_t seed = replay ? std::strtoull(replay, nullptr, 10) : std::random_device{}();
    RecordProperty("seed", std::to_string(seed));
    random_.seed(seed);
    trace_ = std::make_unique<::testing::ScopedTrace>(__FILE__, __LINE__,
                                                      "PACELINE_TEST_SEED=" + std::to_string(seed));
  }

  int32_t Int(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random_);
  }
  float Real() { return std::uniform_real_distribution<float>(-3, 3)(random_); }
  std::vector<TokenId> Tokens(int32_t most) {
    std::vector<TokenId> tokens(Int(0, most));
    for (TokenId& t : tokens) t = Int(-5, std::numeric_limits<int32_t>::max());
    return tokens;
  }
  FinishReason Reason() { return static_cast<FinishReason>(Int(0, 5)); }

  SamplingParams Sampling() {
    SamplingParams p;
    p.temperature = Real();
    p.top_k = Int(-1, 1 << 20);
    p.top_p = Real();
    p.min_p = Real();
    p.repetition_penalty = Real();
    p.presence_penalty = Real();
    p.frequency_penalty = Real();
    for (int i = Int(0, 5); i > 0; --i) p.logit_bias.emplace_back(Int(-2, 1 << 30), Real());
    p.seed = random_();
    p.max_tokens = Int(-1, 1 << 30);
    p.min_tokens = Int(-1, 1 << 30);
    p.stop_token_ids = Tokens(5);
    p.ignore_eos = Int(0, 1);
    p.top_logprobs = Int(-1, 20);
    return p;
  }

  std::mt19937_64 random_;
  std::unique_ptr<::testing::ScopedTrace> trace_;
};

worker::v1::Submit GoodSubmit() {
  GenerationRequest request;
  request.prompt = {1, 2, 3};
  worker::v1::Submit proto;
  ToProto(7, request, kNow, &proto);
  return proto;
}

TEST_F(GenerationProtoTest, SamplingGoesThereAndBack) {
  for (int i = 0; i < 200; ++i) {
    const SamplingParams params = Sampling();
    worker::v1::Sampling proto;
    ToProto(params, &proto);
    const auto back = FromProto(proto);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, params);
  }
}

TEST_F(GenerationProtoTest, RequestsGoThereAndBack) {
  for (int i = 0; i < 200; ++i) {
    GenerationRequest request;
    request.request_id = std::string(Int(0, kMaxWireIdBytes), 'r');
    request.prompt = Tokens(40);
    request.sampling = Sampling();
    request.num_samples = Int(-1, 20);
    request.decoding = static_cast<DecodingMode>(Int(0, 3));
    request.draft_strategy = static_cast<DraftStrategy>(Int(0, 3));
    request.draft_len = Int(0, kMaxDraftLen);
    request.priority = Int(-100, 100);
    request.cache_salt = std::string(Int(0, 9), 'c');
    request.session_id = std::string(Int(0, 9), 's');
    if (Int(0, 1)) request.deadline = kNow + Duration(Int(0, 1 << 30));
    request.resumed.resize(Int(0, kMaxWireSamples));
    for (auto& progress : request.resumed) progress = {Tokens(9), Reason()};

    worker::v1::Submit proto;
    ToProto(i, request, kNow, &proto);
    worker::v1::Submit parsed;
    ASSERT_TRUE(parsed.ParseFromString(proto.SerializeAsString()));
    EXPECT_EQ(proto.handle(), static_cast<uint64_t>(i));
    // The reader's clock is another one; what is left of the deadline is the same.
    const TimePoint there = TimePoint(std::chrono::seconds(9));
    const auto back = FromProto(parsed, there);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->request_id, request.request_id);
    EXPECT_EQ(back->prompt, request.prompt);
    EXPECT_EQ(back->sampling, request.sampling);
    EXPECT_EQ(back->num_samples, request.num_samples);
    EXPECT_EQ(back->decoding, request.decoding);
    EXPECT_EQ(back->draft_strategy, request.draft_strategy);
    EXPECT_EQ(back->draft_len, request.draft_len);
    EXPECT_EQ(back->priority, request.priority);
    EXPECT_EQ(back->cache_salt, request.cache_salt);
    EXPECT_EQ(back->session_id, request.session_id);
    if (request.deadline == kNoDeadline) {
      EXPECT_EQ(back->deadline, kNoDeadline);
    } else {
      EXPECT_EQ(back->deadline - there, request.deadline - kNow);
    }
    ASSERT_EQ(back->resumed.size(), request.resumed.size());
    for (size_t s = 0; s < request.resumed.size(); ++s) {
      EXPECT_EQ(back->resumed[s].emitted, request.resumed[s].emitted);
      EXPECT_EQ(back->resumed[s].finish, request.resumed[s].finish);
    }
  }
}

TEST_F(GenerationProtoTest, DeltasGoThereAndBack) {
  for (int i = 0; i < 200; ++i) {
    SampleDelta delta;
    delta.sample = Int(0, 15);
    delta.first_index = Int(0, 1 << 20);
    delta.tokens = Tokens(9);
    if (Int(0, 1)) {
      delta.logprobs.resize(delta.tokens.size());
      for (TokenLogprobs& logprobs : delta.logprobs) {
        logprobs.logprob = Real();
        for (int k = Int(0, 3); k > 0; --k) logprobs.top.push_back({Int(0, 99), Real()});
      }
    }
    delta.finish = Reason();
    worker::v1::Delta proto;
    ToProto(i, delta, &proto);
    const auto back = FromProto(proto);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->sample, delta.sample);
    EXPECT_EQ(back->first_index, delta.first_index);
    EXPECT_EQ(back->tokens, delta.tokens);
    EXPECT_EQ(back->logprobs, delta.logprobs);
    EXPECT_EQ(back->finish, delta.finish);
  }
}

TEST_F(GenerationProtoTest, TheLastWordGoesThereAndBack) {
  GenerationUsage usage{.prompt_tokens = 5,
                        .cached_tokens = 4,
                        .output_tokens = 3,
                        .drafted_tokens = 2,
                        .accepted_tokens = 1,
                        .queue_time = Duration(1'500'000'007),
                        .first_token_time = Duration(3),
                        .total_time = std::chrono::hours(2)};
  const absl::Status sent = ErrorBuilder(absl::StatusCode::kResourceExhausted, "full")
                                .Reason("QUEUE_FULL", {{"limit", "7"}})
                                .ToAbsl();
  worker::v1::Finished proto;
  ToProto(3, sent, usage, &proto);
  absl::Status status;
  const auto back = FromProto(proto, &status);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(status, sent);
  EXPECT_EQ(ErrorReason(status), "QUEUE_FULL");
  EXPECT_EQ(back->prompt_tokens, 5);
  EXPECT_EQ(back->cached_tokens, 4);
  EXPECT_EQ(back->output_tokens, 3);
  EXPECT_EQ(back->drafted_tokens, 2);
  EXPECT_EQ(back->accepted_tokens, 1);
  EXPECT_EQ(back->queue_time, usage.queue_time);
  EXPECT_EQ(back->first_token_time, usage.first_token_time);
  EXPECT_EQ(back->total_time, usage.total_time);
}

TEST_F(GenerationProtoTest, ADeadlineInThePastLeavesNothing) {
  GenerationRequest request;
  request.deadline = kNow - std::chrono::seconds(1);
  worker::v1::Submit proto;
  ToProto(1, request, kNow, &proto);
  EXPECT_EQ(FromProto(proto, kNow)->deadline, kNow);
}

// --- What a broken or hostile peer may send ---

void ExpectRefused(const worker::v1::Submit& submit, const std::string& what) {
  const auto request = FromProto(submit, kNow);
  ASSERT_FALSE(request.ok());
  EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(request.status().message()), HasSubstr(what));
}

TEST_F(GenerationProtoTest, AnEmptySubmitIsRefused) { ExpectRefused({}, "sampling is missing"); }

TEST_F(GenerationProtoTest, UnpairedBiasIsRefused) {
  auto submit = GoodSubmit();
  submit.mutable_sampling()->add_bias_ids(3);
  ExpectRefused(submit, "logit_bias has 1 ids and 0 values");
}

TEST_F(GenerationProtoTest, TooMuchBiasIsRefused) {
  auto submit = GoodSubmit();
  for (int i = 0; i <= kMaxLogitBias; ++i) {
    submit.mutable_sampling()->add_bias_ids(i);
    submit.mutable_sampling()->add_bias_values(1);
  }
  ExpectRefused(submit, "logit_bias has 1025 entries");
}

TEST_F(GenerationProtoTest, TooManyStopIdsAreRefused) {
  auto submit = GoodSubmit();
  for (int i = 0; i <= kMaxStopTokenIds; ++i) submit.mutable_sampling()->add_stop_token_ids(i);
  ExpectRefused(submit, "stop_token_ids has 65 entries");
}

TEST_F(GenerationProtoTest, OverlongIdsAreRefused) {
  const std::string text(kMaxWireIdBytes + 1, 'x');
  auto submit = GoodSubmit();
  submit.set_request_id(text);
  ExpectRefused(submit, "request_id has 257 bytes");
  submit = GoodSubmit();
  submit.set_cache_salt(text);
  ExpectRefused(submit, "cache_salt has 257 bytes");
  submit = GoodSubmit();
  submit.set_session_id(text);
  ExpectRefused(submit, "session_id has 257 bytes");
}

TEST_F(GenerationProtoTest, TooManyResumedSamplesAreRefused) {
  auto submit = GoodSubmit();
  for (int i = 0; i <= kMaxWireSamples; ++i) submit.add_resumed();
  ExpectRefused(submit, "resumed has 17 entries");
}

TEST_F(GenerationProtoTest, UnknownEnumsAreRefused) {
  auto submit = GoodSubmit();
  submit.set_decoding(static_cast<worker::v1::DecodingMode>(77));
  ExpectRefused(submit, "decoding is 77");
  submit.set_decoding(worker::v1::DECODING_MODE_UNSPECIFIED);
  ExpectRefused(submit, "decoding is 0");
  submit.set_decoding(worker::v1::DECODING_MODE_DRAFT);
  submit.set_draft_length(17);
  ExpectRefused(submit, "draft_length is 17");
  submit.set_draft_length(-1);
  ExpectRefused(submit, "draft_length is -1");
  submit.set_draft_length(16);
  submit.set_draft_strategy(static_cast<worker::v1::DraftStrategy>(9));
  ExpectRefused(submit, "draft_strategy is 9");
  submit = GoodSubmit();
  submit.add_resumed()->set_finish(static_cast<worker::v1::FinishReason>(99));
  ExpectRefused(submit, "finish is 99");
}

TEST_F(GenerationProtoTest, ImpossibleDurationsAreRefused) {
  const auto with = [](int64_t seconds, int32_t nanos) {
    auto submit = GoodSubmit();
    submit.mutable_time_left()->set_seconds(seconds);
    submit.mutable_time_left()->set_nanos(nanos);
    return submit;
  };
  ExpectRefused(with(std::numeric_limits<int64_t>::max(), 0), "out of range");
  ExpectRefused(with(std::numeric_limits<int64_t>::min(), 0), "out of range");
  ExpectRefused(with(0, 1'000'000'000), "out of range");
  ExpectRefused(with(1, -1), "out of range");
  // The longest that can be said is longer than this clock goes: no deadline.
  EXPECT_EQ(FromProto(with(9'223'372'035, 0), kNow)->deadline, kNoDeadline);
}

TEST_F(GenerationProtoTest, DeltasOutOfRangeAreRefused) {
  worker::v1::Delta delta;
  delta.set_sample(-1);
  EXPECT_FALSE(FromProto(delta).ok());
  delta.set_sample(0);
  delta.set_first_index(-1);
  EXPECT_FALSE(FromProto(delta).ok());
  delta.set_first_index(0);
  delta.add_logprobs();
  EXPECT_FALSE(FromProto(delta).ok());
  delta.add_tokens(3);
  EXPECT_TRUE(FromProto(delta).ok());
  delta.mutable_logprobs(0)->add_top_ids(3);
  EXPECT_FALSE(FromProto(delta).ok());
}

TEST_F(GenerationProtoTest, NegativeUsageIsRefused) {
  worker::v1::Finished finished;
  finished.set_output_tokens(-1);
  absl::Status status;
  EXPECT_FALSE(FromProto(finished, &status).ok());
}

}  // namespace
}  // namespace paceline

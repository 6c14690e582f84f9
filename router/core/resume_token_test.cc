#include "router/core/resume_token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/escaping.h"

namespace paceline {
namespace {

constexpr int64_t kNow = 1'700'000'000;
constexpr int64_t kHour = 3600;

SipKey TestKey(uint8_t first) {
  SipKey key{};
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<uint8_t>(first + i);
  return key;
}

ResumeToken TestToken() {
  return {.seed = ~uint64_t{0} - 7,
          .model = "tiny",
          .fingerprint = "cpu/avx512/bf16",
          .request_hash = 0x1234567890abcdef,
          .issued_unix_sec = kNow};
}

// Vectors of the reference implementation: key 00..0f, message 00 01 02 ...
TEST(SipHashTest, ReferenceVectors) {
  auto hex = [](const SipTag& tag) {
    return absl::BytesToHexString(
        absl::string_view(reinterpret_cast<const char*>(tag.data()), tag.size()));
  };
  EXPECT_EQ(hex(SipHash24(TestKey(0), "")), "a3817f04ba25a8e66df67214c7550293");
  EXPECT_EQ(hex(SipHash24(TestKey(0), std::string(1, '\0'))), "da87c1d86b99af44347659119b22fc45");
}

TEST(ResumeTokenTest, RoundTrip) {
  const ResumeTokenCodec codec(TestKey(1));
  const auto parsed = codec.Parse(codec.Encode(TestToken()), kNow + 10, kHour);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, TestToken());
}

TEST(ResumeTokenTest, EveryFlippedBitAndCutIsRefused) {
  const ResumeTokenCodec codec(TestKey(1));
  std::string raw;
  ASSERT_TRUE(absl::WebSafeBase64Unescape(codec.Encode(TestToken()), &raw));
  for (size_t bit = 0; bit < raw.size() * 8; ++bit) {
    std::string bad = raw;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(codec.Parse(absl::WebSafeBase64Escape(bad), kNow, kHour).ok()) << bit;
  }
  for (size_t n = 0; n < raw.size(); ++n) {
    EXPECT_FALSE(codec.Parse(absl::WebSafeBase64Escape(raw.substr(0, n)), kNow, kHour).ok()) << n;
  }
  EXPECT_FALSE(codec.Parse(absl::WebSafeBase64Escape(raw + "x"), kNow, kHour).ok());
}

TEST(ResumeTokenTest, GarbageIsRefused) {
  const ResumeTokenCodec codec(TestKey(1));
  for (const std::string& bad : {std::string(""), std::string("!!!"), std::string(100000, 'A')}) {
    EXPECT_EQ(codec.Parse(bad, kNow, kHour).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(ResumeTokenTest, AnotherKeyIsRefused) {
  const std::string text = ResumeTokenCodec(TestKey(1)).Encode(TestToken());
  const auto parsed = ResumeTokenCodec(TestKey(2)).Parse(text, kNow, kHour);
  ASSERT_FALSE(parsed.ok());
  EXPECT_THAT(std::string(parsed.status().message()), testing::HasSubstr("--resume-key"));
}

TEST(ResumeTokenTest, OldAndFutureAreRefused) {
  const ResumeTokenCodec codec(TestKey(1));
  const std::string text = codec.Encode(TestToken());
  EXPECT_TRUE(codec.Parse(text, kNow + kHour, kHour).ok());
  EXPECT_FALSE(codec.Parse(text, kNow + kHour + 1, kHour).ok());
  EXPECT_FALSE(codec.Parse(text, kNow - 10000, kHour).ok());
}

TEST(ResumeTokenTest, ParseKey) {
  const auto key = ResumeTokenCodec::ParseKey(" 000102030405060708090a0b0c0d0e0f\n");
  ASSERT_TRUE(key.ok());
  EXPECT_EQ(*key, TestKey(0));
  EXPECT_FALSE(ResumeTokenCodec::ParseKey("0001").ok());
  EXPECT_FALSE(ResumeTokenCodec::ParseKey("zz0102030405060708090a0b0c0d0e0f").ok());
}

TEST(RequestHashTest, CoversWhatDecidesTokensOnly) {
  GenerationRequest base;
  base.request_id = "a";
  base.prompt = {1, 2, 3};
  const uint64_t h = RequestHash("m", base, {"x"});
  auto changed = [&](auto change) {
    GenerationRequest r = base;
    change(&r);
    return RequestHash("m", r, {"x"}) != h;
  };
  EXPECT_TRUE(changed([](auto* r) { r->prompt.push_back(4); }));
  EXPECT_TRUE(changed([](auto* r) { r->num_samples = 2; }));
  EXPECT_TRUE(changed([](auto* r) { r->sampling.temperature = 0.5f; }));
  EXPECT_TRUE(changed([](auto* r) { r->sampling.top_k = 7; }));
  EXPECT_TRUE(changed([](auto* r) { r->sampling.max_tokens = 17; }));
  EXPECT_TRUE(changed([](auto* r) { r->sampling.ignore_eos = true; }));
  EXPECT_TRUE(changed([](auto* r) { r->sampling.logit_bias = {{1, 2.0f}}; }));
  EXPECT_TRUE(changed([](auto* r) { r->sampling.stop_token_ids = {5}; }));
  EXPECT_NE(RequestHash("m2", base, {"x"}), h);
  EXPECT_NE(RequestHash("m", base, {"y"}), h);
  EXPECT_NE(RequestHash("m", base, {}), h);
  EXPECT_FALSE(changed([](auto* r) { r->request_id = "b"; }));
  EXPECT_FALSE(changed([](auto* r) { r->session_id = "s"; }));
  EXPECT_FALSE(changed([](auto* r) { r->priority = 3; }));
  EXPECT_FALSE(changed([](auto* r) { r->sampling.seed = 3; }));
}

}  // namespace
}  // namespace paceline

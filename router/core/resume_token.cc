#include "router/core/resume_token.h"

#include <bit>
#include <cctype>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/hash.h"

namespace paceline {
namespace {

constexpr char kVersion = 1;
constexpr size_t kMaxTokenBytes = 4096;
constexpr int64_t kClockSkewSec = 300;  // replicas' clocks may differ by this much

void PutU64(uint64_t v, std::string* out) {
  for (int i = 0; i < 8; ++i) out->push_back(static_cast<char>(v >> (8 * i)));
}

void PutString(const std::string& s, std::string* out) {
  const uint16_t size = static_cast<uint16_t>(std::min<size_t>(s.size(), 1024));
  out->push_back(static_cast<char>(size & 0xff));
  out->push_back(static_cast<char>(size >> 8));
  out->append(s, 0, size);
}

// Reads what the writers above wrote; sticks at the first shortage.
class Reader {
 public:
  explicit Reader(std::string_view data) : data_(data) {}
  uint64_t U64() {
    uint64_t v = 0;
    const std::string_view b = Bytes(8);
    for (size_t i = 0; i < b.size(); ++i) v |= static_cast<uint64_t>(uint8_t(b[i])) << (8 * i);
    return v;
  }
  std::string String() {
    const std::string_view b = Bytes(2);
    if (!ok_) return "";
    return std::string(Bytes(static_cast<uint8_t>(b[0]) | static_cast<uint8_t>(b[1]) << 8));
  }
  bool AtEnd() const { return ok_ && data_.empty(); }

 private:
  std::string_view Bytes(size_t n) {
    if (!ok_ || data_.size() < n) {
      ok_ = false;
      return {};
    }
    const std::string_view b = data_.substr(0, n);
    data_.remove_prefix(n);
    return b;
  }
  std::string_view data_;
  bool ok_ = true;
};

bool EqualInConstantTime(std::string_view a, const SipTag& b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < b.size(); ++i) difference |= static_cast<uint8_t>(a[i]) ^ b[i];
  return difference == 0;
}

uint64_t HashFloat(uint64_t h, float v) { return HashCombine(h, std::bit_cast<uint32_t>(v)); }

}  // namespace

uint64_t RequestHash(const std::string& model, const GenerationRequest& request,
                     const std::vector<std::string>& stop_strings) {
  const SamplingParams& s = request.sampling;
  uint64_t h = HashBytes(model, kSamplerVersion);
  h = HashTokens(request.prompt, HashCombine(h, request.prompt.size()));
  h = HashCombine(h, static_cast<uint64_t>(request.num_samples));
  for (float v : {s.temperature, s.top_p, s.min_p, s.repetition_penalty, s.presence_penalty,
                  s.frequency_penalty}) {
    h = HashFloat(h, v);
  }
  for (int32_t v : {s.top_k, s.max_tokens, s.min_tokens, s.top_logprobs, int32_t{s.ignore_eos}}) {
    h = HashCombine(h, static_cast<uint64_t>(static_cast<int64_t>(v)));
  }
  h = HashCombine(h, s.logit_bias.size());
  for (const auto& [token, bias] : s.logit_bias) {
    h = HashFloat(HashCombine(h, static_cast<uint64_t>(token)), bias);
  }
  h = HashTokens(s.stop_token_ids, HashCombine(h, s.stop_token_ids.size()));
  for (const std::string& stop : stop_strings) h = HashBytes(stop, h);
  return h;
}

absl::StatusOr<SipKey> ResumeTokenCodec::ParseKey(std::string_view hex) {
  while (!hex.empty() && std::isspace(static_cast<uint8_t>(hex.front()))) hex.remove_prefix(1);
  while (!hex.empty() && std::isspace(static_cast<uint8_t>(hex.back()))) hex.remove_suffix(1);
  SipKey key{};
  bool good = hex.size() == 2 * key.size();
  for (char c : hex) good = good && std::isxdigit(static_cast<uint8_t>(c));
  if (!good) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a resume key is 32 hexadecimal digits; this has ", hex.size(), " characters"));
  }
  const std::string bytes = absl::HexStringToBytes(absl::string_view(hex.data(), hex.size()));
  std::memcpy(key.data(), bytes.data(), key.size());
  return key;
}

std::string ResumeTokenCodec::Encode(const ResumeToken& token) const {
  std::string body(1, kVersion);
  PutU64(token.seed, &body);
  PutU64(token.request_hash, &body);
  PutU64(static_cast<uint64_t>(token.issued_unix_sec), &body);
  PutString(token.model, &body);
  PutString(token.fingerprint, &body);
  const SipTag tag = SipHash24(key_, body);
  body.append(reinterpret_cast<const char*>(tag.data()), tag.size());
  return absl::WebSafeBase64Escape(body);
}

absl::StatusOr<ResumeToken> ResumeTokenCodec::Parse(std::string_view text, int64_t now_unix_sec,
                                                    int64_t max_age_sec) const {
  std::string raw;
  if (text.size() > kMaxTokenBytes ||
      !absl::WebSafeBase64Unescape(absl::string_view(text.data(), text.size()), &raw) ||
      raw.size() <= sizeof(SipTag)) {
    return absl::InvalidArgumentError("it is not a resume token");
  }
  const std::string_view body(raw.data(), raw.size() - sizeof(SipTag));
  if (!EqualInConstantTime(std::string_view(raw).substr(body.size()), SipHash24(key_, body))) {
    return absl::InvalidArgumentError("it was changed, or made under another key (--resume-key)");
  }
  if (body[0] != kVersion) return absl::InvalidArgumentError("it is of another version");
  Reader reader(body.substr(1));
  ResumeToken token;
  token.seed = reader.U64();
  token.request_hash = reader.U64();
  token.issued_unix_sec = static_cast<int64_t>(reader.U64());
  token.model = reader.String();
  token.fingerprint = reader.String();
  if (!reader.AtEnd()) return absl::InvalidArgumentError("it is malformed");
  if (token.issued_unix_sec > now_unix_sec + kClockSkewSec) {
    return absl::InvalidArgumentError("it was issued in the future");
  }
  if (now_unix_sec - token.issued_unix_sec > max_age_sec) {
    return absl::InvalidArgumentError(absl::StrCat("it is older than ", max_age_sec, " seconds"));
  }
  return token;
}

}  // namespace paceline

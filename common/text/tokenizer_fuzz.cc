// libFuzzer: a tokenizer.json, a zero byte, and a text for it. Without a zero byte all of it is a
// text for a small file of ours, byte-level or SentencePiece-like by its first byte.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/strings/str_replace.h"
#include "common/check.h"
#include "common/text/stream_detokenizer.h"
#include "common/text/test_texts.h"
#include "common/text/tokenizer.h"

namespace paceline {
namespace {

void Use(const Tokenizer& tokenizer, std::string_view text, bool lossless) {
  const EncodeOptions plain = {.add_special_tokens = false, .parse_special = false};
  const auto tokens = tokenizer.Encode(text, plain);
  if (!tokens.ok()) return;
  std::string bytes;
  for (const TokenId token : *tokens) {
    CHECK(token >= 0 && token < tokenizer.vocab_size());
    bytes += tokenizer.TokenBytes(token);
  }
  if (lossless) {
    const std::string spaced = absl::StrReplaceAll(std::string(text), {{"▁", " "}});
    CHECK(bytes == text || bytes == " " + spaced || spaced.empty());
  }
  StreamDetokenizer stream(&tokenizer, {.skip_special = false});
  std::string decoded;
  for (const TokenId token : *tokens) decoded += stream.Push(token);
  CHECK(IsUtf8(decoded));
  decoded += stream.Flush();
  CHECK(decoded == tokenizer.Decode(*tokens));
  if (const auto special = tokenizer.Encode(text); special.ok()) tokenizer.Decode(*special, true);
}

}  // namespace
}  // namespace paceline

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace paceline;
  static const auto bytes = Tokenizer::FromJson(testing::ByteLevelFile().dump());
  static const auto pieces = Tokenizer::FromJson(testing::SentencePieceFile().dump());
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = input.find('\0');
  if (cut == input.npos) {
    const bool byte_level = !input.empty() && (input[0] & 1) != 0;
    Use(byte_level ? **bytes : **pieces, input, /*lossless=*/true);
    return 0;
  }
  const auto tokenizer = Tokenizer::FromJson(input.substr(0, cut), "fuzz");
  if (tokenizer.ok()) Use(**tokenizer, input.substr(cut + 1), /*lossless=*/false);
  return 0;
}

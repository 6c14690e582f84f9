// Text to token ids and back, as the model's tokenizer.json (Hugging Face) says: byte-level BPE
// (GPT-2, Llama 3, Qwen) and BPE over characters with byte fallback (Llama 2, Phi-3). What a file
// asks and is not supported is refused by name. Its members truncation and padding concern batches
// and are not read.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/types/sampling_params.h"

namespace paceline {

class TokenDecoder;

struct EncodeOptions {
  bool add_special_tokens = true;  // what the post-processor puts around a text: begin of text, ...
  bool parse_special = true;       // "<|eot|>" in the text is the token; else text like any other
};

// Immutable after loading; may be used by many threads at once.
class Tokenizer {
 public:
  // A tokenizer.json, or a folder that has one. NOT_FOUND or UNAVAILABLE: it cannot be read.
  // INVALID_ARGUMENT (damaged) and UNIMPLEMENTED (not supported) say file, place and reason.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(
      std::string_view json, const std::string& name = "tokenizer.json");
  ~Tokenizer();

  // Bytes that are not UTF-8 are taken as they are: a byte-level vocabulary, or one with byte
  // fallback, loses none (TokenBytes gives them back; a mark for spaces, as of SentencePiece, comes
  // back as a space). INVALID_ARGUMENT: the vocabulary has no token for a character.
  // RESOURCE_EXHAUSTED: the file's patterns take too long on this text, or it has more than
  // kMaxTextBytes.
  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text,
                                              const EncodeOptions& options = {}) const;
  static constexpr size_t kMaxTextBytes = size_t{1} << 28;

  // UTF-8 always: ill-formed bytes become U+FFFD. Ids without a token add nothing.
  std::string Decode(std::span<const TokenId> tokens, bool skip_special = false) const;

  // What the token adds in the middle of a text; maybe not whole characters. Empty for an id
  // without a token.
  std::string_view TokenBytes(TokenId token) const;

  // As the file writes it ("Ġthe", "<0x0A>"); empty for an id without a token.
  std::string_view TokenName(TokenId token) const;

  // Of a token as the file writes it; -1: none.
  TokenId TokenOf(const std::string& name) const;

  bool IsSpecial(TokenId token) const;

  // Every token is below it; ids without a token may be too.
  int32_t vocab_size() const;

  // A stable hash of tokens, ids and merges, 16 hexadecimal digits: equal where ids mean the same
  // text.
  const std::string& fingerprint() const;

  const TokenDecoder& decoder() const;
  bool IsAdded(TokenId token) const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<Parts> parts);

  std::unique_ptr<const Parts> parts_;
};

}  // namespace paceline

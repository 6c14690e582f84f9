// Token ids in, text out, while a generation runs.
#pragma once

#include <span>
#include <string>

#include "common/text/tokenizer.h"
#include "common/text/utf8.h"

namespace paceline {

struct DetokenizeOptions {
  bool skip_special = true;
  // False: the tokens continue a text (an output behind its prompt), so that the space before the
  // first word is kept, where a vocabulary writes one before every text.
  bool at_start = true;
};

// What Push and Flush return never ends within a character, and all of it together, at_start, is
// Tokenizer::Decode of all tokens together, however they were cut into calls. One thread at a time.
class StreamDetokenizer {
 public:
  // `tokenizer` must outlive it.
  explicit StreamDetokenizer(const Tokenizer* tokenizer, const DetokenizeOptions& options = {});

  std::string Push(TokenId token);
  std::string Push(std::span<const TokenId> tokens);

  // The end: a character that is not whole becomes U+FFFD.
  std::string Flush();

 private:
  void Append(TokenId token, std::string* text);
  std::string Strip(std::string text);

  const Tokenizer* tokenizer_;
  DetokenizeOptions options_;
  Utf8Stream characters_;
  bool first_;        // no token yet
  size_t strip_ = 0;  // of the decoder's leading strips, the one at work
  int stripped_ = 0;  // characters that it has taken
};

}  // namespace paceline

#include "common/text/stream_detokenizer.h"

#include <utility>

#include "common/text/token_decoder.h"

namespace paceline {

StreamDetokenizer::StreamDetokenizer(const Tokenizer* tokenizer, const DetokenizeOptions& options)
    : tokenizer_(tokenizer), options_(options), first_(options.at_start) {
  if (!options.at_start) strip_ = tokenizer->decoder().leading_strips().size();
}

void StreamDetokenizer::Append(TokenId token, std::string* text) {
  if (options_.skip_special && tokenizer_->IsSpecial(token)) return;
  if (tokenizer_->TokenName(token).empty()) return;
  if (std::exchange(first_, false)) {
    const std::string bytes = tokenizer_->decoder().BytesOf(tokenizer_->TokenName(token), true,
                                                            tokenizer_->IsAdded(token));
    characters_.Push(bytes, text);
  } else {
    characters_.Push(tokenizer_->TokenBytes(token), text);
  }
}

std::string StreamDetokenizer::Strip(std::string text) {
  const auto& strips = tokenizer_->decoder().leading_strips();
  while (strip_ < strips.size() && !text.empty()) {
    if (stripped_ < strips[strip_].count && text.starts_with(strips[strip_].character)) {
      text.erase(0, strips[strip_].character.size());
      ++stripped_;
    } else {
      ++strip_;
      stripped_ = 0;
    }
  }
  return text;
}

std::string StreamDetokenizer::Push(TokenId token) { return Push(std::span(&token, 1)); }

std::string StreamDetokenizer::Push(std::span<const TokenId> tokens) {
  std::string text;
  for (const TokenId token : tokens) Append(token, &text);
  return Strip(std::move(text));
}

std::string StreamDetokenizer::Flush() {
  std::string text;
  characters_.Flush(&text);
  return Strip(std::move(text));
}

}  // namespace paceline

#include "router/service/sample_text_stream.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace paceline {

SampleTextStream::SampleTextStream(const Tokenizer* tokenizer,
                                   std::shared_ptr<const StopStrings> stops)
    : detokenizer_(tokenizer, {.skip_special = true, .at_start = false}),
      matcher_(std::move(stops)) {}

SampleText::Piece SampleTextStream::Push(std::span<const TokenId> tokens) {
  Piece piece;
  for (const TokenId token : tokens) {
    if (stopped_) break;
    ++piece.kept;
    stopped_ = matcher_.Push(detokenizer_.Push(token), &piece.text);
  }
  piece.stopped = stopped_;
  return piece;
}

std::string SampleTextStream::Flush() {
  std::string text;
  if (stopped_) return text;
  stopped_ = matcher_.Push(detokenizer_.Flush(), &text);
  if (!stopped_) matcher_.Flush(&text);
  return text;
}

absl::StatusOr<ResumedSampleText::State> ResumedSampleText::Replay(
    std::unique_ptr<SampleText> text, std::span<const TokenId> tokens,
    std::optional<int64_t> text_bytes, bool ended) {
  State state;
  Piece piece = text->Push(tokens);
  state.text = std::move(text);
  state.stopped = piece.stopped;
  if (piece.kept < static_cast<int32_t>(tokens.size())) {
    return absl::InvalidArgumentError(absl::StrCat("a stop string ends the sample after ",
                                                   piece.kept, " tokens; it has ", tokens.size()));
  }
  if (ended) piece.text += state.text->Flush();
  if (!text_bytes.has_value()) return state;
  const auto size = static_cast<int64_t>(piece.text.size());
  if (*text_bytes < 0 || *text_bytes > size) {
    return absl::InvalidArgumentError(
        absl::StrCat("it is ", *text_bytes, "; these tokens give ", size, " bytes of text"));
  }
  state.owed = piece.text.substr(*text_bytes);
  if (!IsUtf8(state.owed)) {
    return absl::InvalidArgumentError(
        absl::StrCat("it is ", *text_bytes, ", which lies within a character"));
  }
  return state;
}

SampleText::Piece ResumedSampleText::Push(std::span<const TokenId> tokens) {
  if (!std::exchange(replayed_, true)) {
    return {.kept = static_cast<int32_t>(tokens.size()), .text = "", .stopped = state_.stopped};
  }
  Piece piece = state_.text->Push(tokens);
  piece.text.insert(0, std::exchange(state_.owed, {}));
  return piece;
}

std::string ResumedSampleText::Flush() {
  return std::exchange(state_.owed, {}) + state_.text->Flush();
}

}  // namespace paceline

// The text of one sample: detokenizer, then stop strings.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "common/text/stop_matcher.h"
#include "common/text/stream_detokenizer.h"
#include "common/types/generation.h"
#include "router/core/sample_text.h"

namespace paceline {

// Text of an output: it continues a prompt, and special tokens add nothing to it. A character that
// is cut off at the end is U+FFFD; where that completes a stop string, the text ends before it.
class SampleTextStream final : public SampleText {
 public:
  // The tokenizer outlives it; `stops` may be null.
  SampleTextStream(const Tokenizer* tokenizer, std::shared_ptr<const StopStrings> stops);

  Piece Push(std::span<const TokenId> tokens) override;
  std::string Flush() override;

 private:
  StreamDetokenizer detokenizer_;
  StopMatcher matcher_;
  bool stopped_ = false;
};

// The text of a sample whose first tokens a client has already: those were pushed before it goes to
// the router core, which pushes them once more; that push is answered from memory. Text of them
// that the client lacks comes with the next piece.
class ResumedSampleText final : public SampleText {
 public:
  // What the tokens received say.
  struct State {
    std::unique_ptr<SampleText> text;  // behind them
    std::string owed;                  // text of them that the client lacks
    bool stopped = false;              // they complete a stop string
  };
  // `text_bytes`: of the text, as the client has it; none: all that its tokens had given. `ended`:
  // nothing follows them, so that their text is whole.
  // INVALID_ARGUMENT: tokens behind a stop string, or text that these tokens cannot have given.
  static absl::StatusOr<State> Replay(std::unique_ptr<SampleText> text,
                                      std::span<const TokenId> tokens,
                                      std::optional<int64_t> text_bytes, bool ended);

  explicit ResumedSampleText(State state) : state_(std::move(state)) {}

  Piece Push(std::span<const TokenId> tokens) override;
  std::string Flush() override;

 private:
  State state_;
  bool replayed_ = false;
};

}  // namespace paceline

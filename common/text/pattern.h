// What a tokenizer.json searches text for: a literal string, or a regular expression (PCRE2 with
// Unicode properties).
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace paceline {

// Immutable; may be used by many threads at once.
class Pattern {
 public:
  // INVALID_ARGUMENT with PCRE2's reason and the offset within the expression.
  static absl::StatusOr<Pattern> Regex(const std::string& expression);
  static Pattern Literal(std::string text);

  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;
  ~Pattern();

  // Calls `found(begin, end)` for each match, left to right and without overlap; empty matches
  // count. `text` is UTF-8. RESOURCE_EXHAUSTED where a regular expression backtracks beyond its
  // limits (steps per match, memory, seconds per text): the text is then not tokenized.
  absl::Status ForEachMatch(std::string_view text,
                            absl::FunctionRef<void(size_t begin, size_t end)> found) const;

 private:
  struct Compiled;
  Pattern();

  std::string literal_;
  std::unique_ptr<Compiled> regex_;  // null: literal
};

}  // namespace paceline

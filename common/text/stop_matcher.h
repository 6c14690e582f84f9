// Finds the first of several stop strings in a text that comes in pieces.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace paceline {

// The strings, prepared once and shared by the samples of a request. Immutable.
class StopStrings {
 public:
  // None of them empty, each at most 64 KiB.
  explicit StopStrings(std::vector<std::string> strings);

  const std::vector<std::string>& strings() const { return strings_; }

 private:
  friend class StopMatcher;
  // Of each string and each of its prefixes but the empty one, the length of the longest proper
  // prefix that is also a suffix (Knuth, Morris and Pratt 1977).
  std::vector<std::string> strings_;
  std::vector<std::vector<uint16_t>> borders_;
};

// The match that is complete first wins; of those that end together, the longest. What may still
// become one is held back, and nothing else, so that the result does not depend on how the text was
// cut into pieces. Where text and strings are UTF-8, what comes out ends between characters. One
// thread at a time.
class StopMatcher {
 public:
  // `strings` may be null: nothing is held back and nothing stops.
  explicit StopMatcher(std::shared_ptr<const StopStrings> strings);

  // Appends to *out what is certain to lie before any match. True: a match is complete; the text
  // ends before it, and nothing may be pushed behind it.
  bool Push(std::string_view text, std::string* out);

  // The end of a text without a match: appends what was held back.
  void Flush(std::string* out);

 private:
  std::shared_ptr<const StopStrings> strings_;
  std::vector<uint16_t> matched_;  // of each string, how long a prefix ends the text so far
  std::string held_;               // the longest of those
};

}  // namespace paceline

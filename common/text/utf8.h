// UTF-8 as The Unicode Standard defines it (table 3-7): no overlong forms, no surrogates, nothing
// above U+10FFFF. Ill-formed bytes are replaced as the standard recommends: one U+FFFD for each
// maximal subpart of a character.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace paceline {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";

// What begins at one place of a text.
struct Utf8Unit {
  enum class Kind { kCharacter, kIllFormed, kCutOff };  // kCutOff: the text ends within a character
  Kind kind = Kind::kIllFormed;
  size_t size = 0;         // bytes, at least 1
  char32_t character = 0;  // of kCharacter
};

// `pos` < text.size().
Utf8Unit DecodeUtf8(std::string_view text, size_t pos);

void AppendUtf8(char32_t character, std::string* out);

bool IsUtf8(std::string_view text);

// Bytes in pieces, whole characters out: what is appended never ends within a character, and all of
// it together is the well-formed text of all bytes together.
class Utf8Stream {
 public:
  void Push(std::string_view bytes, std::string* out);
  void Flush(std::string* out);  // a character cut off at the end becomes U+FFFD

 private:
  std::string pending_;  // at most 3 bytes: the beginning of a character
};

// Bytes that are not UTF-8 travel through code that takes characters only (patterns, normal forms)
// as characters of a private-use range, one for each byte: EscapeBytes makes well-formed text of
// any bytes, and UnescapeBytes undoes it. Text that uses the range itself is escaped too.
bool NeedsEscape(std::string_view text);
std::string EscapeBytes(std::string_view text);
std::string UnescapeBytes(std::string_view text);

// The byte that an escape character stands for, or -1.
int EscapedByte(char32_t character);

}  // namespace paceline

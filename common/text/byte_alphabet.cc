#include "common/text/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "common/text/utf8.h"

namespace paceline {
namespace {

constexpr int kCharacters = 0x144;  // the greatest is U+0143

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int, kCharacters> byte{};
};

constexpr Alphabet MakeAlphabet() {
  Alphabet a;
  a.byte.fill(-1);
  char32_t next = 256;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    a.character[b] = printable ? static_cast<char32_t>(b) : next++;
    a.byte[a.character[b]] = b;
  }
  return a;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::string ToByteAlphabet(std::string_view bytes) {
  std::string out;
  for (char c : bytes) AppendUtf8(kAlphabet.character[static_cast<uint8_t>(c)], &out);
  return out;
}

std::optional<std::string> FromByteAlphabet(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Unit unit = DecodeUtf8(text, pos);
    if (unit.kind != Utf8Unit::Kind::kCharacter || unit.character >= kCharacters) {
      return std::nullopt;
    }
    const int byte = kAlphabet.byte[unit.character];
    if (byte < 0) return std::nullopt;
    out.push_back(static_cast<char>(byte));
    pos += unit.size;
  }
  return out;
}

}  // namespace paceline

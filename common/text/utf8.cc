#include "common/text/utf8.h"

#include <cstdint>
#include <cstring>

namespace paceline {
namespace {

constexpr char32_t kEscapeBase = 0x10fe00;  // + byte, 0x80..0xff: private use throughout

// The well-formed continuations of a lead byte.
struct Lead {
  size_t size = 0;  // of the character; 0 = not a lead byte
  uint8_t low = 0x80;
  uint8_t high = 0xbf;  // of the second byte
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xc2) return {0};
  if (byte < 0xe0) return {2};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};
  if (byte < 0xf0) return {3};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte < 0xf4) return {4};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {0};
}

// Bytes of ASCII from `pos` on, in whole words of eight: a fast way over most texts.
size_t SkipAscii(std::string_view text, size_t pos) {
  while (pos + 8 <= text.size()) {
    uint64_t word = 0;
    std::memcpy(&word, text.data() + pos, 8);
    if ((word & 0x8080808080808080ull) != 0) break;
    pos += 8;
  }
  return pos;
}

}  // namespace

Utf8Unit DecodeUtf8(std::string_view text, size_t pos) {
  const auto first = static_cast<uint8_t>(text[pos]);
  const Lead lead = LeadOf(first);
  if (lead.size == 0) return {Utf8Unit::Kind::kIllFormed, 1, 0};
  if (lead.size == 1) return {Utf8Unit::Kind::kCharacter, 1, first};
  char32_t character = first & (0x7f >> lead.size);
  for (size_t i = 1; i < lead.size; ++i) {
    if (pos + i >= text.size()) return {Utf8Unit::Kind::kCutOff, i, 0};
    const auto byte = static_cast<uint8_t>(text[pos + i]);
    const uint8_t low = i == 1 ? lead.low : 0x80;
    const uint8_t high = i == 1 ? lead.high : 0xbf;
    if (byte < low || byte > high) return {Utf8Unit::Kind::kIllFormed, i, 0};
    character = (character << 6) | (byte & 0x3f);
  }
  return {Utf8Unit::Kind::kCharacter, lead.size, character};
}

void AppendUtf8(char32_t c, std::string* out) {
  const auto push = [&](char32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    push(c);
  } else if (c < 0x800) {
    push(0xc0 | (c >> 6));
    push(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    push(0xe0 | (c >> 12));
    push(0x80 | ((c >> 6) & 0x3f));
    push(0x80 | (c & 0x3f));
  } else {
    push(0xf0 | (c >> 18));
    push(0x80 | ((c >> 12) & 0x3f));
    push(0x80 | ((c >> 6) & 0x3f));
    push(0x80 | (c & 0x3f));
  }
}

bool IsUtf8(std::string_view text) {
  for (size_t pos = SkipAscii(text, 0); pos < text.size(); pos = SkipAscii(text, pos)) {
    const Utf8Unit unit = DecodeUtf8(text, pos);
    if (unit.kind != Utf8Unit::Kind::kCharacter) return false;
    pos += unit.size;
  }
  return true;
}

void Utf8Stream::Push(std::string_view bytes, std::string* out) {
  std::string joined;
  if (!pending_.empty()) {
    joined = pending_ + std::string(bytes);
    pending_.clear();
    bytes = joined;
  }
  for (size_t pos = 0; pos < bytes.size();) {
    const size_t ascii = SkipAscii(bytes, pos);
    out->append(bytes.substr(pos, ascii - pos));
    pos = ascii;
    if (pos == bytes.size()) break;
    const Utf8Unit unit = DecodeUtf8(bytes, pos);
    if (unit.kind == Utf8Unit::Kind::kCutOff) {
      pending_ = bytes.substr(pos);
      break;
    }
    const bool whole = unit.kind == Utf8Unit::Kind::kCharacter;
    out->append(whole ? bytes.substr(pos, unit.size) : kReplacementCharacter);
    pos += unit.size;
  }
}

void Utf8Stream::Flush(std::string* out) {
  if (!pending_.empty()) out->append(kReplacementCharacter);
  pending_.clear();
}

int EscapedByte(char32_t character) {
  const bool escape = character >= kEscapeBase + 0x80 && character <= kEscapeBase + 0xff;
  return escape ? static_cast<int>(character - kEscapeBase) : -1;
}

bool NeedsEscape(std::string_view text) {
  for (size_t pos = SkipAscii(text, 0); pos < text.size(); pos = SkipAscii(text, pos)) {
    const Utf8Unit unit = DecodeUtf8(text, pos);
    if (unit.kind != Utf8Unit::Kind::kCharacter || EscapedByte(unit.character) >= 0) return true;
    pos += unit.size;
  }
  return false;
}

std::string EscapeBytes(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Unit unit = DecodeUtf8(text, pos);
    if (unit.kind == Utf8Unit::Kind::kCharacter && EscapedByte(unit.character) < 0) {
      out.append(text.substr(pos, unit.size));
    } else {
      for (size_t i = 0; i < unit.size; ++i) {
        AppendUtf8(kEscapeBase + static_cast<uint8_t>(text[pos + i]), &out);
      }
    }
    pos += unit.size;
  }
  return out;
}

std::string UnescapeBytes(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Unit unit = DecodeUtf8(text, pos);
    const int byte = unit.kind == Utf8Unit::Kind::kCharacter ? EscapedByte(unit.character) : -1;
    if (byte >= 0) {
      out.push_back(static_cast<char>(byte));
    } else {
      out.append(text.substr(pos, unit.size));
    }
    pos += unit.size;
  }
  return out;
}

}  // namespace paceline

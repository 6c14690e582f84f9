// GPT-2's alphabet: a printable character for each byte, so that a vocabulary of byte strings can
// be written as text. (Radford et al. 2019; a byte that is printable Latin-1 stands for itself, the
// others get U+0100 and up in order.)
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace paceline {

std::string ToByteAlphabet(std::string_view bytes);

// Nothing where `text` has a character outside the alphabet.
std::optional<std::string> FromByteAlphabet(std::string_view text);

}  // namespace paceline

// SipHash-2-4 with a 128-bit tag (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012):
// a keyed MAC for short strings.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace paceline {

using SipKey = std::array<uint8_t, 16>;
using SipTag = std::array<uint8_t, 16>;

SipTag SipHash24(const SipKey& key, std::string_view message);

}  // namespace paceline

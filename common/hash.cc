#include "common/hash.h"

#include <cstring>

namespace paceline {

uint64_t HashBytes(std::string_view bytes, uint64_t seed) {
  uint64_t h = HashCombine(seed, bytes.size());
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    h = HashCombine(h, word);
  }
  uint64_t tail = 0;
  if (i < bytes.size()) std::memcpy(&tail, bytes.data() + i, bytes.size() - i);
  return HashCombine(h, tail);
}

uint64_t HashTokens(std::span<const int32_t> tokens, uint64_t seed) {
  uint64_t h = seed;
  for (int32_t t : tokens) h = HashCombine(h, static_cast<uint32_t>(t));
  return h;
}

Hash128 HashBlock(const Hash128& parent, std::span<const int32_t> tokens) {
  return Hash128{.hi = HashTokens(tokens, parent.hi ^ 0x8f14e45fceea167aull),
                 .lo = HashTokens(tokens, parent.lo)};
}

uint64_t PrefixSeed(std::string_view cache_salt) { return HashBytes(cache_salt, 0x70616365u); }

}  // namespace paceline

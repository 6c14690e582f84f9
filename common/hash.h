// Non-cryptographic hashes with fixed outputs: the same on every machine and in every build, so
// that they may cross the network (prefix chunks, draft prefixes) and be stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace paceline {

// A bijective mix of 64 bits (the finaliser of SplitMix64, Steele et al. 2014).
constexpr uint64_t Mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

constexpr uint64_t HashCombine(uint64_t seed, uint64_t value) {
  return Mix64(seed ^ Mix64(value + 0x632be59bd9b4e019ull));
}

uint64_t HashBytes(std::string_view bytes, uint64_t seed = 0);

// The hash of a token sequence as a left fold, so that HashTokens(b, HashTokens(a)) is the hash of
// the concatenation a + b.
uint64_t HashTokens(std::span<const int32_t> tokens, uint64_t seed = 0);

struct Hash128 {
  uint64_t hi = 0;
  uint64_t lo = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

// For hash maps: the value is a good hash already.
struct Hash128Hasher {
  size_t operator()(const Hash128& h) const { return static_cast<size_t>(h.lo); }
};

// Key of a block of tokens behind `parent`: two independent folds of 64 bits.
Hash128 HashBlock(const Hash128& parent, std::span<const int32_t> tokens);

// Router and worker summarise cached prefixes by the hashes of their whole chunks of this many
// tokens: chunk k's hash is HashTokens of the first (k + 1) * kPrefixChunk tokens, seeded by
// PrefixSeed(cache_salt).
inline constexpr int kPrefixChunk = 64;
uint64_t PrefixSeed(std::string_view cache_salt);

}  // namespace paceline

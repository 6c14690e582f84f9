#include "router/core/siphash.h"

#include <bit>

namespace paceline {
namespace {

uint64_t LoadLittle(const uint8_t* p, int bytes = 8) {
  uint64_t v = 0;
  for (int i = 0; i < bytes; ++i) v |= static_cast<uint64_t>(p[i]) << (8 * i);
  return v;
}

void StoreLittle(uint64_t v, uint8_t* p) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<uint8_t>(v >> (8 * i));
}

struct State {
  uint64_t v0, v1, v2, v3;

  void Rounds(int n) {
    for (int i = 0; i < n; ++i) {
      v0 += v1, v1 = std::rotl(v1, 13) ^ v0, v0 = std::rotl(v0, 32);
      v2 += v3, v3 = std::rotl(v3, 16) ^ v2;
      v0 += v3, v3 = std::rotl(v3, 21) ^ v0;
      v2 += v1, v1 = std::rotl(v1, 17) ^ v2, v2 = std::rotl(v2, 32);
    }
  }
  void Absorb(uint64_t word) {
    v3 ^= word;
    Rounds(2);
    v0 ^= word;
  }
  uint64_t Fold() const { return v0 ^ v1 ^ v2 ^ v3; }
};

}  // namespace

SipTag SipHash24(const SipKey& key, std::string_view message) {
  const uint64_t k0 = LoadLittle(key.data()), k1 = LoadLittle(key.data() + 8);
  State s{k0 ^ 0x736f6d6570736575ull, k1 ^ 0x646f72616e646f6dull ^ 0xee, k0 ^ 0x6c7967656e657261ull,
          k1 ^ 0x7465646279746573ull};
  const auto* data = reinterpret_cast<const uint8_t*>(message.data());
  const size_t whole = message.size() / 8 * 8;
  for (size_t i = 0; i < whole; i += 8) s.Absorb(LoadLittle(data + i));
  s.Absorb(static_cast<uint64_t>(message.size() & 0xff) << 56 |
           LoadLittle(data + whole, static_cast<int>(message.size() - whole)));
  SipTag tag;
  s.v2 ^= 0xee;
  s.Rounds(4);
  StoreLittle(s.Fold(), tag.data());
  s.v1 ^= 0xdd;
  s.Rounds(4);
  StoreLittle(s.Fold(), tag.data() + 8);
  return tag;
}

}  // namespace paceline

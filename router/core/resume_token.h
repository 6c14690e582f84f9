// What a client needs to go on after its router died: the state that is not in its request, under a
// MAC, so that any replica with the same key can trust it. The bytes are printable (base64url).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/types/generation.h"
#include "router/core/siphash.h"

namespace paceline {

struct ResumeToken {
  uint64_t seed = 0;  // given or drawn
  std::string model;
  std::string fingerprint;      // numerics of the worker that made the first token
  uint64_t request_hash = 0;    // RequestHash of the original request
  int64_t issued_unix_sec = 0;  // wall clock: the token may be read on another machine
  friend bool operator==(const ResumeToken&, const ResumeToken&) = default;
};

// Covers whatever decides the tokens (model, prompt, samples, sampling but for the seed, stop
// strings) and nothing else: request id, priority, session and deadline may change on a resume.
uint64_t RequestHash(const std::string& model, const GenerationRequest& request,
                     const std::vector<std::string>& stop_strings);

class ResumeTokenCodec {
 public:
  // All replicas share the key, else a token is good at its own router only.
  explicit ResumeTokenCodec(const SipKey& key) : key_(key) {}

  // 32 hexadecimal digits (white space around them is ignored).
  static absl::StatusOr<SipKey> ParseKey(std::string_view hex);

  std::string Encode(const ResumeToken& token) const;

  // INVALID_ARGUMENT: not a token, of another key, tampered with, from the future or older than
  // `max_age`. The MAC is compared in constant time, before anything else is read.
  absl::StatusOr<ResumeToken> Parse(std::string_view text, int64_t now_unix_sec,
                                    int64_t max_age_sec) const;

 private:
  SipKey key_;
};

}  // namespace paceline

#include "common/types/session_id.h"

#include <charconv>

#include "common/check.h"

namespace paceline {

std::string MakeSessionId(std::string_view random, std::chrono::seconds ttl) {
  CHECK(ttl >= kShortestSession && ttl <= kLongestSession);
  return std::to_string(ttl.count()) + "s-" + std::string(random);
}

std::optional<std::chrono::seconds> SessionTimeToLive(std::string_view session_id) {
  const std::string_view digits = session_id.substr(0, session_id.find("s-"));
  if (digits.size() == session_id.size()) return std::nullopt;
  int32_t seconds = 0;
  const char* const end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, seconds);
  // One spelling of a number, so that ids which look alike are alike.
  if (error != std::errc() || stop != end || std::to_string(seconds) != digits) return std::nullopt;
  const std::chrono::seconds ttl(seconds);
  if (ttl < kShortestSession || ttl > kLongestSession) return std::nullopt;
  return ttl;
}

}  // namespace paceline

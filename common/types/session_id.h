// Session ids that carry their time to live, so that no server keeps state for a session:
// "<seconds>s-<random>". Any other id is a session too, one that lives as long as a worker's
// default says. Pure functions.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace paceline {

inline constexpr std::chrono::seconds kShortestSession{1};
inline constexpr std::chrono::seconds kLongestSession = std::chrono::hours(24);

// `ttl` in [kShortestSession, kLongestSession].
std::string MakeSessionId(std::string_view random, std::chrono::seconds ttl);

// What MakeSessionId put into the id; nullopt for every other id, also for times out of range.
std::optional<std::chrono::seconds> SessionTimeToLive(std::string_view session_id);

}  // namespace paceline

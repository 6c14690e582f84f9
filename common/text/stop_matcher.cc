#include "common/text/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace paceline {

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  for (const std::string& s : strings_) {
    CHECK(!s.empty() && s.size() <= UINT16_MAX) << "stop string of " << s.size() << " bytes";
    std::vector<uint16_t> border(s.size(), 0);
    uint16_t k = 0;
    for (size_t i = 1; i < s.size(); ++i) {
      while (k > 0 && s[i] != s[k]) k = border[k - 1];
      if (s[i] == s[k]) ++k;
      border[i] = k;
    }
    borders_.push_back(std::move(border));
  }
}

StopMatcher::StopMatcher(std::shared_ptr<const StopStrings> strings)
    : strings_(std::move(strings)), matched_(strings_ ? strings_->strings_.size() : 0, 0) {}

bool StopMatcher::Push(std::string_view text, std::string* out) {
  if (matched_.empty()) {
    out->append(text);
    return false;
  }
  for (const char c : text) {
    size_t longest = 0, found = 0;
    for (size_t i = 0; i < matched_.size(); ++i) {
      const std::string& s = strings_->strings_[i];
      uint16_t k = matched_[i];
      while (k > 0 && c != s[k]) k = strings_->borders_[i][k - 1];
      if (c == s[k]) ++k;
      matched_[i] = k;
      longest = std::max<size_t>(longest, k);
      if (k == s.size()) found = std::max(found, s.size());
    }
    held_.push_back(c);
    const size_t keep = found > 0 ? found : longest;
    out->append(held_, 0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
    if (found > 0) return true;
  }
  return false;
}

void StopMatcher::Flush(std::string* out) {
  out->append(held_);
  held_.clear();
  std::fill(matched_.begin(), matched_.end(), 0);
}

}  // namespace paceline

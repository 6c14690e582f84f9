#include "router/service/paging.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

constexpr int32_t kDefaultPageSize = 100, kMaxPageSize = 1000;
constexpr char kPrefix[] = "after:";

}  // namespace

std::optional<ServingError> ParsePage(int32_t page_size, const std::string& page_token,
                                      Page* page) {
  if (page_size < 0 || page_size > kMaxPageSize) {
    return ServingError::InvalidField(
        "page_size", absl::StrCat("it is ", page_size, "; it must be in [1, ", kMaxPageSize, "]"));
  }
  page->size = page_size == 0 ? kDefaultPageSize : page_size;
  if (page_token.empty()) return std::nullopt;
  std::string raw;
  if (!absl::WebSafeBase64Unescape(page_token, &raw) || !raw.starts_with(kPrefix)) {
    return ServingError::InvalidField("page_token", "it is not of an earlier page");
  }
  page->after = raw.substr(sizeof kPrefix - 1);
  return std::nullopt;
}

std::string PageTokenAfter(const std::string& name) {
  return absl::WebSafeBase64Escape(absl::StrCat(kPrefix, name));
}

}  // namespace paceline

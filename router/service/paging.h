// Pages of lists that are ordered by a name: a page token says behind which name the next one
// begins, so that it stays good while the list changes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "router/core/serving_error.h"

namespace paceline {

struct Page {
  int32_t size = 0;
  std::string after;  // empty: from the beginning
};

// INVALID_FIELD: page_size (0 = default) or page_token.
std::optional<ServingError> ParsePage(int32_t page_size, const std::string& page_token, Page* page);

std::string PageTokenAfter(const std::string& name);

}  // namespace paceline

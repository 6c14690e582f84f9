// Classes of characters by their Unicode properties.
#pragma once

namespace paceline {

// The property White_Space.
bool IsWhiteSpace(char32_t character);

// What \w matches: letters, marks, decimal digits, letter numbers, connectors.
bool IsWordCharacter(char32_t character);

}  // namespace paceline

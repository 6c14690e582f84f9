// A byte-level tokenizer.json without merges: token 0 ends a text, token 1 + b is byte b.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/types/sampling_params.h"

namespace paceline {

std::string ByteTokenizerJson();
std::vector<TokenId> EncodeBytes(std::string_view text);
inline constexpr int32_t kByteVocab = 257;

}  // namespace paceline

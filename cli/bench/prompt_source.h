// Where a benchmark's prompts come from: files of prompts, or token ids drawn from a seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace paceline {

// Files whose name ends in .jsonl or .json hold one JSON object per line, whose prompt is the first
// of its "turns", or its "prompt", or its "question"; all other files one prompt per line. Empty
// lines are left out. NOT_FOUND, or INVALID_ARGUMENT as "FILE:LINE: reason": no JSON object, none
// of the fields, not text, not UTF-8. A file without any prompt is refused too.
absl::StatusOr<std::vector<std::string>> ReadPromptFile(const std::string& path);

// Token ids in [0, vocabulary), each a function of (seed, index, place) alone: a prompt does not
// depend on how many others there are. tokens >= 0, vocabulary >= 1.
std::vector<int32_t> SyntheticPrompt(int32_t tokens, int32_t vocabulary, uint64_t seed,
                                     int64_t index);

// The same prompts in an order drawn from the seed.
void Shuffle(uint64_t seed, std::vector<std::string>* prompts);

}  // namespace paceline

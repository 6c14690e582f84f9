// Random values that nobody can guess, from the kernel.
#pragma once

#include <cstdint>
#include <string>

namespace paceline {

uint64_t RandomBits();

// 128 random bits as 32 hexadecimal digits.
std::string RandomId();

}  // namespace paceline

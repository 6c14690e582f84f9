// A step's rows shared out among targets.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace paceline {

// Max-min fair: nobody gets more than asked for, and what one leaves goes to the others in equal
// parts. Sums to min(rows, sum of demands).
std::vector<int32_t> FairShares(std::span<const int32_t> demands, int32_t rows);

}  // namespace paceline

#include "worker/draft/row_shares.h"

#include <algorithm>
#include <numeric>

namespace paceline {

std::vector<int32_t> FairShares(std::span<const int32_t> demands, int32_t rows) {
  std::vector<size_t> order(demands.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return demands[i]; });
  std::vector<int32_t> shares(demands.size());
  auto left = static_cast<int32_t>(order.size());
  for (size_t i : order) {
    shares[i] = std::min(demands[i], rows / left);
    rows -= shares[i];
    --left;
  }
  return shares;
}

}  // namespace paceline

#include "cli/bench/distribution.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/check.h"

namespace paceline {

double Quantile(std::span<const double> ascending, double q) {
  CHECK(!ascending.empty() && q >= 0 && q <= 1) << "quantile " << q << " of " << ascending.size();
  const double rank = q * static_cast<double>(ascending.size() - 1);
  const size_t below = static_cast<size_t>(std::floor(rank));
  const size_t above = std::min(below + 1, ascending.size() - 1);
  const double share = rank - static_cast<double>(below);
  return ascending[below] + (ascending[above] - ascending[below]) * share;
}

Distribution Describe(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return {.count = static_cast<int64_t>(values.size()),
          .mean = std::accumulate(values.begin(), values.end(), 0.0) /
                  static_cast<double>(values.size()),
          .p50 = Quantile(values, 0.50),
          .p90 = Quantile(values, 0.90),
          .p95 = Quantile(values, 0.95),
          .p99 = Quantile(values, 0.99),
          .max = values.back()};
}

Spread SpreadOf(std::span<const double> values) {
  if (values.empty()) return {};
  const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
  return {std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size()),
          *least, *greatest};
}

}  // namespace paceline

// Cuts independent rows into tasks for the pool.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace paceline::kernels {

// Calls fn(row) for every row. row_cost: elements touched per row; small totals stay on the caller,
// since handing work over costs about a microsecond.
template <typename Fn>
void ForRows(int64_t rows, int64_t row_cost, ThreadPool& pool, Fn&& fn) {
  constexpr int64_t kTaskCost = 8192;
  const int64_t wanted = rows * std::max<int64_t>(row_cost, 1) / kTaskCost;
  const int64_t tasks = std::min<int64_t>({rows, wanted, int64_t{4} * pool.num_threads()});
  if (pool.num_threads() == 1 || tasks <= 1) {
    for (int64_t row = 0; row < rows; ++row) fn(row);
    return;
  }
  pool.ParallelFor(tasks, [&](int64_t task) {
    const int64_t end = rows * (task + 1) / tasks;
    for (int64_t row = rows * task / tasks; row < end; ++row) fn(row);
  });
}

}  // namespace paceline::kernels

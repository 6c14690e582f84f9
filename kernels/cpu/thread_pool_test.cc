#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <vector>

namespace paceline::kernels {
namespace {

TEST(ThreadPool, EveryTaskOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int64_t tasks : {0, 1, 2, 3, 7, 64, 1000}) {
      std::vector<int> runs(static_cast<size_t>(tasks), 0);
      pool.ParallelFor(tasks, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
      for (int count : runs) EXPECT_EQ(count, 1);
    }
  }
}

// Back to back loops: a worker late for one must not run the next with the first one's function.
TEST(ThreadPool, ManyShortLoops) {
  ThreadPool pool(4);
  for (int64_t loop = 0; loop < 5000; ++loop) {
    const int64_t tasks = 2 + loop % 5;
    std::vector<int64_t> seen(static_cast<size_t>(tasks), -1);
    pool.ParallelFor(tasks, [&seen, loop](int64_t i) { seen[static_cast<size_t>(i)] = loop; });
    for (int64_t value : seen) ASSERT_EQ(value, loop);
  }
}

TEST(ThreadPool, WakesSleepingWorkers) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    std::atomic<int> inside{0};
    std::atomic<bool> met{false};
    // The tasks wait for each other: only with a second thread can they end early.
    pool.ParallelFor(2, [&](int64_t) {
      inside.fetch_add(1);
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
      while (inside.load() < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
      if (inside.load() == 2) met = true;
    });
    ASSERT_TRUE(met);
  }
}

TEST(ThreadPool, IdlePoolsStop) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(1 + i % 4);
}

TEST(Isa, PortableAlwaysAndNamesDiffer) {
  EXPECT_TRUE(IsaSupported(Isa::kPortable));
  EXPECT_TRUE(IsaSupported(DetectIsa()));
  EXPECT_STRNE(IsaName(Isa::kAvx2), IsaName(Isa::kAvx512Bf16));
  EXPECT_EQ(ThreadPool(1, Isa::kPortable).isa(), Isa::kPortable);
}

}  // namespace
}  // namespace paceline::kernels

// The threads and the instruction set that CPU kernels run on: the "stream" of the CPU backend.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

#include "kernels/cpu/isa.h"

namespace paceline::kernels {

// Fixed in size; the calling thread is one of them, so a pool of 1 has no threads of its own and
// runs inline. Workers spin briefly after a loop, since kernels follow each other within
// microseconds, then sleep. A worker that wakes late misses the loop and delays nobody.
// ParallelFor is called by one thread at a time and does not nest.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads, Isa isa = DetectIsa());
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }
  Isa isa() const { return isa_; }

  // Calls fn(i) for every i in [0, num_tasks), each once, on any thread, and returns when all are
  // done. fn must not throw. num_tasks < 2^32.
  template <typename Fn>
  void ParallelFor(int64_t num_tasks, Fn&& fn) {
    if (workers_.empty() || num_tasks <= 1) {
      for (int64_t i = 0; i < num_tasks; ++i) fn(i);
      return;
    }
    using Plain = std::remove_reference_t<Fn>;
    Run(
        static_cast<uint32_t>(num_tasks), [](void* f, int64_t i) { (*static_cast<Plain*>(f))(i); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using Task = void (*)(void* fn, int64_t index);
  void Run(uint32_t num_tasks, Task task, void* fn);
  void WorkerLoop();
  bool RunOneTask();

  const Isa isa_;
  // The loop in progress: stable while one of its tasks is taken and not done.
  Task task_ = nullptr;
  void* fn_ = nullptr;
  uint32_t num_tasks_ = 0;
  uint32_t loop_ = 0;
  // (loop << 32) | tasks not taken. The loop's number keeps a late worker from taking a task of the
  // next loop with the first one's parameters.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> done_{0};  // tasks of the loop that are done
  alignas(64) std::atomic<uint32_t> wake_{0};  // what sleeping workers wait on
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace paceline::kernels

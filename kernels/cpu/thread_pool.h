// The threads and the instruction set that CPU kernels run on: the "stream" of the CPU backend.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "kernels/cpu/isa.h"

namespace paceline::kernels {

// Fixed in size; the calling thread is one of them, so a pool of 1 has no threads of its own and
// runs inline. Workers spin briefly after a loop, since kernels follow each other within
// microseconds, then sleep. ParallelFor is called by one thread at a time and does not nest.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads, Isa isa = DetectIsa());
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }
  Isa isa() const { return isa_; }

  // Calls fn(i) for every i in [0, num_tasks), each once, on any thread, and returns when all are
  // done. fn must not throw.
  template <typename Fn>
  void ParallelFor(int64_t num_tasks, Fn&& fn) {
    if (workers_.empty() || num_tasks <= 1) {
      for (int64_t i = 0; i < num_tasks; ++i) fn(i);
      return;
    }
    using Plain = std::remove_reference_t<Fn>;
    Run(
        num_tasks, [](void* f, int64_t i) { (*static_cast<Plain*>(f))(i); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using Task = void (*)(void* fn, int64_t index);
  void Run(int64_t num_tasks, Task task, void* fn);
  void WorkerLoop();
  void Drain(uint64_t loop);

  const Isa isa_;
  // The loop in progress. Written by the caller before `loop_` is published.
  Task task_ = nullptr;
  void* fn_ = nullptr;
  int64_t num_tasks_ = 0;
  alignas(64) std::atomic<uint32_t> loop_{0};     // counts loops; bit 31: shut down
  alignas(64) std::atomic<int64_t> next_{0};      // first task not taken
  alignas(64) std::atomic<int32_t> busy_{0};      // workers that have not left the loop
  alignas(64) std::atomic<int32_t> sleepers_{0};  // workers in a futex wait
  std::vector<std::thread> workers_;
};

}  // namespace paceline::kernels

#include "kernels/cpu/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace paceline::kernels {
namespace {

// About 20 us: longer than the gaps between the kernels of a step.
constexpr int kSpins = 1500;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, Isa isa) : isa_(isa) {
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { WorkerLoop(); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::RunOneTask() {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if (static_cast<uint32_t>(ticket) == 0) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire));
  task_(fn_, num_tasks_ - static_cast<uint32_t>(ticket));
  done_.fetch_add(1, std::memory_order_release);
  return true;
}

void ThreadPool::Run(uint32_t num_tasks, Task task, void* fn) {
  task_ = task;
  fn_ = fn;
  num_tasks_ = num_tasks;
  done_.store(0, std::memory_order_relaxed);
  // Sequentially consistent with the sleepers' count: either a worker sees the ticket before it
  // sleeps, or it is seen here.
  ticket_.store((uint64_t{++loop_} << 32) | num_tasks, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    wake_.fetch_add(1, std::memory_order_seq_cst);
    wake_.notify_all();
  }
  while (RunOneTask()) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) != num_tasks; ++spins) {
    if (spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();  // a worker lost its core in the middle of a task
    }
  }
}

void ThreadPool::WorkerLoop() {
  int idle = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    if (RunOneTask()) {
      idle = 0;
      continue;
    }
    if (++idle < kSpins) {
      Pause();
      continue;
    }
    idle = 0;
    const uint32_t seen = wake_.load(std::memory_order_seq_cst);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    if (static_cast<uint32_t>(ticket_.load(std::memory_order_seq_cst)) == 0 && !stop_.load()) {
      wake_.wait(seen, std::memory_order_seq_cst);
    }
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  }
}

}  // namespace paceline::kernels

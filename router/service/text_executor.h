// The threads on which long texts are tokenized, so that gRPC's threads never are held up by one.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace paceline {

struct TextExecutorOptions {
  int32_t num_threads = 2;        // --text-threads
  int32_t max_queue = 256;        // tasks that wait (--max-text-queue)
  size_t inline_bytes = 4 << 10;  // shorter inputs run where they are
};

// Thread-safe. Tasks start in order; each is run exactly once, at the latest by the destructor.
class TextExecutor {
 public:
  explicit TextExecutor(TextExecutorOptions options = {});
  ~TextExecutor();
  TextExecutor(const TextExecutor&) = delete;
  TextExecutor& operator=(const TextExecutor&) = delete;

  // `bytes` is the size of the task's input: small ones run before Run returns. False: the queue
  // is full and the task is dropped.
  bool Run(size_t bytes, std::function<void()> task);

  const TextExecutorOptions& options() const { return options_; }
  int32_t waiting() const;

 private:
  void Work();

  const TextExecutorOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::deque<std::function<void()>> tasks_;
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace paceline

#include "router/service/text_executor.h"

#include <utility>

namespace paceline {

TextExecutor::TextExecutor(TextExecutorOptions options) : options_(options) {
  for (int32_t i = 0; i < options_.num_threads; ++i) threads_.emplace_back([this] { Work(); });
}

TextExecutor::~TextExecutor() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  work_.notify_all();
  for (std::thread& t : threads_) t.join();
}

bool TextExecutor::Run(size_t bytes, std::function<void()> task) {
  if (bytes <= options_.inline_bytes) {
    task();
    return true;
  }
  {
    std::lock_guard lock(mutex_);
    if (static_cast<int32_t>(tasks_.size()) >= options_.max_queue) return false;
    tasks_.push_back(std::move(task));
  }
  work_.notify_one();
  return true;
}

int32_t TextExecutor::waiting() const {
  std::lock_guard lock(mutex_);
  return static_cast<int32_t>(tasks_.size());
}

void TextExecutor::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stopped_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;
    lock.lock();
  }
}

}  // namespace paceline

#include "common/rpc/outbox.h"

#include <atomic>
#include <condition_variable>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace paceline {
namespace {

// Stands for gRPC: notes writes, and fails the test where gRPC would abort the process.
class FakeStream {
 public:
  explicit FakeStream(int64_t limit = 1000, bool merge = true)
      : outbox_({.write = [this](const std::string* m) { Write(m); },
                 .finish = [this](const grpc::Status& s) { Finish(s); },
                 .merge = merge ? Merge : nullptr},
                limit) {}

  static bool Merge(std::string* last, std::string* next) {
    *last += *next;
    return true;
  }
  void Write(const std::string* message) {
    EXPECT_FALSE(writing_.exchange(true)) << "two writes in flight";
    EXPECT_EQ(finishes_, 0) << "a write behind the finish";
    written_.push_back(*message);
    if (on_write_) on_write_();
  }
  void Finish(const grpc::Status& status) {
    EXPECT_FALSE(writing_) << "finished with a write in flight";
    ++finishes_;
    status_ = status;
  }
  void Done(bool ok = true) {
    EXPECT_TRUE(writing_.exchange(false));
    outbox_.WriteDone(ok);
  }

  std::vector<std::string> written_;
  std::function<void()> on_write_;
  std::atomic<bool> writing_ = false;
  std::atomic<int> finishes_ = 0;
  grpc::Status status_;
  Outbox<std::string> outbox_;
};

using Strings = std::vector<std::string>;

TEST(OutboxTest, WritesOneAtATimeAndMergesWhatWaits) {
  FakeStream s;
  EXPECT_TRUE(s.outbox_.Push("a", 1));
  EXPECT_TRUE(s.outbox_.Push("b", 1));
  EXPECT_TRUE(s.outbox_.Push("c", 1));
  EXPECT_EQ(s.written_, Strings{"a"});
  EXPECT_EQ(s.outbox_.waiting_cost(), 2);
  s.Done();
  EXPECT_EQ(s.written_, (Strings{"a", "bc"}));
  s.Done();
  EXPECT_EQ(s.written_.size(), 2u);
  EXPECT_TRUE(s.outbox_.Push("d", 1));
  EXPECT_EQ(s.written_.size(), 3u);
}

TEST(OutboxTest, KeepsOrderWhereNothingMerges) {
  FakeStream s(1000, /*merge=*/false);
  for (const char* m : {"a", "b", "c"}) s.outbox_.Push(m, 1);
  for (int i = 0; i < 3; ++i) s.Done();
  EXPECT_EQ(s.written_, (Strings{"a", "b", "c"}));
}

// The peer may answer, and the answer may ask for a write, before the first write is reported done.
TEST(OutboxTest, AReplyBeforeWriteDoneWaits) {
  FakeStream s;
  bool replied = false;
  s.on_write_ = [&] {
    if (replied) return;
    replied = true;
    EXPECT_TRUE(s.outbox_.Push("reply", 1));
  };
  s.outbox_.Push("first", 1);
  EXPECT_EQ(s.written_, Strings{"first"});
  s.Done();
  EXPECT_EQ(s.written_, (Strings{"first", "reply"}));
}

TEST(OutboxTest, FinishWaitsForWhatIsQueued) {
  FakeStream s;
  s.outbox_.Push("a", 1);
  s.outbox_.Push("b", 1);
  s.outbox_.Finish(grpc::Status(grpc::StatusCode::ABORTED, "why"));
  EXPECT_FALSE(s.outbox_.Push("late", 1));
  EXPECT_EQ(s.finishes_, 0);
  s.Done();
  EXPECT_EQ(s.finishes_, 0);
  s.Done();
  EXPECT_EQ(s.finishes_, 1);
  EXPECT_EQ(s.status_.error_message(), "why");
  EXPECT_EQ(s.written_, (Strings{"a", "b"}));
  s.outbox_.Finish(grpc::Status::OK);
  s.outbox_.Abort(grpc::Status::OK);
  EXPECT_EQ(s.finishes_, 1);
}

TEST(OutboxTest, FinishOfAnIdleStreamIsAtOnce) {
  FakeStream s;
  s.outbox_.Finish(grpc::Status::OK);
  EXPECT_EQ(s.finishes_, 1);
}

TEST(OutboxTest, AbortDropsTheQueueButNotTheWriteInFlight) {
  FakeStream s;
  s.outbox_.Push("a", 1);
  s.outbox_.Push("b", 1);
  s.outbox_.Abort(grpc::Status::CANCELLED);
  EXPECT_EQ(s.finishes_, 0);
  EXPECT_FALSE(s.outbox_.Push("c", 1));
  s.Done(false);
  EXPECT_EQ(s.finishes_, 1);
  EXPECT_EQ(s.written_, Strings{"a"});
}

TEST(OutboxTest, AFailedWriteEndsAllWriting) {
  FakeStream s;
  s.outbox_.Push("a", 1);
  s.outbox_.Push("b", 1);
  s.Done(false);
  EXPECT_FALSE(s.outbox_.Push("c", 1));
  EXPECT_EQ(s.written_, Strings{"a"});
  EXPECT_EQ(s.finishes_, 0);
  s.outbox_.Finish(grpc::Status::OK);
  EXPECT_EQ(s.finishes_, 1);
}

TEST(OutboxTest, RefusesBeyondTheLimitAndRecovers) {
  FakeStream s(10);
  s.outbox_.Push("in flight", 100);
  EXPECT_TRUE(s.outbox_.Push("a", 6));
  EXPECT_FALSE(s.outbox_.Push("b", 6));
  EXPECT_TRUE(s.outbox_.Push("c", 4));
  s.Done();
  EXPECT_EQ(s.outbox_.waiting_cost(), 0);
  EXPECT_TRUE(s.outbox_.Push("larger than the limit", 11));
  EXPECT_FALSE(s.outbox_.Push("d", 1));
  s.Done();
  s.Done();
  EXPECT_EQ(s.written_, (Strings{"in flight", "ac", "larger than the limit"}));
}

TEST(OutboxTest, ManyThreadsPushWhileOneReportsWritesDone) {
  constexpr int kThreads = 4, kEach = 2000;
  FakeStream s(1 << 20);
  std::mutex mutex;
  std::condition_variable changed;
  int started = 0;
  s.on_write_ = [&] {
    std::lock_guard lock(mutex);
    ++started;
    changed.notify_all();
  };
  std::atomic<bool> over = false;
  std::thread grpc_thread([&] {
    int done = 0;
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [&] { return started > done || over; });
      if (started == done) return;
      ++done;
      lock.unlock();
      s.Done();
      lock.lock();
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kEach; ++i) EXPECT_TRUE(s.outbox_.Push("x", 1));
    });
  }
  for (std::thread& t : threads) t.join();
  s.outbox_.Finish(grpc::Status::OK);
  while (s.finishes_ == 0) std::this_thread::yield();
  {
    std::lock_guard lock(mutex);
    over = true;
    changed.notify_all();
  }
  grpc_thread.join();
  size_t written = 0;
  for (const std::string& m : s.written_) written += m.size();
  EXPECT_EQ(written, static_cast<size_t>(kThreads * kEach));
}

}  // namespace
}  // namespace paceline

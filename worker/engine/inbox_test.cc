#include "worker/engine/inbox.h"

#include <atomic>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace paceline {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

SubmitCommand Submission(RequestHandle handle) { return {.handle = handle}; }

std::vector<EngineOutput::Finished> Ended(RequestHandle handle) { return {{.request = handle}}; }

TEST(InboxTest, CommandsComeInOrderAndOnce) {
  Inbox inbox(8);
  ASSERT_TRUE(inbox.Submit(Submission(3)).ok());
  inbox.DropSession({.session_id = "s"});
  inbox.Cancel({.handle = 3, .code = absl::StatusCode::kDeadlineExceeded});
  std::vector<Command> commands(5);
  inbox.Drain(&commands);
  ASSERT_THAT(commands, SizeIs(3));
  EXPECT_EQ(std::get<SubmitCommand>(commands[0]).handle, 3u);
  EXPECT_EQ(std::get<DropSessionCommand>(commands[1]).session_id, "s");
  EXPECT_EQ(std::get<CancelCommand>(commands[2]).code, absl::StatusCode::kDeadlineExceeded);
  inbox.Drain(&commands);
  EXPECT_THAT(commands, IsEmpty());
}

TEST(InboxTest, AHandleInFlightIsRefusedUntilItsLastWord) {
  Inbox inbox(8);
  ASSERT_TRUE(inbox.Submit(Submission(3)).ok());
  std::vector<Command> commands;
  EXPECT_EQ(inbox.Submit(Submission(3)).code(), absl::StatusCode::kAlreadyExists);
  inbox.Drain(&commands);
  EXPECT_EQ(inbox.Submit(Submission(3)).code(), absl::StatusCode::kAlreadyExists);
  inbox.Forget(Ended(3));
  EXPECT_TRUE(inbox.Submit(Submission(3)).ok());
}

TEST(InboxTest, TheQueueIsBounded) {
  Inbox inbox(2);
  ASSERT_TRUE(inbox.Submit(Submission(1)).ok());
  ASSERT_TRUE(inbox.Submit(Submission(2)).ok());
  const absl::Status full = inbox.Submit(Submission(3));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("2 requests are waiting (--max-waiting)"));
  std::vector<Command> commands;
  inbox.Drain(&commands);  // now they wait at the scheduler
  EXPECT_EQ(inbox.Submit(Submission(3)).code(), absl::StatusCode::kResourceExhausted);
  inbox.SetQueued(1);  // one has begun
  EXPECT_TRUE(inbox.Submit(Submission(3)).ok());
  EXPECT_EQ(inbox.Submit(Submission(4)).code(), absl::StatusCode::kResourceExhausted);
}

TEST(InboxTest, ARefusedHandleIsNotInFlight) {
  Inbox inbox(1);
  ASSERT_TRUE(inbox.Submit(Submission(1)).ok());
  ASSERT_FALSE(inbox.Submit(Submission(2)).ok());
  std::vector<Command> commands;
  inbox.Drain(&commands);
  inbox.SetQueued(0);
  EXPECT_TRUE(inbox.Submit(Submission(2)).ok());
}

TEST(InboxTest, CancelsOfUnknownHandlesAreDropped) {
  Inbox inbox(8);
  inbox.Cancel({.handle = 9});
  std::vector<Command> commands;
  inbox.Drain(&commands);
  EXPECT_THAT(commands, IsEmpty());
}

TEST(InboxTest, DrainingRefusesNewRequestsOnly) {
  Inbox inbox(8);
  ASSERT_TRUE(inbox.Submit(Submission(1)).ok());
  EXPECT_FALSE(inbox.draining());
  inbox.StartDrain();
  EXPECT_TRUE(inbox.draining());
  EXPECT_EQ(inbox.Submit(Submission(2)).code(), absl::StatusCode::kUnavailable);
  inbox.Cancel({.handle = 1});
  std::vector<Command> commands;
  inbox.Drain(&commands);
  EXPECT_THAT(commands, SizeIs(2));
}

TEST(InboxTest, ACommandOrStopEndsTheWait) {
  Inbox inbox(8);
  inbox.WaitForWork(milliseconds(1));  // comes back though nothing is there
  std::thread submits([&] { EXPECT_TRUE(inbox.Submit(Submission(1)).ok()); });
  inbox.WaitForWork(seconds(60));
  submits.join();
  std::vector<Command> commands;
  inbox.Drain(&commands);
  EXPECT_THAT(commands, SizeIs(1));
  std::thread stops([&] { inbox.Stop(); });
  inbox.WaitForWork(seconds(60));
  stops.join();
  EXPECT_TRUE(inbox.stopped());
  inbox.WaitForWork(seconds(60));  // stopped: never again
}

TEST(InboxTest, NothingIsLostBetweenThreads) {
  constexpr int kThreads = 4;
  constexpr int kEach = 500;
  Inbox inbox(kThreads * kEach);
  std::vector<std::thread> threads;
  std::atomic<int> running = kThreads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const auto handle = static_cast<RequestHandle>(t * kEach + i);
        EXPECT_TRUE(inbox.Submit(Submission(handle)).ok());
        if (i % 3 == 0) inbox.Cancel({.handle = handle});
      }
      --running;
    });
  }
  int submitted = 0;
  std::vector<Command> commands;
  for (bool last = false; !last;) {
    last = running == 0;
    inbox.Drain(&commands);
    for (const Command& c : commands) {
      if (const auto* s = std::get_if<SubmitCommand>(&c)) {
        ++submitted;
        inbox.Forget(Ended(s->handle));
      }
    }
    inbox.SetQueued(0);
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(submitted, kThreads * kEach);
}

}  // namespace
}  // namespace paceline

#include "worker/spec/drafter_table.h"

#include <map>
#include <thread>

#include <gtest/gtest.h>

#include "worker/spec/queue_link.h"

namespace paceline {
namespace {

class DrafterTableTest : public testing::Test {
 protected:
  DrafterTableTest() : mailbox_({.vocab_size = 100}) {}

  void Add(int n) {
    for (int i = 0; i < n; ++i) {
      links_.push_back(std::make_shared<QueueLink>("10.0.0." + std::to_string(links_.size())));
      ids_.push_back(table_.Add(links_.back()));
    }
    table_.Refresh(mailbox_);
  }
  void Report(size_t i, int32_t sessions) {
    DraftFrame frame;
    frame.load.sessions = sessions;
    mailbox_.Deliver(ids_[i], 1, std::move(frame));
    table_.Refresh(mailbox_);
  }
  DraftLinkId Pick(uint64_t key, uint64_t step = 0) {
    const Drafter* drafter = table_.Pick(key, step);
    return drafter == nullptr ? 0 : drafter->id;
  }

  DraftMailbox mailbox_;
  DrafterTable table_;
  std::vector<std::shared_ptr<QueueLink>> links_;
  std::vector<DraftLinkId> ids_;
};

TEST_F(DrafterTableTest, NoneIsUp) {
  EXPECT_EQ(Pick(1), 0u);
  EXPECT_FALSE(table_.AnyUp());
  Add(1);
  links_[0]->now.state = DraftLinkState::kDown;
  table_.Refresh(mailbox_);
  EXPECT_EQ(Pick(1), 0u);
  EXPECT_FALSE(table_.AnyUp());
}

TEST_F(DrafterTableTest, AKeyKeepsItsDrafter) {
  Add(4);
  std::map<uint64_t, DraftLinkId> first;
  std::map<DraftLinkId, int> share;
  for (uint64_t key = 0; key < 400; ++key) ++share[first[key] = Pick(key)];
  EXPECT_EQ(share.size(), 4u);
  for (const auto& [id, n] : share) EXPECT_GT(n, 50);
  // One goes: only its keys move. It comes back under another id, by its name: they return.
  table_.Remove(ids_[2]);
  table_.Refresh(mailbox_);
  for (const auto& [key, id] : first) {
    EXPECT_EQ(Pick(key) == id, id != ids_[2]);
  }
  const DraftLinkId again = table_.Add(links_[2]);
  table_.Refresh(mailbox_);
  for (const auto& [key, id] : first) EXPECT_EQ(Pick(key), id == ids_[2] ? again : id);
}

TEST_F(DrafterTableTest, OneKeySpreadsByLoad) {
  Add(3);
  for (int i = 0; i < 300; ++i) ++table_.Pick(7, 0)->sessions;
  for (const Drafter& d : table_.drafters()) {
    EXPECT_GE(d.sessions, 30);
    EXPECT_LE(d.sessions, 134);
  }
}

TEST_F(DrafterTableTest, SessionsOfOthersCount) {
  Add(2);
  const DraftLinkId preferred = Pick(7);
  Report(preferred == ids_[0] ? 0 : 1, 50);
  EXPECT_NE(Pick(7), preferred);
}

TEST_F(DrafterTableTest, DrainingTakesNone) {
  Add(1);
  links_[0]->now.state = DraftLinkState::kDraining;
  table_.Refresh(mailbox_);
  EXPECT_EQ(Pick(1), 0u);
  EXPECT_TRUE(table_.AnyUp());
  EXPECT_NE(table_.Find(ids_[0], 1), nullptr);
}

TEST_F(DrafterTableTest, AStreamThatEndedIsNotFound) {
  Add(1);
  table_.Find(ids_[0], 1)->sessions = 3;
  EXPECT_EQ(table_.Find(ids_[0], 2), nullptr);
  links_[0]->Restart();
  table_.Refresh(mailbox_);
  EXPECT_EQ(table_.Find(ids_[0], 1), nullptr);
  ASSERT_NE(table_.Find(ids_[0], 2), nullptr);
  EXPECT_EQ(table_.Find(ids_[0], 2)->sessions, 0);
  links_[0]->now.state = DraftLinkState::kDown;
  table_.Refresh(mailbox_);
  EXPECT_EQ(table_.Find(ids_[0], 2), nullptr);
}

TEST_F(DrafterTableTest, RefusalsBackOff) {
  Add(1);
  uint64_t step = 0;
  std::vector<uint64_t> pauses;
  for (int i = 0; i < 12; ++i) {
    table_.Refused(table_.Find(ids_[0], 1), step);
    table_.Refused(table_.Find(ids_[0], 1), step);  // of the same burst
    const uint64_t begin = step;
    while (Pick(1, step) == 0) ++step;
    pauses.push_back(step - begin);
  }
  EXPECT_EQ(pauses[0], 64u);
  EXPECT_EQ(pauses[1], 128u);
  EXPECT_EQ(pauses.back(), 64u << 7);
  step += 100000;
  table_.Refused(table_.Find(ids_[0], 1), step);
  EXPECT_EQ(Pick(1, step + 64), ids_[0]) << "long ago";
  // A new stream starts afresh.
  table_.Refused(table_.Find(ids_[0], 1), step + 100);
  links_[0]->Restart();
  table_.Refresh(mailbox_);
  EXPECT_EQ(Pick(1, step + 101), ids_[0]);
}

TEST_F(DrafterTableTest, FlushSendsOnceAndNamesWhatWasLost) {
  Add(2);
  std::vector<uint64_t> lost;
  table_.Find(ids_[0], 1)->frame.opens.push_back({.id = {.session = 4}});
  table_.Find(ids_[0], 1)->frame.commits.push_back({.id = {.session = 5}});
  table_.Find(ids_[0], 1)->frame.closes.push_back({.id = {.session = 6}});
  links_[0]->full = true;
  table_.Flush(0, &lost);
  EXPECT_EQ(lost, (std::vector<uint64_t>{4, 5}));
  EXPECT_TRUE(links_[1]->frames.empty());
  // What was to end still ends.
  links_[0]->full = false;
  lost.clear();
  table_.Flush(1, &lost);
  EXPECT_TRUE(lost.empty());
  ASSERT_EQ(links_[0]->frames.size(), 1u);
  EXPECT_EQ(links_[0]->frames[0].closes.size(), 1u);
  EXPECT_TRUE(links_[0]->frames[0].opens.empty());
  table_.Flush(2, &lost);
  EXPECT_EQ(links_[0]->frames.size(), 1u) << "nothing to say";
}

TEST_F(DrafterTableTest, LinksComeAndGoFromOtherThreads) {
  std::thread other([&] {
    for (int i = 0; i < 200; ++i) {
      table_.Remove(table_.Add(std::make_shared<QueueLink>("x")));
      table_.Add(std::make_shared<QueueLink>("y"));
    }
  });
  for (int i = 0; i < 200; ++i) {
    table_.Refresh(mailbox_);
    table_.Pick(1, 0);
  }
  other.join();
  table_.Refresh(mailbox_);
  EXPECT_EQ(table_.drafters().size(), 200u);
}

// Requests that end sooner than its time is up do not save a drafter that never answers; time in
// which nothing was asked does not count.
TEST_F(DrafterTableTest, SilenceOutlivesSessions) {
  Add(1);
  TimePoint now{};
  uint64_t step = 0;
  int32_t fell = 0, asked = 0;
  while (fell == 0 && step < 1000) {
    Drafter* drafter = table_.Find(ids_[0], 1);
    ASSERT_NE(drafter, nullptr);
    const bool asks = step % 20 < 10;  // then its sessions have ended
    drafter->sessions = drafter->asked = asks ? 1 : 0;
    asked += asks ? 1 : 0;
    now += std::chrono::milliseconds(10);
    fell = table_.EndStep(step++, now);
  }
  EXPECT_EQ(fell, 1);
  EXPECT_GE(asked, 26);  // of 10 ms each, and the patience is 250 ms
  EXPECT_LE(asked, 30);
}

}  // namespace
}  // namespace paceline

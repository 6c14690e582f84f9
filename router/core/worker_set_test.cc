#include "router/core/worker_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace paceline {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

const TimePoint kStart{std::chrono::seconds(100)};

TEST(WorkerSetTest, RelistKeepsIdsAndTellsChanges) {
  WorkerSet set;
  auto list = std::vector<WorkerAddress>{{"a"}, {"b"}};
  EXPECT_THAT(set.Relist(list).added, ElementsAre(0, 1));
  EXPECT_THAT(set.Relist(list).added, IsEmpty());
  list = {{"b"}, {"c"}};
  const auto change = set.Relist(list);
  EXPECT_THAT(change.added, ElementsAre(2));
  EXPECT_THAT(change.removed, ElementsAre(0));
  EXPECT_FALSE(set.Find(0)->listed);
  list = {{"a"}, {"b"}, {"c"}};
  EXPECT_THAT(set.Relist(list).added, ElementsAre(0));
  EXPECT_TRUE(set.Find(0)->listed);
  EXPECT_EQ(set.Find(3), nullptr);
  EXPECT_EQ(set.Find(-1), nullptr);
}

TEST(WorkerSetTest, States) {
  Worker w;
  EXPECT_EQ(w.State(), WorkerState::kUnreachable);
  w.connected = true;
  EXPECT_EQ(w.State(), WorkerState::kStarting);
  w.snapshot.ready = true;
  EXPECT_EQ(w.State(), WorkerState::kReady);
  EXPECT_TRUE(w.Usable());
  w.listed = false;
  EXPECT_FALSE(w.Usable());
  w.listed = true;
  w.drain_asked = true;
  EXPECT_EQ(w.State(), WorkerState::kDraining);
  EXPECT_FALSE(w.Usable());
}

TEST(WorkerSetTest, UpdateWithoutSummaryKeepsTheOneOfItsEpoch) {
  Worker w;
  WorkerSnapshot s;
  s.prefix_epoch = 3;
  s.prefixes = std::make_shared<PrefixSummary>(PrefixSummary{1, 2});
  WorkerSet::ApplySnapshot(s, kStart, &w);
  s.prefixes = nullptr;
  WorkerSet::ApplySnapshot(s, kStart, &w);
  ASSERT_NE(w.snapshot.prefixes, nullptr);
  s.prefix_epoch = 4;
  WorkerSet::ApplySnapshot(s, kStart, &w);
  EXPECT_EQ(w.snapshot.prefixes, nullptr);
}

TEST(WorkerSetTest, FaultsOpenTheCircuitForLongerEachTime) {
  Worker w;
  const Duration base = std::chrono::milliseconds(100), limit = std::chrono::seconds(1);
  EXPECT_EQ(w.Circuit(kStart), CircuitState::kClosed);
  WorkerSet::RecordFault(kStart, base, limit, &w);
  EXPECT_EQ(w.not_before, kStart + base);
  EXPECT_EQ(w.Circuit(kStart), CircuitState::kOpen);
  EXPECT_EQ(w.Circuit(kStart + base), CircuitState::kHalfOpen);
  for (int i = 0; i < 50; ++i) WorkerSet::RecordFault(kStart, base, limit, &w);
  EXPECT_EQ(w.not_before, kStart + limit);
}

}  // namespace
}  // namespace paceline

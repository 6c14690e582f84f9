#include "router/core/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/hash.h"

namespace paceline {
namespace {

const TimePoint kNow{std::chrono::seconds(100)};

std::vector<Worker> MakeWorkers(int n) {
  std::vector<Worker> workers(n);
  for (int i = 0; i < n; ++i) {
    workers[i].id = i;
    workers[i].address = absl::StrCat("10.0.0.", i, ":7000");
    workers[i].connected = true;
    workers[i].snapshot.model = "m";
    workers[i].snapshot.ready = true;
    workers[i].snapshot.max_context = 1024;
  }
  return workers;
}

PlacementRequest MakeRequest() {
  PlacementRequest r;
  r.model = "m";
  r.prompt_tokens = 200;
  r.total_tokens = 300;
  return r;
}

WorkerId Best(const PlacementRequest& r, const std::vector<Worker>& workers) {
  const auto scores = RankWorkers(r, workers, kNow);
  return scores.empty() ? kNoWorker : scores.front().worker;
}

TEST(PlacementTest, OnlyEligibleWorkers) {
  auto workers = MakeWorkers(7);
  workers[0].snapshot.model = "other";
  workers[1].snapshot.ready = false;
  workers[2].snapshot.draining = true;
  workers[3].connected = false;
  workers[4].listed = false;
  workers[5].not_before = kNow + Duration(1);
  workers[6].snapshot.max_context = 299;
  EXPECT_EQ(Best(MakeRequest(), workers), kNoWorker);
  workers[6].snapshot.max_context = 300;
  EXPECT_EQ(Best(MakeRequest(), workers), 6);
  workers[5].not_before = kNow;
  EXPECT_EQ(RankWorkers(MakeRequest(), workers, kNow).size(), 2u);
}

TEST(PlacementTest, TextGoesOnlyWhereIdsMeanTheSame) {
  auto workers = MakeWorkers(3);
  workers[0].snapshot.tokenizer_fingerprint = "other";
  workers[1].snapshot.tokenizer_fingerprint = "tok";
  PlacementRequest request = MakeRequest();
  EXPECT_EQ(RankWorkers(request, workers, kNow).size(), 3u);
  request.tokenizer = "tok";
  const auto scores = RankWorkers(request, workers, kNow);
  ASSERT_EQ(scores.size(), 2u);  // one does not tell
  EXPECT_NE(scores[0].worker, 0);
  EXPECT_NE(scores[1].worker, 0);
}

TEST(PlacementTest, LeastPredictedWork) {
  auto workers = MakeWorkers(3);
  workers[0].snapshot.running = 4;
  workers[1].snapshot.queued_prompt_tokens = 500;
  EXPECT_EQ(Best(MakeRequest(), workers), 2);
  workers[2].in_flight = 5;  // own requests that the snapshot does not know yet
  EXPECT_EQ(Best(MakeRequest(), workers), 0);
  workers[0].sent_prompt_tokens = 1000;
  EXPECT_EQ(Best(MakeRequest(), workers), 2);
}

TEST(PlacementTest, PrefixHitOutweighsSomeLoad) {
  auto workers = MakeWorkers(2);
  std::vector<int32_t> prompt(200);
  std::iota(prompt.begin(), prompt.end(), 0);
  PlacementRequest r = MakeRequest();
  r.prefix_hashes = PrefixChunkHashes(prompt, "salt");
  ASSERT_EQ(r.prefix_hashes.size(), 3u);
  workers[1].snapshot.running = 3;
  EXPECT_EQ(Best(r, workers), 0);
  workers[1].snapshot.prefixes =
      std::make_shared<PrefixSummary>(r.prefix_hashes.begin(), r.prefix_hashes.begin() + 2);
  const auto scores = RankWorkers(r, workers, kNow);
  EXPECT_EQ(scores[0].worker, 1);
  EXPECT_EQ(scores[0].matched_tokens, 128);
  EXPECT_EQ(scores[0].prefill, 72);
  EXPECT_EQ(scores[1].matched_tokens, 0);
  workers[1].snapshot.running = 30;
  EXPECT_EQ(Best(r, workers), 0);
}

TEST(PlacementTest, ChunkHashesAreTheSharedDefinition) {
  std::vector<int32_t> prompt(130, 7);
  const auto hashes = PrefixChunkHashes(prompt, "s");
  ASSERT_EQ(hashes.size(), 2u);
  EXPECT_EQ(hashes[1],
            HashTokens(std::span<const int32_t>(prompt).first(2 * kPrefixChunk), PrefixSeed("s")));
  EXPECT_NE(PrefixChunkHashes(prompt, "t")[0], hashes[0]);
  EXPECT_TRUE(PrefixChunkHashes(std::vector<int32_t>(63), "").empty());
}

TEST(PlacementTest, SessionsStayAndSpreadAndMoveOnlyWhenTheirHomeGoes) {
  auto workers = MakeWorkers(4);
  std::vector<int> count(4, 0), home(400);
  PlacementRequest r = MakeRequest();
  for (int s = 0; s < 400; ++s) {
    r.session_id = absl::StrCat("session-", s);
    r.tie_break = s;
    home[s] = Best(r, workers);
    r.tie_break = s + 1000;
    EXPECT_EQ(Best(r, workers), home[s]);
    ++count[home[s]];
  }
  for (int c : count) EXPECT_GT(c, 60);
  workers[2].snapshot.ready = false;
  for (int s = 0; s < 400; ++s) {
    r.session_id = absl::StrCat("session-", s);
    const WorkerId now_at = Best(r, workers);
    if (home[s] != 2) {
      EXPECT_EQ(now_at, home[s]);
    } else {
      EXPECT_NE(now_at, 2);
    }
  }
}

TEST(PlacementTest, EqualWorkersShareRequests) {
  auto workers = MakeWorkers(4);
  std::vector<int> count(4, 0);
  PlacementRequest r = MakeRequest();
  for (int i = 0; i < 400; ++i) {
    r.tie_break = i;
    ++count[Best(r, workers)];
  }
  for (int c : count) EXPECT_GT(c, 60);
}

TEST(PlacementTest, ResumedRequestsPreferTheirNumerics) {
  auto workers = MakeWorkers(2);
  workers[0].snapshot.fingerprint = "x";
  workers[1].snapshot.fingerprint = "y";
  workers[1].snapshot.running = 100;
  PlacementRequest r = MakeRequest();
  r.fingerprint = "y";
  EXPECT_EQ(Best(r, workers), 1);
  workers[1].snapshot.ready = false;
  const auto scores = RankWorkers(r, workers, kNow);
  ASSERT_EQ(scores.size(), 1u);
  EXPECT_TRUE(scores[0].other_numerics);
  EXPECT_THAT(scores[0].ToString(), testing::HasSubstr("other_numerics"));
}

TEST(PlacementTest, FullPoolsAndAvoidedWorkersComeLast) {
  auto workers = MakeWorkers(2);
  for (Worker& w : workers) {
    w.snapshot.block_size = 16;
    w.snapshot.free_blocks = 100;
  }
  workers[0].snapshot.free_blocks = 3;
  workers[1].snapshot.running = 20;
  EXPECT_EQ(Best(MakeRequest(), workers), 1);
  const WorkerId avoid[] = {1};
  PlacementRequest r = MakeRequest();
  r.avoid = avoid;
  EXPECT_EQ(Best(r, workers), 0);
}

}  // namespace
}  // namespace paceline

#include "cli/bench/run_summary.h"

#include <gtest/gtest.h>

#include "cli/bench/test_outcomes.h"

namespace paceline {
namespace {

TEST(RunSummary, DefinitionsOfTheFigures) {
  // Arrives at 0, sent at 10 ms, queued 30 ms, first token at 100 ms, then messages of 2 and 1
  // tokens at 140 and 150 ms, end at 160 ms.
  RequestOutcome o;
  o.started = Ms(10);
  o.queue = Ms(30);
  o.first_token = Ms(100);
  o.ended = Ms(160);
  o.token_ids = {1, 2, 3, 4};
  o.message_count = 3;
  o.gaps = {{Ms(40), 2}, {Ms(10), 1}};
  o.drafted_tokens = 8;
  o.accepted_tokens = 2;
  o.prompt_tokens = 5;
  const RunSummary s = Summarize(std::vector<RequestOutcome>{o});
  EXPECT_DOUBLE_EQ(s.seconds, 0.160);
  EXPECT_DOUBLE_EQ(s.ttft.mean, 100);
  EXPECT_DOUBLE_EQ(s.e2e.mean, 160);
  EXPECT_DOUBLE_EQ(s.send_lag.mean, 10);
  EXPECT_DOUBLE_EQ(s.tpot.mean, 20);  // 60 ms / 3
  EXPECT_EQ(s.itl.count, 2);
  EXPECT_DOUBLE_EQ(s.itl.mean, 25);
  EXPECT_EQ(s.itl_token.count, 3);  // 20, 20, 10
  EXPECT_DOUBLE_EQ(s.itl_token.mean, 50.0 / 3);
  EXPECT_DOUBLE_EQ(s.user_throughput, 50);
  EXPECT_DOUBLE_EQ(s.output_throughput, 25);
  EXPECT_DOUBLE_EQ(s.request_throughput, 1 / 0.160);
  EXPECT_DOUBLE_EQ(s.acceptance(), 0.25);
  EXPECT_DOUBLE_EQ(s.tokens_per_message(), 4.0 / 3);
  EXPECT_DOUBLE_EQ(s.mean_queue, 30);
  EXPECT_DOUBLE_EQ(s.mean_prefill, 70);
  EXPECT_DOUBLE_EQ(s.mean_decode, 60);
}

TEST(RunSummary, LatenciesCountFromTheArrival) {
  // A client that is late by a second does not hide it.
  RequestOutcome o = Outcome(0, {1, 2}, Ms(0), Ms(1010), Ms(1020));
  o.started = Ms(1000);
  const RunSummary s = Summarize(std::vector<RequestOutcome>{o});
  EXPECT_DOUBLE_EQ(s.ttft.mean, 1010);
  EXPECT_DOUBLE_EQ(s.send_lag.mean, 1000);
}

TEST(RunSummary, FailuresCountByCodeAndNowhereElse) {
  RequestOutcome bad = Outcome(1, {1}, Ms(0), Ms(1), Ms(900));
  bad.code = "UNAVAILABLE";
  bad.error = "gone";
  RequestOutcome worse = bad;
  worse.error = "gone too";
  const RunSummary s = Summarize(
      std::vector<RequestOutcome>{Outcome(0, {1, 2, 3}, Ms(0), Ms(10), Ms(30)), bad, worse});
  EXPECT_EQ(s.completed, 1);
  EXPECT_EQ(s.failed(), 2);
  EXPECT_EQ(s.errors.at("UNAVAILABLE").count, 2);
  EXPECT_EQ(s.errors.at("UNAVAILABLE").first_message, "gone");
  EXPECT_EQ(s.output_tokens, 3);
  EXPECT_EQ(s.ttft.count, 1);
  EXPECT_DOUBLE_EQ(s.seconds, 0.9);
}

TEST(RunSummary, LimitsCountRequestsThatKeepBoth) {
  const std::vector<RequestOutcome> outcomes = {
      Outcome(0, {1, 2, 3}, Ms(0), Ms(10), Ms(30)),   // 10, 10
      Outcome(1, {1, 2, 3}, Ms(0), Ms(50), Ms(70)),   // 50, 10
      Outcome(2, {1, 2, 3}, Ms(0), Ms(10), Ms(100)),  // 10, 45
      Outcome(3, {1}, Ms(0), Ms(10), Ms(90))};        // 10, none
  EXPECT_EQ(Summarize(outcomes, {.ttft = 10, .tpot = 10}).within_limits, 2);
  EXPECT_EQ(Summarize(outcomes, {.ttft = 10}).within_limits, 3);
  EXPECT_EQ(Summarize(outcomes, {.tpot = 45}).within_limits, 4);
  EXPECT_DOUBLE_EQ(Summarize(outcomes, {.ttft = 10, .tpot = 10}).goodput, 20);
}

TEST(RunSummary, RoundsAddUp) {
  const std::vector<std::vector<RequestOutcome>> rounds = {
      {Outcome(0, {1, 2}, Ms(0), Ms(10), Ms(100))},
      {},
      {Outcome(0, {1, 2}, Ms(50), Ms(60), Ms(350))}};
  const RunSummary s = Summarize(rounds);
  EXPECT_EQ(s.completed, 2);
  EXPECT_DOUBLE_EQ(s.seconds, 0.4);
  EXPECT_DOUBLE_EQ(s.output_throughput, 10);
}

TEST(RunSummary, NothingAtAll) {
  const RunSummary s = Summarize(std::vector<RequestOutcome>{});
  EXPECT_EQ(s.completed, 0);
  EXPECT_EQ(s.output_throughput, 0);
  EXPECT_EQ(s.acceptance(), 0);
  EXPECT_EQ(s.tokens_per_message(), 0);
}

TEST(RunSummary, OneTokenHasNoTpotAndNoneNoTtft) {
  const RunSummary s = Summarize(std::vector<RequestOutcome>{Outcome(0, {1}, Ms(0), Ms(10), Ms(11)),
                                                             Outcome(1, {}, Ms(0), Ms(0), Ms(5))});
  EXPECT_EQ(s.completed, 2);
  EXPECT_EQ(s.tpot.count, 0);
  EXPECT_EQ(s.ttft.count, 1);
  EXPECT_EQ(s.e2e.count, 2);
}

}  // namespace
}  // namespace paceline

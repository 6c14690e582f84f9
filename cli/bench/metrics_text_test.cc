#include "cli/bench/metrics_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/bench/http_get.h"
#include "cli/bench/spec_activity.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

TEST(MetricsText, NamesLabelsValues) {
  const auto samples = ParseMetricsText(
      "# HELP a_total What it counts\n# TYPE a_total counter\n"
      "a_total{model=\"m \\\"q\\\" \\\\ \\n\",k=\"v\",} 12 1700000000\r\n"
      "b 1.5e3\n\nc_bucket{le=\"+Inf\"} +Inf\nd NaN");
  ASSERT_TRUE(samples.ok()) << samples.status();
  ASSERT_EQ(samples->size(), 4u);
  EXPECT_EQ((*samples)[0].labels.at("model"), "m \"q\" \\ \n");
  EXPECT_EQ((*samples)[0].labels.at("k"), "v");
  EXPECT_EQ((*samples)[0].value, 12);
  EXPECT_EQ((*samples)[1].value, 1500);
}

TEST(MetricsText, MalformedLinesAreNamed) {
  for (const auto& [text, reason] : {std::pair{"a 1\nb\n", "line 2: '' is no number"},
                                     {"a one", "line 1: 'one' is no number"},
                                     {"{x=\"y\"} 1", "a name is missing"},
                                     {"a{x=y} 1", "label x has no quoted value"},
                                     {"a{x=\"y} 1", "has no end"},
                                     {"a{x=\"y\\", "has no end"},
                                     {"a{", "a name is missing"},
                                     {"a{x", "label x has no quoted value"}}) {
    const auto samples = ParseMetricsText(text);
    EXPECT_EQ(samples.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(samples.status().message()), HasSubstr(reason)) << text;
  }
}

TEST(SpecActivity, ReadsCountersOfTargetsAndDrafts) {
  const auto samples = ParseMetricsText(
      "paceline_worker_spec_steps_total{model=\"m\",proposal=\"full\"} 70\n"
      "paceline_worker_spec_steps_total{model=\"m\",proposal=\"partial\"} 10\n"
      "paceline_worker_spec_steps_total{model=\"m\",proposal=\"local\"} 5\n"
      "paceline_worker_spec_steps_total{model=\"m\",proposal=\"none\"} 15\n"
      "paceline_worker_spec_late_proposals_total{model=\"m\"} 20\n"
      "paceline_worker_spec_drafts_total 80\npaceline_worker_spec_accepted_tokens_total 160\n"
      "paceline_worker_spec_outcome_hits_total 9\npaceline_worker_spec_outcome_misses_total 1\n"
      "paceline_draft_proposals_total{outcome=\"used\"} 30\n"
      "paceline_draft_proposals_total{outcome=\"stale\"} 10\n");
  ASSERT_TRUE(samples.ok());
  SpecActivity a = ReadSpecActivity(*samples);
  EXPECT_DOUBLE_EQ(a.Share(a.full), 0.7);
  EXPECT_DOUBLE_EQ(a.Share(a.none), 0.15);
  EXPECT_DOUBLE_EQ(a.late_share(), 0.2);
  EXPECT_DOUBLE_EQ(a.stale_share(), 0.25);
  EXPECT_DOUBLE_EQ(a.hit_rate(), 0.9);
  EXPECT_DOUBLE_EQ(a.accepted_per_draft(), 2);

  SpecActivity later = a;
  later += a;
  EXPECT_EQ(later.Since(a).full, 70);
  EXPECT_EQ(a.Since(later).full, 0);  // restarted in between
  EXPECT_EQ(SpecActivity{}.hit_rate(), 0);
}

TEST(HttpGet, NobodyThereAndNoAddress) {
  const auto refused = HttpGet("127.0.0.1:1", "/metrics", std::chrono::seconds(5));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("127.0.0.1:1"));
  for (const char* address : {"localhost", ":80", "localhost:"}) {
    EXPECT_EQ(HttpGet(address, "/", std::chrono::seconds(5)).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(ScrapeSpecActivity({"127.0.0.1:1"}).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace paceline

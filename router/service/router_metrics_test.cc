#include "router/service/router_metrics.h"

#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

namespace paceline {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Page(const prometheus::Collectable& metrics) {
  return prometheus::TextSerializer().Serialize(metrics.Collect());
}

RouterSnapshot Cluster() {
  RouterSnapshot s;
  s.in_flight = 5;
  s.queued = 2;
  s.workers = {{"a:1", true, WorkerState::kReady, CircuitState::kHalfOpen},
               {"b:1", true, WorkerState::kUnreachable, CircuitState::kOpen},
               {"c:1", false, WorkerState::kStarting, CircuitState::kClosed}};
  s.listed_unix = 1.7e9;
  return s;
}

struct Row {
  std::string type;
  std::set<std::string> labels;
};

// The section of docs/metrics.md.
std::map<std::string, Row> Documented() {
  std::ifstream file("docs/metrics.md");
  std::map<std::string, Row> rows;
  std::string line;
  bool inside = false;
  while (std::getline(file, line)) {
    if (line.starts_with("## ")) inside = line == "## Router";
    std::smatch match;
    if (!inside || !std::regex_search(
                       line, match, std::regex("^\\| `(paceline_\\w+)` \\| (\\w+) \\| ([^|]*)\\|")))
      continue;
    Row& row = rows[match[1]];
    row.type = match[2];
    const std::string labels = match[3];
    const std::regex word("\\w+");
    for (std::sregex_iterator it(labels.begin(), labels.end(), word), end; it != end; ++it) {
      row.labels.insert(it->str());
    }
  }
  return rows;
}

TEST(RouterMetricsTest, IsWhatTheDocumentSaysBeforeTheFirstRequest) {
  RouterMetrics metrics({"m"}, "static");
  metrics.SetSnapshotSource(Cluster);
  const auto rows = Documented();
  ASSERT_GT(rows.size(), 20u);
  std::map<std::string, Row> found;
  for (const auto& family : metrics.Collect()) {
    Row& row = found[family.name];
    row.type = family.type == prometheus::MetricType::Counter ? "counter"
               : family.type == prometheus::MetricType::Gauge ? "gauge"
                                                              : "histogram";
    for (const auto& metric : family.metric) {
      for (const auto& label : metric.label) row.labels.insert(label.name);
    }
    EXPECT_FALSE(family.help.empty());
  }
  for (const auto& [name, row] : rows) {
    ASSERT_TRUE(found.contains(name)) << name;
    EXPECT_EQ(found[name].type, row.type) << name;
    EXPECT_EQ(found[name].labels, row.labels) << name;
  }
  EXPECT_EQ(found.size(), rows.size());
}

TEST(RouterMetricsTest, ShowsTheClusterAsItIs) {
  RouterMetrics metrics({}, "static");
  RouterSnapshot cluster = Cluster();
  metrics.SetSnapshotSource([&] { return cluster; });
  std::string page = Page(metrics);
  for (const char* line :
       {"paceline_router_requests_in_flight 5", "paceline_router_queue_depth 2",
        "paceline_router_workers{pool=\"target\",state=\"ready\"} 1",
        "paceline_router_workers{pool=\"target\",state=\"unhealthy\"} 1",
        "paceline_router_workers{pool=\"draft\",state=\"starting\"} 1",
        "paceline_router_workers{pool=\"draft\",state=\"ready\"} 0",
        "paceline_router_worker_circuit_state{pool=\"target\",worker=\"a:1\"} 1",
        "paceline_router_worker_circuit_state{pool=\"target\",worker=\"b:1\"} 2",
        "paceline_router_discovery_last_success_timestamp_seconds{source=\"static\"} 1700000000"}) {
    EXPECT_THAT(page, HasSubstr(line));
  }
  cluster.workers.erase(cluster.workers.begin());
  page = Page(metrics);
  EXPECT_THAT(page, Not(HasSubstr("a:1")));
  EXPECT_THAT(page, HasSubstr("paceline_router_workers{pool=\"target\",state=\"ready\"} 0"));
}

TEST(RouterMetricsTest, CountsWhatTheCoreTells) {
  RouterMetrics metrics({"m"}, "static");
  metrics.Placed({.matched_tokens = 64}, "m");
  metrics.Placed({}, "m");
  metrics.Placed({.matched_tokens = 64, .session_home = true}, "m");
  metrics.Placed({.session_home = true, .avoided = true}, "m");
  metrics.QueueWait("m", 0, std::chrono::milliseconds(3));
  metrics.Rejected("m", ServingError::QueueFull(2, 1, "--max-queue"));
  metrics.Rejected("m", ServingError::EngineFault("x"));
  metrics.AttemptEnded(AttemptResult::kLost);
  metrics.FailedOver(FailoverPhase::kMidStream, true, 123);
  metrics.FailoverGap(std::chrono::milliseconds(80));
  metrics.Cancelled("decode", true);
  const std::string page = Page(metrics);
  for (const char* line : {"route_decisions_total{branch=\"prefix\",policy=\"score\"} 1",
                           "route_decisions_total{branch=\"least_loaded\",policy=\"score\"} 1",
                           "route_decisions_total{branch=\"sticky\",policy=\"score\"} 1",
                           "route_decisions_total{branch=\"fallback\",policy=\"score\"} 1",
                           "route_matched_prefix_tokens_sum 128", "queue_wait_seconds_sum 0.003",
                           "admission_rejected_total{reason=\"queue_full\"} 1",
                           "admission_rejected_total{reason=\"other\"} 1",
                           "upstream_attempts_total{pool=\"target\",result=\"lost\"} 1",
                           "upstream_attempts_total{pool=\"target\",result=\"ok\"} 0",
                           "failovers_total{outcome=\"resumed\",phase=\"mid_stream\"} 1",
                           "failover_replayed_tokens_total 123", "failover_gap_seconds_sum 0.08",
                           "cancelled_total{cause=\"deadline\",stage=\"decode\"} 1"}) {
    EXPECT_THAT(page, HasSubstr(std::string("paceline_router_") + line));
  }
}

TEST(RouterMetricsTest, CountsClientsCallsWithBoundedModels) {
  RouterMetrics metrics({"m"}, "static");
  RequestEnd end;
  end.method = "StreamGenerateText";
  end.model = "m";
  end.finish = FinishReason::kLength;
  end.total = std::chrono::seconds(2);
  end.generation = true;
  end.first_token = std::chrono::seconds(1);
  end.time_per_output_token = std::chrono::milliseconds(10);
  end.prompt_tokens = 7;
  end.output_tokens = 101;
  metrics.RequestEnded(end);
  metrics.FirstToken("m", std::chrono::seconds(1));
  metrics.NextTokens("m", std::chrono::milliseconds(10), 2);
  metrics.Overhead(OverheadStage::kForward, std::chrono::microseconds(100));
  metrics.RequestOverhead(std::chrono::microseconds(200));
  end.code = absl::StatusCode::kNotFound;
  end.finish = FinishReason::kError;
  end.first_token.reset();
  end.time_per_output_token.reset();
  end.model = "";
  metrics.RequestEnded(end);
  end.method = "GetClusterStatus";
  end.generation = false;
  metrics.RequestEnded(end);
  for (int i = 0; i < 1000; ++i) {
    end.model = "model-" + std::to_string(i);
    metrics.RequestEnded(end);
  }
  const std::string page = Page(metrics);
  for (const char* line :
       {"requests_total{code=\"OK\",finish_reason=\"length\",method=\"StreamGenerateText\","
        "model=\"m\"} 1",
        "requests_total{code=\"NOT_FOUND\",finish_reason=\"error\",method=\"StreamGenerateText\","
        "model=\"other\"} 1",
        "request_duration_seconds_count 2", "prompt_tokens_sum 14", "output_tokens_sum 101",
        "output_tokens_count 1", "time_per_output_token_seconds_sum 0.01",
        "time_to_first_token_seconds_sum 1", "inter_token_latency_seconds_sum 0.01",
        "overhead_seconds_sum{stage=\"forward\"} 0.0001", "request_overhead_seconds_sum 0.0002"}) {
    EXPECT_THAT(page, HasSubstr(std::string("paceline_router_") + line));
  }
  EXPECT_THAT(page, HasSubstr("model=\"model-0\""));
  EXPECT_THAT(page, Not(HasSubstr("model=\"model-999\"")));
}

// A scrape waits for the loop; the loop must be able to count meanwhile.
TEST(RouterMetricsTest, CountsWhileAScrapeWaits) {
  RouterMetrics metrics({"m"}, "static");
  metrics.SetSnapshotSource([&] {
    std::thread loop([&] {
      RequestEnd end;
      end.method = "GenerateText";
      end.model = "new";
      metrics.RequestEnded(end);
      metrics.Rejected("m", ServingError::Draining());
    });
    loop.join();
    return RouterSnapshot{};
  });
  EXPECT_THAT(Page(metrics), HasSubstr("model=\"new\""));
}

}  // namespace
}  // namespace paceline

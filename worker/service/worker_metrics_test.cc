#include "worker/service/worker_metrics.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <regex>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include "common/rpc/metrics_server.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Page(const prometheus::Collectable& metrics) {
  return prometheus::TextSerializer().Serialize(metrics.Collect());
}

// Names of one section of docs/metrics.md.
std::set<std::string> Documented(const std::string& section) {
  std::ifstream file("docs/metrics.md");
  std::set<std::string> names;
  std::string line;
  bool inside = false;
  while (std::getline(file, line)) {
    if (line.starts_with("## ")) inside = line == "## " + section;
    std::smatch match;
    if (inside && std::regex_search(line, match, std::regex("^\\| `(paceline_\\w+)`"))) {
      names.insert(match[1]);
    }
  }
  return names;
}

std::string Get(const std::string& address, const std::string& path) {
  const size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  const std::string ask = "GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
  EXPECT_EQ(write(fd, ask.data(), ask.size()), static_cast<ssize_t>(ask.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, n);
  close(fd);
  return answer;
}

TEST(WorkerMetricsTest, EveryDocumentedMetricIsThereBeforeTheFirstRequest) {
  WorkerMetrics metrics("m");
  RunnerInfo info;
  info.num_blocks = 7;
  metrics.SetPool(info, "bf16");
  const std::string page = Page(metrics);
  const auto names = Documented("Target worker");
  ASSERT_GT(names.size(), 30u);
  for (const std::string& name : names) EXPECT_THAT(page, HasSubstr("# TYPE " + name + " "));
  for (const char* line :
       {"paceline_worker_preemptions_total{model=\"m\",reason=\"priority\"} 0",
        "paceline_worker_spec_steps_total{model=\"m\",proposal=\"local\"} 0",
        "paceline_worker_spec_fallback_total{model=\"m\",reason=\"draft_down\"} 0",
        "paceline_worker_spec_accepted_at_position_total{model=\"m\",position=\"15\"} 0",
        "paceline_worker_step_seconds_count{model=\"m\",phase=\"verify\"} 0",
        "paceline_worker_ready{model=\"m\"} 0"}) {
    EXPECT_THAT(page, HasSubstr(line));
  }
}

TEST(WorkerMetricsTest, CountsWhatTheEngineTells) {
  WorkerMetrics metrics("m");
  metrics.StepDone(StepPhase::kVerify, std::chrono::milliseconds(3), 4, 20, 9);
  metrics.Verified(ProposalSource::kRemoteFull, 5, 3);
  metrics.Verified(ProposalSource::kRemoteFull, 5, 0);
  metrics.Verified(ProposalSource::kNoProposal, 0, 0);
  metrics.Preempted(PreemptReason::kKvPressure, 33);
  GenerationUsage usage;
  usage.output_tokens = 11;
  usage.drafted_tokens = 10;
  usage.accepted_tokens = 3;
  usage.first_token_time = std::chrono::seconds(1);
  usage.total_time = std::chrono::seconds(2);
  metrics.RequestDone(usage, true);
  metrics.RequestDone({}, false);
  const std::string page = Page(metrics);
  for (const char* line :
       {"paceline_worker_step_seconds_sum{model=\"m\",phase=\"verify\"} 0.003",
        "paceline_worker_spec_drafts_total{model=\"m\"} 2",
        "paceline_worker_spec_draft_tokens_total{model=\"m\"} 10",
        "paceline_worker_spec_accepted_tokens_total{model=\"m\"} 3",
        "paceline_worker_spec_accepted_at_position_total{model=\"m\",position=\"2\"} 1",
        "paceline_worker_spec_accepted_at_position_total{model=\"m\",position=\"3\"} 0",
        "paceline_worker_spec_accepted_length_bucket{model=\"m\",le=\"0\"} 1",
        "paceline_worker_preemptions_total{model=\"m\",reason=\"kv_pressure\"} 1",
        "paceline_worker_preempted_tokens_recomputed_total{model=\"m\"} 33",
        "paceline_worker_time_per_output_token_seconds_sum{model=\"m\"} 0.1",
        "paceline_worker_request_duration_seconds_count{model=\"m\"} 2",
        "paceline_worker_request_spec_acceptance_ratio_sum{model=\"m\"} 0.3"}) {
    EXPECT_THAT(page, HasSubstr(line));
  }
  EXPECT_EQ(metrics.drafted_tokens(), 10);
  EXPECT_EQ(metrics.accepted_tokens(), 3);
}

TEST(WorkerMetricsTest, FollowsSnapshotsAndTheSpeculatorsSums) {
  WorkerMetrics metrics("m");
  EngineSnapshot snapshot;
  snapshot.num_blocks = 10;
  snapshot.kv = {5, 3, 2};
  snapshot.kv_counters.evictions = 4;
  metrics.SetSnapshotSource([&] { return snapshot; });
  SpecCounters spec;
  metrics.SetSpecCounters([&]() -> const SpecCounters& { return spec; });
  Page(metrics);
  snapshot.kv_counters.evictions = 6;
  spec.steps_ngram = 3;
  spec.silences = 2;
  spec.probes = 4;
  spec.plans_answered = 6;
  spec.gain = 1.5;
  spec.fallbacks[static_cast<size_t>(FallbackReason::kLate)] = 2;
  spec.fallbacks[static_cast<size_t>(FallbackReason::kMiss)] = 1;
  metrics.StepDone(StepPhase::kDecode, {}, 1, 1, 1);
  metrics.StepDone(StepPhase::kDecode, {}, 1, 1, 1);
  const std::string page = Page(metrics);
  for (const char* line :
       {"paceline_worker_kv_cache_usage_ratio{model=\"m\"} 0.5",
        "paceline_worker_kv_blocks{model=\"m\",state=\"cached\"} 3",
        "paceline_worker_kv_evictions_total{model=\"m\"} 6",
        "paceline_worker_spec_steps_total{model=\"m\",proposal=\"local\"} 3",
        "paceline_worker_spec_sessions_total{model=\"m\",event=\"silence\"} 2",
        "paceline_worker_spec_control_total{model=\"m\",decision=\"probe\"} 4",
        "paceline_worker_spec_delayed_plans_total{model=\"m\",result=\"answered\"} 6",
        "paceline_worker_spec_gain_ratio{model=\"m\"} 1.5",
        "paceline_worker_spec_fallback_total{model=\"m\",reason=\"draft_late\"} 3"}) {
    EXPECT_THAT(page, HasSubstr(line));
  }
}

TEST(MetricsServerTest, ServesMetricsAndProbes) {
  auto metrics = std::make_shared<WorkerMetrics>("m");
  std::atomic<bool> ready = false;
  const auto server = MetricsServer::Start("127.0.0.1:0", metrics, [&] { return ready.load(); });
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string& address = (*server)->address();
  EXPECT_THAT(address, Not(HasSubstr(":0")));
  EXPECT_THAT(Get(address, "/livez"), HasSubstr("200 OK"));
  EXPECT_THAT(Get(address, "/readyz"), HasSubstr("503"));
  ready = true;
  EXPECT_THAT(Get(address, "/readyz"), HasSubstr("200 OK"));
  EXPECT_THAT(Get(address, "/metrics"), HasSubstr("paceline_worker_requests_running"));
  EXPECT_THAT(Get(address, "/nothing"), HasSubstr("404"));
  const auto taken = MetricsServer::Start(address, metrics, [] { return true; });
  ASSERT_FALSE(taken.ok());
  EXPECT_THAT(std::string(taken.status().message()), HasSubstr("--metrics-listen"));
}

}  // namespace
}  // namespace paceline

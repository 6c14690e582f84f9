#include "router/router_process.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/flags.h"
#include "common/log.h"
#include "common/model_name.h"
#include "common/rpc/callback_threads.h"
#include "common/rpc/metrics_server.h"
#include "common/rpc/rpc_server.h"
#include "common/status_macros.h"
#include "router/service/cluster_service.h"
#include "router/service/inference_service.h"
#include "router/service/random_id.h"
#include "router/service/router_metrics.h"
#include "router/service/session_service.h"
#include "router/service/worker_links.h"

namespace paceline {
namespace {

constexpr Duration kFirstReports = std::chrono::milliseconds(500);  // of workers, before it is said
constexpr Duration kEndGrace = std::chrono::seconds(1);             // for requests cut by the drain
constexpr Duration kShutdownGrace = std::chrono::seconds(2);        // for what clients still read

bool IsHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  int32_t port = 0;
  return colon != std::string::npos && colon > 0 &&
         absl::SimpleAtoi(address.substr(colon + 1), &port) && port > 0 && port < 65536;
}

absl::Status CheckAddresses(const char* flag, const std::string& list) {
  for (const std::string& address : SplitList(list)) {
    if (IsHostPort(address)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag, " has '", address, "'; it must be host:port"));
  }
  return absl::OkStatus();
}

std::unique_ptr<Discovery> ListOf(const std::string& flag) {
  std::vector<WorkerAddress> workers;
  for (const std::string& address : SplitList(flag)) workers.push_back({address});
  return std::make_unique<StaticDiscovery>(std::move(workers));
}

absl::StatusOr<SipKey> ResumeKey(const std::string& file) {
  if (file.empty()) {
    spdlog::info("no --resume-key-file: streams can be resumed at this router only");
    const uint64_t bits[] = {RandomBits(), RandomBits()};
    SipKey key;
    static_assert(sizeof(bits) == sizeof(key));
    std::copy_n(reinterpret_cast<const uint8_t*>(bits), key.size(), key.begin());
    return key;
  }
  std::ifstream stream(file);
  const std::string text((std::istreambuf_iterator<char>(stream)),
                         std::istreambuf_iterator<char>());
  if (!stream.good() && text.empty()) {
    return absl::NotFoundError(absl::StrCat("cannot read --resume-key-file ", file));
  }
  auto key = ResumeTokenCodec::ParseKey(text);
  if (key.ok()) return key;
  return absl::InvalidArgumentError(
      absl::StrCat("--resume-key-file ", file, ": ", std::string(key.status().message())));
}

RouterOptions OptionsOf(const RouterFlags& f) {
  RouterOptions options;
  options.admission = {f.max_in_flight, f.max_queue};
  options.max_attempts = f.max_attempts;
  options.max_replay_tokens = f.max_replay_tokens;
  options.queue_timeout = Seconds(f.queue_timeout);
  options.failover_timeout = Seconds(f.failover_timeout);
  options.silence_timeout = Seconds(f.silence_timeout);
  return options;
}

RouterSnapshot SnapshotOf(RouterLoop* loop, const WorkerLinks& links) {
  RouterSnapshot snapshot;
  loop->Read([&](const RouterCore& core, TimePoint now) {
    snapshot.in_flight = static_cast<int64_t>(core.num_requests());
    snapshot.queued = core.admission().waiting();
    for (const Worker& w : core.workers().all()) {
      if (w.listed) snapshot.workers.push_back({w.address, true, w.State(), w.Circuit(now)});
    }
  });
  for (const ClusterDirectory::Member& m : links.Members()) {
    if (m.role == "target") continue;
    const WorkerState state = !m.reached            ? WorkerState::kUnreachable
                              : m.report.draining() ? WorkerState::kDraining
                              : m.report.ready()    ? WorkerState::kReady
                                                    : WorkerState::kStarting;
    snapshot.workers.push_back({m.address, false, state, CircuitState::kClosed});
  }
  snapshot.listed_unix = links.last_listed_unix();
  return snapshot;
}

// The public services on their ports.
struct PublicServers {
  explicit PublicServers(const ApiContext& api) : inference(api), sessions(api), cluster(api) {}

  absl::Status Start(const RouterFlags& f) {
    std::vector<RpcServer::Service> services = {{"paceline.v1.InferenceService", &inference},
                                                {"paceline.v1.SessionService", &sessions}};
    const RpcServer::Service operators = {"paceline.v1.ClusterService", &cluster};
    if (f.cluster_listen.empty()) {
      services.push_back(operators);
    } else {
      ASSIGN_OR_RETURN(apart, RpcServer::Start(f.cluster_listen, {operators}, "--cluster-listen"));
      apart->SetServing(true);
    }
    ASSIGN_OR_RETURN(main, RpcServer::Start(f.listen, services));
    return absl::OkStatus();
  }
  void Shutdown() {
    main->Shutdown(kShutdownGrace);
    if (apart != nullptr) apart->Shutdown(Duration::zero());
  }

  InferenceServiceImpl inference;
  SessionServiceImpl sessions;
  ClusterServiceImpl cluster;
  std::unique_ptr<RpcServer> main, apart;
};

void Drain(const RouterFlags& f, RouterLoop* loop) {
  spdlog::info("draining");
  loop->StartDrain();
  if (loop->AwaitIdle(std::chrono::seconds(f.drain_timeout))) return;
  spdlog::warn("requests are still held behind --drain-timeout={} and end now", f.drain_timeout);
  loop->AbortAll(ServingError::Draining());
  loop->AwaitIdle(kEndGrace);
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> ParseModels(const std::string& text) {
  std::map<std::string, std::string> models;
  for (const std::string& part : SplitList(text)) {
    const size_t equals = part.find('=');
    const bool named = equals != std::string::npos && part.find('/') > equals;
    const std::string dir = named ? part.substr(equals + 1) : part;
    const std::string name = named ? part.substr(0, equals) : ModelName(part);
    if (name.empty() || dir.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model has '", part, "'; it must be DIR or NAME=DIR"));
    }
    if (!models.emplace(name, dir).second) {
      return absl::InvalidArgumentError(absl::StrCat("--model names '", name, "' twice"));
    }
  }
  return models;
}

absl::Status CheckFlags(const RouterFlags& f) {
  if (SplitList(f.workers).empty()) return absl::InvalidArgumentError("--workers is missing");
  RETURN_IF_ERROR(CheckAddresses("workers", f.workers));
  RETURN_IF_ERROR(CheckAddresses("drafts", f.drafts));
  RETURN_IF_ERROR(ParseModels(f.model).status());
  for (const auto& [name, value] : {std::pair{"max-in-flight", f.max_in_flight},
                                    {"max-attempts", f.max_attempts},
                                    {"max-outbox-tokens", f.max_outbox_tokens},
                                    {"text-threads", f.text_threads},
                                    {"callback-threads", f.callback_threads}}) {
    if (value < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, " is ", value, "; it must be at least 1"));
    }
  }
  for (const auto& [name, value] : {std::pair{"max-queue", static_cast<double>(f.max_queue)},
                                    {"max-text-queue", static_cast<double>(f.max_text_queue)},
                                    {"max-replay-tokens", static_cast<double>(f.max_replay_tokens)},
                                    {"drain-timeout", static_cast<double>(f.drain_timeout)},
                                    {"queue-timeout", f.queue_timeout},
                                    {"failover-timeout", f.failover_timeout},
                                    {"silence-timeout", f.silence_timeout}}) {
    if (!(value >= 0 && value <= 1e9)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, " is ", value, "; it must not be negative, nor above 1e9"));
    }
  }
  return absl::OkStatus();
}

absl::Status RunRouter(const RouterFlags& f, ProcessEnd* end) {
  KeepCallbackThreads(f.callback_threads);
  ASSIGN_OR_RETURN(const auto directories, ParseModels(f.model));
  ASSIGN_OR_RETURN(const ModelCatalog catalog, ModelCatalog::Load(directories));
  ASSIGN_OR_RETURN(const SipKey key, ResumeKey(f.resume_key_file));
  const ResumeTokenCodec codec(key);
  auto metrics = std::make_shared<RouterMetrics>(catalog.Names(), "static");
  TextExecutor text({.num_threads = f.text_threads, .max_queue = f.max_text_queue});
  RouterLoop loop(OptionsOf(f), metrics.get(), SteadyClock::Get(), metrics.get());
  auto links = std::make_unique<WorkerLinks>(&loop, ListOf(f.workers), ListOf(f.drafts));
  metrics->SetSnapshotSource([&] { return SnapshotOf(&loop, *links); });

  ApiContext api;
  api.loop = &loop;
  api.directory = links.get();
  api.catalog = &catalog;
  api.text = &text;
  api.resume = &codec;
  api.probe = metrics.get();
  api.clock = &SteadyClock::Get();
  api.options.max_outbox_tokens = f.max_outbox_tokens;
  api.options.debug_details = f.debug_errors;
  std::atomic<bool> serving = false;
  // Whatever happens: the servers end first, then the loop, then the links.
  struct Ending {
    RouterLoop* loop;
    ~Ending() { loop->Stop(); }
  } ending{&loop};
  PublicServers servers(api);
  RETURN_IF_ERROR(servers.Start(f));
  ASSIGN_OR_RETURN(auto metrics_server, MetricsServer::Start(f.metrics_listen, metrics, [&serving] {
                     return serving.load();
                   }));
  loop.OnServingChanged([&serving, server = servers.main.get()](bool now) {
    spdlog::info(now ? "serving" : "not serving");
    serving = now;
    server->SetServing(now);
  });

  end->SetReady();
  links->AwaitTried(kFirstReports);
  spdlog::info("ready address={} workers={} drafts={}", servers.main->address(), f.workers,
               f.drafts);
  std::printf("router listening on %s\nmetrics listening on %s\n", servers.main->address().c_str(),
              metrics_server->address().c_str());
  if (servers.apart != nullptr) {
    std::printf("cluster listening on %s\n", servers.apart->address().c_str());
  }
  std::fflush(stdout);

  absl::Status fault;
  end->Next(&fault);
  Drain(f, &loop);
  servers.Shutdown();
  metrics_server.reset();
  loop.Stop();
  return absl::OkStatus();
}

}  // namespace paceline

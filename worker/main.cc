// paceline-worker: flags -> wiring, signals. Binds its ports first, then loads; serves when loaded.

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/flags.h"
#include "common/log.h"
#include "common/rpc/metrics_server.h"
#include "common/status_macros.h"
#include "worker/draft/draft_engine.h"
#include "worker/engine/engine.h"
#include "worker/runner/cpu_runner.h"
#include "worker/service/draft_links.h"
#include "worker/service/draft_metrics.h"
#include "worker/service/draft_pairing.h"
#include "worker/service/draft_service.h"
#include "worker/service/model_name.h"
#include "worker/service/worker_metrics.h"
#include "worker/service/worker_server.h"
#include "worker/service/worker_service.h"
#include "worker/spec/draft_speculator.h"

namespace paceline {
namespace {

// For the last frames of streams at shutdown.
constexpr Duration kShutdownGrace = std::chrono::seconds(2);
// For other calls; connections of clients that do not listen are cut then.
constexpr Duration kUnaryGrace = std::chrono::milliseconds(100);
// For targets to move their sessions; losing a drafter costs them speed only.
constexpr Duration kDraftDrainGrace = std::chrono::seconds(2);
constexpr Duration kDrainPoll = std::chrono::milliseconds(10);

struct WorkerFlags {
  std::string role = "target", model, model_name, listen = "127.0.0.1:0",
              metrics_listen = "127.0.0.1:0", draft, device = "auto", speculation = "auto",
              draft_mode = "enumerate", launch_ahead = "off", log_level = "info";
  int32_t threads = 0, block_size = 16, kv_blocks = 0, max_batch_tokens = 512, prefill_chunk = 256,
          max_waiting = 256, max_sequences = 64, max_context = 0, max_drafts = 8,
          drain_timeout = 600;
  int64_t kv_bytes = int64_t{256} << 20;
  bool prefix_cache = true;
};

void AddFlags(WorkerFlags* f, Flags* flags) {
  flags->AddChoice("role", &f->role, {"target", "draft", "shard"}, "what this worker does");
  flags->Add("model", &f->model, "HF directory of the model");
  flags->Add("model-name", &f->model_name, "name that requests use; default: the directory's name");
  flags->Add("listen", &f->listen, "host:port of gRPC; port 0 = a free one");
  flags->Add("metrics-listen", &f->metrics_listen, "host:port of /metrics, /livez and /readyz");
  flags->Add("draft", &f->draft, "draft workers, host:port[,host:port]; names are resolved again");
  flags->AddChoice("device", &f->device, {"auto", "cpu", "cuda"}, "where the model runs");
  flags->Add("threads", &f->threads, "compute threads; 0 = all cores");
  flags->Add("block-size", &f->block_size, "tokens per KV block: 16, 32 or 64");
  flags->Add("kv-blocks", &f->kv_blocks, "blocks of the KV pool; 0 = as many as --kv-bytes hold");
  flags->Add("kv-bytes", &f->kv_bytes, "bytes of the KV pool");
  flags->Add("max-batch-tokens", &f->max_batch_tokens, "rows of one step at most");
  flags->Add("prefill-chunk", &f->prefill_chunk, "prompt rows per sequence and step at most");
  flags->Add("max-waiting", &f->max_waiting, "queued requests at most");
  flags->Add("max-sequences", &f->max_sequences, "sequences that run at once at most");
  flags->Add("max-context", &f->max_context, "tokens of prompt and output; 0 = the model's");
  flags->Add("max-drafts", &f->max_drafts, "draft tokens per sequence and step at most");
  flags->AddChoice("speculation", &f->speculation, {"auto", "always", "off"},
                   "for requests that leave it to the worker");
  flags->AddChoice("draft-mode", &f->draft_mode, {"chain", "enumerate", "sync"},
                   "how draft workers are used; sync is for comparison");
  flags->AddChoice("launch-ahead", &f->launch_ahead, {"on", "off"},
                   "launch a step before the last one is read");
  flags->Add("prefix-cache", &f->prefix_cache, "share KV blocks of equal prefixes");
  flags->Add("drain-timeout", &f->drain_timeout, "seconds that SIGTERM waits for requests");
  flags->Add("log-level", &f->log_level, "trace, debug, info, warn, error or off");
}

absl::Status CheckFlags(WorkerFlags* f, const std::vector<std::string>& positional) {
  if (!positional.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument ", positional[0]));
  }
  if (f->model.empty()) return absl::InvalidArgumentError("--model is missing");
  if (f->drain_timeout < 0) return absl::InvalidArgumentError("--drain-timeout is negative");
  if (f->model_name.empty()) f->model_name = ModelName(f->model);
  return absl::OkStatus();
}

// What this build cannot do, by name.
absl::Status CheckSupported(const WorkerFlags& f) {
  if (f.role == "shard") {
    return absl::UnimplementedError("--role=shard: tensor parallelism is not implemented");
  }
  if (f.device == "cuda") {
    return absl::UnimplementedError("--device=cuda: this build has no CUDA backend");
  }
  return absl::OkStatus();
}

// What ends the process: a signal, or the end of the engine's thread. Signals are blocked in every
// thread and read by one.
class ProcessEnd {
 public:
  ProcessEnd() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    std::thread([this] { ReadSignals(); }).detach();
  }

  // From now on a first signal drains; before, it ends the process at once.
  void SetReady() { ready_ = true; }
  void EngineEnded(const absl::Status& status) {
    std::lock_guard lock(mutex_);
    engine_ended_ = true;
    fault_ = status;
    changed_.notify_all();
  }
  // By RPC: stop taking work, stay.
  void AskDrain() {
    std::lock_guard lock(mutex_);
    drain_asked_ = true;
    changed_.notify_all();
  }

  enum class Event { kDrain, kSignal, kFault };
  // Blocks for the next one; a fault comes first, with *fault.
  Event Next(absl::Status* fault) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return signals_seen_ > 0 || engine_ended_ || drain_asked_; });
    *fault = fault_;
    if (engine_ended_) return Event::kFault;
    drain_asked_ = false;
    return signals_seen_ > 0 ? Event::kSignal : Event::kDrain;
  }
  // Polls `done` until it holds, a time has passed, or the engine has ended.
  template <typename Done>
  bool WaitUntil(Done done, Duration limit) {
    const TimePoint end = SteadyClock::Get().Now() + limit;
    std::unique_lock lock(mutex_);
    while (!done()) {
      if (engine_ended_ || SteadyClock::Get().Now() >= end) return false;
      changed_.wait_for(lock, kDrainPoll);
    }
    return true;
  }

 private:
  void ReadSignals() {
    while (true) {
      int signal = 0;
      if (sigwait(&signals_, &signal) != 0) continue;
      std::lock_guard lock(mutex_);
      if (++signals_seen_ > 1) std::_Exit(kExitFailure);
      if (!ready_) std::_Exit(0);
      changed_.notify_all();
    }
  }

  sigset_t signals_;
  std::atomic<bool> ready_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  int signals_seen_ = 0;
  bool engine_ended_ = false;
  bool drain_asked_ = false;
  absl::Status fault_;
};

absl::StatusOr<std::unique_ptr<CpuRunner>> LoadRunner(const WorkerFlags& f) {
  ASSIGN_OR_RETURN(auto model, LoadCpuModel(f.model));
  CpuRunnerOptions options;
  options.threads = f.threads;
  options.kv_bytes = f.kv_bytes;
  options.num_blocks = f.kv_blocks;
  options.block_size = f.block_size;
  options.max_slots = f.max_sequences;
  options.max_context = f.max_context;
  return CpuRunner::Create(std::move(model), options);
}

void PrintAddresses(const WorkerServer& server, const MetricsServer& metrics) {
  std::printf("worker listening on %s\nmetrics listening on %s\n", server.address().c_str(),
              metrics.address().c_str());
  std::fflush(stdout);
}

// A device that has failed once cannot be trusted again: the process ends, and routers carry its
// requests elsewhere.
[[noreturn]] void DieOfFault(const absl::Status& fault) {
  spdlog::critical("engine failed cause=\"{}\"", fault.ToString());
  spdlog::shutdown();
  std::_Exit(kExitFailure);
}

// Returns at the first signal. Calls `drain` then, and whenever it is asked for.
void AwaitSignal(ProcessEnd* end, const std::function<void()>& drain) {
  while (true) {
    absl::Status fault;
    const ProcessEnd::Event event = end->Next(&fault);
    if (event == ProcessEnd::Event::kFault) DieOfFault(fault);
    drain();
    if (event == ProcessEnd::Event::kSignal) return;
  }
}

void FillTargetStatus(const Engine& engine, const WorkerMetrics& metrics,
                      worker::v1::WatchStatusResponse* status) {
  const EngineSnapshot s = engine.Snapshot();
  status->set_running(s.running);
  status->set_waiting(s.waiting);
  status->set_queued_prompt_tokens(s.queued_prompt_tokens);
  status->set_active_blocks(s.kv.active_blocks);
  status->set_cached_blocks(s.kv.cached_blocks);
  status->set_free_blocks(s.kv.free_blocks);
  status->set_fragmentation(s.fragmentation);
  status->set_step_seconds(s.step_seconds);
  status->set_tokens_per_second(s.tokens_per_second);
  status->set_drafted_tokens(metrics.drafted_tokens());
  status->set_accepted_tokens(metrics.accepted_tokens());
  status->set_prefix_epoch(s.prefix_epoch);
  status->mutable_prefix_chunks()->Assign(s.prefix_chunks.begin(), s.prefix_chunks.end());
}

void FillDraftStatus(const DraftEngine& engine, worker::v1::WatchStatusResponse* status) {
  const DraftLoad load = engine.load();
  const KvOccupancy kv = engine.kv();
  status->set_draft_sessions(load.sessions);
  status->set_active_blocks(kv.active_blocks);
  status->set_cached_blocks(kv.cached_blocks);
  status->set_free_blocks(kv.free_blocks);
  status->set_step_seconds(load.step_micros * 1e-6);
}

absl::Status RunTarget(const WorkerFlags& f, ProcessEnd* end) {
  const TimePoint start = SteadyClock::Get().Now();
  WorkerState state("target", f.model_name);
  auto metrics = std::make_shared<WorkerMetrics>(f.model_name);
  StatusFeed feed(&state);
  WorkerServiceOptions service_options;
  if (f.speculation == "always") service_options.auto_decoding = DecodingMode::kDraft;
  if (f.speculation == "off") service_options.auto_decoding = DecodingMode::kPlain;
  WorkerServiceImpl service(
      &state, &feed, [end] { end->AskDrain(); }, service_options);
  ASSIGN_OR_RETURN(auto server,
                   WorkerServer::Start(f.listen, {{"paceline.worker.v1.WorkerService", &service}}));
  ASSIGN_OR_RETURN(auto metrics_server, MetricsServer::Start(f.metrics_listen, metrics,
                                                             [&state] { return state.serving(); }));

  ASSIGN_OR_RETURN(std::unique_ptr<CpuRunner> runner, LoadRunner(f));
  ASSIGN_OR_RETURN(const std::string tokenizer, TokenizerFingerprint(f.model));
  const RunnerInfo info = runner->info();
  metrics->process().SetStartup(StartupPhase::kLoad, SteadyClock::Get().Now() - start);
  metrics->SetPool(info, "bf16");
  state.SetLoaded(info, tokenizer);

  DraftSpeculator* speculator = nullptr;
  std::unique_ptr<DraftSpeculator> owned_speculator;
  if (f.speculation != "off") {
    DraftSpeculatorOptions options;
    options.vocab_size = info.vocab_size;
    options.remote = f.draft_mode == "chain"  ? RemoteMode::kChain
                     : f.draft_mode == "sync" ? RemoteMode::kSync
                                              : RemoteMode::kEnumerate;
    owned_speculator = std::make_unique<DraftSpeculator>(options);
    speculator = owned_speculator.get();
    metrics->SetSpecCounters(
        [speculator]() -> const SpecCounters& { return speculator->counters(); });
  }
  EngineOptions options;
  options.max_batch_rows = f.max_batch_tokens;
  options.prefill_chunk = f.prefill_chunk;
  options.max_waiting = f.max_waiting;
  options.max_drafts = f.max_drafts;
  options.launch_ahead = f.launch_ahead == "on";
  options.prefix_cache = f.prefix_cache;
  auto engine = std::make_unique<Engine>(options, std::move(runner), std::move(owned_speculator),
                                         SteadyClock::Get(), metrics.get(), service.Sink());
  metrics->SetSnapshotSource([&engine] { return engine->Snapshot(); });
  feed.SetSource([&](worker::v1::WatchStatusResponse* status) {
    FillTargetStatus(*engine, *metrics, status);
  });
  service.Serve(engine.get());
  std::unique_ptr<DraftLinks> links;
  if (speculator != nullptr) {
    links = std::make_unique<DraftLinks>(
        SplitList(f.draft), MakeHello(state.info()), speculator,
        [&metrics](Duration round_trip) { metrics->ObserveRoundTrip(round_trip); });
  }
  std::thread loop([&] { end->EngineEnded(engine->Run()); });

  end->SetReady();
  state.SetReady();
  server->SetServing(true);
  metrics->process().SetStartup(StartupPhase::kReady, SteadyClock::Get().Now() - start);
  metrics->process().SetReady(true);
  spdlog::info("ready model={} numerics={} kv_blocks={} block_size={} context={} address={}",
               f.model_name, info.numerics_fingerprint, info.num_blocks, info.block_size,
               info.max_context, server->address());
  PrintAddresses(*server, *metrics_server);

  AwaitSignal(end, [&] {
    spdlog::info("draining requests={}", service.num_requests());
    state.SetDraining();
    metrics->process().SetReady(false);
    server->SetServing(false);
    engine->StartDrain();
  });
  const bool drained = end->WaitUntil([&] { return service.num_requests() == 0; },
                                      std::chrono::seconds(f.drain_timeout));
  if (!drained) spdlog::warn("stopping with requests={}", service.num_requests());
  feed.Stop();
  service.Stop();
  end->WaitUntil([&] { return service.num_streams() == 0; }, kShutdownGrace);
  server->Shutdown(kUnaryGrace);
  links.reset();
  engine->Stop();
  loop.join();
  metrics_server.reset();
  return absl::OkStatus();
}

absl::Status RunDraft(const WorkerFlags& f, ProcessEnd* end) {
  const TimePoint start = SteadyClock::Get().Now();
  WorkerState state("draft", f.model_name);
  auto metrics = std::make_shared<DraftMetrics>(f.model_name);
  StatusFeed feed(&state);
  DraftServiceImpl drafts(&state, metrics.get());
  WorkerServiceImpl service(&state, &feed, [end] { end->AskDrain(); });
  ASSIGN_OR_RETURN(auto server,
                   WorkerServer::Start(f.listen, {{"paceline.draft.v1.DraftService", &drafts},
                                                  {"paceline.worker.v1.WorkerService", &service}}));
  ASSIGN_OR_RETURN(auto metrics_server, MetricsServer::Start(f.metrics_listen, metrics,
                                                             [&state] { return state.serving(); }));

  ASSIGN_OR_RETURN(std::unique_ptr<CpuRunner> runner, LoadRunner(f));
  ASSIGN_OR_RETURN(const std::string tokenizer, TokenizerFingerprint(f.model));
  metrics->process().SetStartup(StartupPhase::kLoad, SteadyClock::Get().Now() - start);
  state.SetLoaded(runner->info(), tokenizer);

  DraftEngineOptions options;
  options.max_batch_rows = f.max_batch_tokens;
  options.prefill_chunk = f.prefill_chunk;
  options.prefix_cache = f.prefix_cache;
  auto engine = std::make_unique<DraftEngine>(options, std::move(runner), SteadyClock::Get());
  metrics->SetEngine(engine.get());
  feed.SetSource(
      [&](worker::v1::WatchStatusResponse* status) { FillDraftStatus(*engine, status); });
  drafts.Serve(engine.get());
  std::thread loop([&] { end->EngineEnded(engine->Run()); });

  end->SetReady();
  state.SetReady();
  server->SetServing(true);
  metrics->process().SetStartup(StartupPhase::kReady, SteadyClock::Get().Now() - start);
  metrics->process().SetReady(true);
  spdlog::info("ready model={} address={}", f.model_name, server->address());
  PrintAddresses(*server, *metrics_server);

  AwaitSignal(end, [&] {
    spdlog::info("draining sessions={}", engine->load().sessions);
    state.SetDraining();
    metrics->process().SetReady(false);
    server->SetServing(false);
    drafts.AnnounceDrain();
  });
  end->WaitUntil([&] { return engine->load().sessions == 0; },
                 std::min<Duration>(kDraftDrainGrace, std::chrono::seconds(f.drain_timeout)));
  feed.Stop();
  drafts.Stop();
  service.Stop();
  end->WaitUntil([&] { return drafts.num_streams() == 0; }, kShutdownGrace);
  server->Shutdown(kUnaryGrace);
  engine->Stop();
  loop.join();
  metrics_server.reset();
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // what matters is said by us, in one sentence
  WorkerFlags f;
  Flags flags("paceline-worker: a model replica (target) or a draft model, served over gRPC");
  AddFlags(&f, &flags);
  if (absl::Status status = CheckFlags(&f, flags.ParseOrExit(argc, argv)); !status.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
    return kExitUsage;
  }
  InitLogging(f.role, f.log_level);
  auto* end = new ProcessEnd;  // its thread ends with the process
  absl::Status status = CheckSupported(f);
  if (status.ok()) status = f.role == "draft" ? RunDraft(f, end) : RunTarget(f, end);
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return kExitFailure;
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) { return paceline::Main(argc, argv); }

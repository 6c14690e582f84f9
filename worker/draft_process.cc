// --role=draft: one draft model, shared by targets.

#include <algorithm>
#include <thread>

#include "common/log.h"
#include "common/model_name.h"
#include "common/status_macros.h"
#include "worker/draft/draft_engine.h"
#include "worker/service/draft_metrics.h"
#include "worker/service/draft_service.h"
#include "worker/service/worker_service.h"
#include "worker/worker_process.h"

namespace paceline {
namespace {

// For targets to move their sessions; losing a drafter costs them speed only.
constexpr Duration kDraftDrainGrace = std::chrono::seconds(2);

void FillDraftStatus(const DraftEngine& engine, worker::v1::WatchStatusResponse* status) {
  const DraftLoad load = engine.load();
  const KvOccupancy kv = engine.kv();
  status->set_draft_sessions(load.sessions);
  status->set_active_blocks(kv.active_blocks);
  status->set_cached_blocks(kv.cached_blocks);
  status->set_free_blocks(kv.free_blocks);
  status->set_step_seconds(load.step_micros * 1e-6);
}

}  // namespace

absl::Status RunDraft(const WorkerFlags& f, ProcessEnd* end) {
  const TimePoint start = SteadyClock::Get().Now();
  ProcessState state("draft", f.model_name);
  auto metrics = std::make_shared<DraftMetrics>(f.model_name);
  StatusFeed feed(&state);
  DraftServiceImpl drafts(&state, metrics.get());
  WorkerServiceImpl service(&state, &feed, [end] { end->AskDrain(); });
  ASSIGN_OR_RETURN(auto server,
                   RpcServer::Start(f.listen, {{"paceline.draft.v1.DraftService", &drafts},
                                               {"paceline.worker.v1.WorkerService", &service}}));
  ASSIGN_OR_RETURN(auto metrics_server, MetricsServer::Start(f.metrics_listen, metrics,
                                                             [&state] { return state.serving(); }));

  ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner,
                   LoadRunner(f, [&](StartupPhase phase, Duration took) {
                     metrics->process().SetStartup(phase, took);
                   }));
  ASSIGN_OR_RETURN(const std::string tokenizer, TokenizerFingerprint(f.model));
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
  std::thread loop([&] { end->WorkEnded(engine->Run()); });

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

}  // namespace paceline

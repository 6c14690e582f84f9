// --role=target: one model replica.

#include <thread>

#include "common/log.h"
#include "common/model_name.h"
#include "common/status_macros.h"
#include "worker/drafting.h"
#include "worker/engine/engine.h"
#include "worker/service/draft_pairing.h"
#include "worker/service/worker_metrics.h"
#include "worker/service/worker_service.h"
#include "worker/worker_process.h"

namespace paceline {
namespace {

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

}  // namespace

absl::Status RunTarget(const WorkerFlags& f, ProcessEnd* end) {
  const TimePoint start = SteadyClock::Get().Now();
  ProcessState state("target", f.model_name);
  auto metrics = std::make_shared<WorkerMetrics>(f.model_name);
  StatusFeed feed(&state);
  WorkerServiceOptions service_options;
  if (f.speculation == "always") service_options.auto_decoding = DecodingMode::kDraft;
  if (f.speculation == "off") service_options.auto_decoding = DecodingMode::kPlain;
  WorkerServiceImpl service(
      &state, &feed, [end] { end->AskDrain(); }, service_options);
  ASSIGN_OR_RETURN(auto server,
                   RpcServer::Start(f.listen, {{"paceline.worker.v1.WorkerService", &service}}));
  ASSIGN_OR_RETURN(auto metrics_server, MetricsServer::Start(f.metrics_listen, metrics,
                                                             [&state] { return state.serving(); }));

  ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner,
                   LoadRunner(f, [&](StartupPhase phase, Duration took) {
                     metrics->process().SetStartup(phase, took);
                   }));
  ASSIGN_OR_RETURN(const std::string tokenizer, TokenizerFingerprint(f.model));
  const RunnerInfo info = runner->info();
  metrics->SetPool(info, "bf16");
  state.SetLoaded(info, tokenizer);

  Drafting drafting = MakeDrafting(f, info);
  metrics->SetSpecCounters(drafting.counters);
  EngineOptions options;
  options.max_batch_rows = f.max_batch_tokens;
  options.prefill_chunk = f.prefill_chunk;
  options.max_waiting = f.max_waiting;
  options.max_drafts = f.max_drafts;
  options.launch_ahead = f.launch_ahead == "on";
  options.prefix_cache = f.prefix_cache;
  auto engine = std::make_unique<Engine>(options, std::move(runner), std::move(drafting.speculator),
                                         SteadyClock::Get(), metrics.get(), service.Sink());
  metrics->SetSnapshotSource([&engine] { return engine->Snapshot(); });
  feed.SetSource([&](worker::v1::WatchStatusResponse* status) {
    FillTargetStatus(*engine, *metrics, status);
  });
  service.Serve(engine.get());
  std::shared_ptr<void> links;
  if (drafting.connect) {
    links = drafting.connect(MakeHello(state.info()), [&metrics](Duration round_trip) {
      metrics->ObserveRoundTrip(round_trip);
    });
  }
  std::thread loop([&] { end->WorkEnded(engine->Run()); });

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

}  // namespace paceline

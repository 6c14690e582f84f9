#include "tests/sim/hash_worker.h"

#include <thread>

#include "common/check.h"
#include "common/rpc/rpc_server.h"
#include "tests/sim/hash_runner.h"
#include "worker/service/worker_service.h"

namespace paceline::testing {

class HashWorker::Impl {
 public:
  explicit Impl(const std::string& address) {
    auto server = RpcServer::Start(address, {{"paceline.worker.v1.WorkerService", &service}});
    CHECK(server.ok()) << server.status().ToString();
    rpc = *std::move(server);
    auto runner = std::make_unique<HashRunner>(HashRunnerOptions{.model = Model().options()});
    engine = std::make_unique<Engine>(EngineOptions{}, std::move(runner), nullptr,
                                      SteadyClock::Get(), nullptr, service.Sink());
    state.SetLoaded(engine->runner_info(), "tok");
    feed.SetSource([this](worker::v1::WatchStatusResponse* status) { Fill(status); });
    service.Serve(engine.get());
    state.SetReady();
  }
  void Fill(worker::v1::WatchStatusResponse* status) {
    const EngineSnapshot s = engine->Snapshot();
    status->set_running(s.running);
    status->set_waiting(s.waiting);
    status->set_prefix_epoch(s.prefix_epoch);
    status->mutable_prefix_chunks()->Assign(s.prefix_chunks.begin(), s.prefix_chunks.end());
  }

  ProcessState state{"target", "hash"};
  StatusFeed feed{&state};
  WorkerServiceImpl service{&state, &feed, [this] { engine->StartDrain(); }};
  std::unique_ptr<RpcServer> rpc;
  std::unique_ptr<Engine> engine;
  std::thread loop;
};

HashWorker::HashWorker(const std::string& address) : impl_(std::make_unique<Impl>(address)) {}

HashWorker::~HashWorker() {
  Kill();
  if (!impl_->loop.joinable()) return;
  impl_->engine->Stop();
  impl_->loop.join();
}

void HashWorker::Kill() {
  impl_->feed.Stop();
  impl_->rpc->Shutdown(Duration::zero());
}

void HashWorker::Run() {
  impl_->loop = std::thread([this] { CHECK(impl_->engine->Run().ok()); });
}

void HashWorker::Step() { CHECK(impl_->engine->Step().ok()); }

const HashModel& HashWorker::Model() {
  static const HashModel model{HashModelOptions{.seed = 5}};
  return model;
}

const std::string& HashWorker::address() const { return impl_->rpc->address(); }

size_t HashWorker::num_requests() const { return impl_->service.num_requests(); }

EngineSnapshot HashWorker::Snapshot() const { return impl_->engine->Snapshot(); }

}  // namespace paceline::testing

// What the tests of worker links share: a router without clients' RPCs before real links.
#pragma once

#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "router/service/router_loop.h"
#include "router/service/worker_links.h"

namespace paceline::testing {

inline constexpr Duration kPatience = std::chrono::seconds(20);

template <typename Done>
bool Eventually(Done done) {
  const TimePoint end = SteadyClock::Get().Now() + kPatience;
  while (!done()) {
    if (SteadyClock::Get().Now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// A list that the test changes.
class ChangingDiscovery final : public Discovery {
 public:
  explicit ChangingDiscovery(std::vector<std::string> addresses) { Set(std::move(addresses)); }
  void Set(absl::StatusOr<std::vector<std::string>> addresses) {
    std::lock_guard lock(mutex_);
    if (!addresses.ok()) {
      list_ = addresses.status();
      return;
    }
    std::vector<WorkerAddress> list;
    for (const std::string& a : *addresses) list.push_back({a});
    list_ = std::move(list);
  }
  absl::StatusOr<std::vector<WorkerAddress>> List() override {
    std::lock_guard lock(mutex_);
    return list_;
  }

 private:
  std::mutex mutex_;
  absl::StatusOr<std::vector<WorkerAddress>> list_;
};

// One client's call: its tokens by sample, and its end.
class Call final : public RequestSink {
 public:
  void OnDeliver(DeliverAction action) override {
    std::lock_guard lock(mutex_);
    auto& tokens = tokens_[action.delta.sample];
    EXPECT_EQ(action.delta.first_index, static_cast<int32_t>(tokens.size()));
    tokens.insert(tokens.end(), action.delta.tokens.begin(), action.delta.tokens.end());
  }
  void OnFinish(FinishAction action) override { finish_.set_value(std::move(action)); }

  FinishAction Await() {
    auto future = finish_.get_future();
    if (future.wait_for(kPatience) == std::future_status::ready) return future.get();
    ADD_FAILURE() << "no OnFinish";
    return {};
  }
  std::vector<TokenId> tokens(int32_t sample = 0) const {
    std::lock_guard lock(mutex_);
    const auto it = tokens_.find(sample);
    return it == tokens_.end() ? std::vector<TokenId>() : it->second;
  }

 private:
  mutable std::mutex mutex_;
  std::map<int32_t, std::vector<TokenId>> tokens_;
  std::promise<FinishAction> finish_;
};

inline ClientRequest NewRequest(uint64_t seed, int32_t max_tokens = 20) {
  ClientRequest request;
  request.model = "hash";
  GenerationRequest& g = request.generation;
  g.request_id = "r" + std::to_string(seed);
  for (int i = 0; i < 10; ++i) g.prompt.push_back(static_cast<TokenId>(1 + (seed + i) % 90));
  g.sampling.seed = seed;
  g.sampling.max_tokens = max_tokens;
  g.sampling.ignore_eos = true;
  return request;
}

// A loop with links to the given addresses.
class LinkedRouter {
 public:
  explicit LinkedRouter(std::vector<std::string> targets, std::vector<std::string> drafts = {},
                        RouterOptions options = {}, WorkerLinksOptions links_options = {})
      : loop(options, nullptr, SteadyClock::Get()) {
    auto discovery = std::make_unique<ChangingDiscovery>(std::move(targets));
    list = discovery.get();
    links_options.relist_interval = std::chrono::milliseconds(10);
    links = std::make_unique<WorkerLinks>(&loop, std::move(discovery),
                                          std::make_unique<ChangingDiscovery>(std::move(drafts)),
                                          links_options);
  }
  ~LinkedRouter() { loop.Stop(); }

  std::shared_ptr<Call> Start(ClientRequest request) {
    auto call = std::make_shared<Call>();
    loop.Start(std::move(request), call);
    return call;
  }
  Worker Of(WorkerId id) {
    Worker worker;
    loop.Read([&](const RouterCore& core, TimePoint) { worker = *core.workers().Find(id); });
    return worker;
  }
  bool AwaitState(WorkerId id, WorkerState state) {
    return Eventually([&] { return Of(id).State() == state; });
  }
  bool AwaitReady(WorkerId id) { return AwaitState(id, WorkerState::kReady); }

  RouterLoop loop;
  ChangingDiscovery* list;
  std::unique_ptr<WorkerLinks> links;
};

}  // namespace paceline::testing

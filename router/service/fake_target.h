// A target worker for tests of the public API: answers with tokens that follow from the request
// alone, one per sample and round, through the worker's side of a RouterLoop.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "router/service/router_loop.h"

namespace paceline::testing {

// The bytes of a text with wide characters, from a place that seed and sample choose.
inline TokenId FakeToken(uint64_t seed, int32_t sample, int32_t index) {
  static const std::string text = "the naïve 語 rode behind. END of it, ";
  return static_cast<uint8_t>(text[(seed + 5 * sample + index) % text.size()]);
}

class FakeTarget final : public WorkerPort, public std::enable_shared_from_this<FakeTarget> {
 public:
  explicit FakeTarget(RouterLoop* loop) : loop_(loop), thread_([this] { Run(); }) {}
  ~FakeTarget() override { Stop(); }

  // Ready, with the model "m".
  void Connect(WorkerId id, WorkerSnapshot snapshot) {
    id_ = id;
    loop_->Post([id, snapshot](RouterCore& core, TimePoint now) {
      core.WorkerConnected(id, now);
      core.WorkerReported(id, snapshot, now);
    });
  }
  void Die() {
    {
      std::lock_guard lock(mutex_);
      requests_.clear();
    }
    loop_->Post([id = id_.load()](RouterCore& core, TimePoint now) {
      core.WorkerLost(id, "the connection broke", now);
    });
  }
  void Stop() {
    stopped_ = true;
    if (thread_.joinable()) thread_.join();
  }

  void Submit(AttemptHandle handle, const GenerationRequest& request) override {
    std::lock_guard lock(mutex_);
    ++submitted;
    last_request = request;
    Request r{request};
    r.emitted.resize(request.num_samples, 0);
    r.done.resize(request.num_samples, false);
    for (size_t s = 0; s < request.resumed.size(); ++s) {
      r.emitted[s] = static_cast<int32_t>(request.resumed[s].emitted.size());
      r.done[s] = request.resumed[s].finish != FinishReason::kNone;
    }
    requests_[handle] = std::move(r);
  }
  void Cancel(AttemptHandle handle) override {
    std::lock_guard lock(mutex_);
    ++cancelled;
    if (requests_.erase(handle) > 0) Finish(handle, absl::CancelledError("cancelled"));
  }
  void Flush() override {}

  size_t num_requests() const {
    std::lock_guard lock(mutex_);
    return requests_.size();
  }
  GenerationRequest LastRequest() const {
    std::lock_guard lock(mutex_);
    return last_request;
  }

  std::atomic<int32_t> hold_after = INT32_MAX;  // tokens of a sample; then it waits
  std::atomic<int32_t> burst = 1;               // tokens per delta
  std::atomic<int> submitted = 0, cancelled = 0;
  absl::Status answer;  // not OK: instead of tokens

 private:
  struct Request {
    GenerationRequest request;
    std::vector<int32_t> emitted;
    std::vector<bool> done;
  };

  void Run() {
    while (!stopped_) {
      bool queued = false;
      {
        std::lock_guard lock(mutex_);
        queued = !requests_.empty();
        for (auto it = requests_.begin(); it != requests_.end();) {
          it = Step(it->first, &it->second) ? requests_.erase(it) : std::next(it);
        }
      }
      if (queued) loop_->RunQueued();  // a turn submits and cancels: not under the lock
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
  bool Step(AttemptHandle handle, Request* r) {
    if (!answer.ok()) {
      Finish(handle, answer);
      return true;
    }
    bool all = true;
    for (int32_t s = 0; s < r->request.num_samples; ++s) {
      if (!r->done[s]) Emit(handle, s, r);
      all = all && r->done[s];
    }
    if (all) Finish(handle, absl::OkStatus());
    return all;
  }
  void Emit(AttemptHandle handle, int32_t s, Request* r) {
    const SamplingParams& p = r->request.sampling;
    SampleDelta delta{.sample = s, .first_index = r->emitted[s]};
    for (int32_t n = 0; n < burst; ++n) {
      if (r->emitted[s] >= std::min(p.max_tokens, hold_after.load())) break;
      delta.tokens.push_back(FakeToken(p.seed, s, r->emitted[s]++));
      if (p.top_logprobs < 0) continue;
      TokenLogprobs& l = delta.logprobs.emplace_back();
      l.logprob = -0.25f * static_cast<float>(r->emitted[s] % 8);
      for (int k = 0; k < p.top_logprobs; ++k) l.top.push_back({k, -static_cast<float>(k)});
    }
    if (delta.tokens.empty()) return;
    r->done[s] = r->emitted[s] == p.max_tokens;
    if (r->done[s]) delta.finish = FinishReason::kLength;
    loop_->Queue([id = id_.load(), handle, delta](RouterCore& core, TimePoint now) {
      core.WorkerDelta(id, handle, delta, now);
    });
  }
  void Finish(AttemptHandle handle, const absl::Status& status) {
    GenerationUsage usage;
    usage.cached_tokens = 1;
    usage.drafted_tokens = 4;
    usage.accepted_tokens = 3;
    loop_->Queue([id = id_.load(), handle, status, usage](RouterCore& core, TimePoint now) {
      core.WorkerFinished(id, handle, status, usage, now);
    });
  }

  RouterLoop* const loop_;
  std::atomic<WorkerId> id_ = kNoWorker;
  mutable std::mutex mutex_;
  std::map<AttemptHandle, Request> requests_;
  GenerationRequest last_request;
  std::atomic<bool> stopped_ = false;
  std::thread thread_;
};

}  // namespace paceline::testing

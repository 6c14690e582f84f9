#include "router/core/router_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;

// Stops at the token 99, holds 98 back until the next token.
class FakeText final : public SampleText {
 public:
  Piece Push(std::span<const TokenId> tokens) override {
    Piece piece;
    for (TokenId t : tokens) {
      ++piece.kept;
      if (t == 99) {
        piece.stopped = true;
        held_.clear();
        return piece;
      }
      piece.text += std::exchange(held_, "");
      (t == 98 ? held_ : piece.text) += absl::StrCat(t, ",");
    }
    return piece;
  }
  std::string Flush() override { return std::exchange(held_, ""); }

 private:
  std::string held_;
};

// A core with workers that the test speaks for, and what came out of it.
class RouterCoreTest : public testing::Test {
 protected:
  void MakeCore(int workers, RouterOptions options = {}) {
    core_ = std::make_unique<RouterCore>(options, nullptr);
    std::vector<WorkerAddress> addresses;
    for (int i = 0; i < workers; ++i) addresses.push_back({absl::StrCat("w", i)});
    core_->Relist(addresses, now_);
    for (int i = 0; i < workers; ++i) Bring(i);
  }
  void Bring(WorkerId w, const std::string& fingerprint = "fp", const std::string& model = "m") {
    core_->WorkerConnected(w, now_);
    WorkerSnapshot s;
    s.model = model;
    s.fingerprint = fingerprint;
    s.max_context = 100;
    s.vocab_size = 100;
    s.ready = true;
    core_->WorkerReported(w, s, now_);
    Collect();
  }
  static ClientRequest Request(const std::string& id = "r") {
    ClientRequest r;
    r.model = "m";
    r.generation.request_id = id;
    r.generation.prompt = {1, 2, 3};
    r.generation.sampling.seed = 7;
    r.generation.sampling.max_tokens = 8;
    return r;
  }
  void Start(RequestKey key, ClientRequest r) {
    core_->Start(key, std::move(r), now_);
    Collect();
  }
  void Delta(const SubmitAction& at, int32_t first, std::vector<TokenId> tokens,
             FinishReason finish = FinishReason::kNone, int32_t sample = 0) {
    SampleDelta d;
    d.sample = sample;
    d.first_index = first;
    d.tokens = std::move(tokens);
    d.finish = finish;
    core_->WorkerDelta(at.worker, at.handle, std::move(d), now_);
    Collect();
  }
  void Finished(const SubmitAction& at, absl::Status status = absl::OkStatus()) {
    GenerationUsage usage;
    usage.cached_tokens = 2;
    core_->WorkerFinished(at.worker, at.handle, status, usage, now_);
    Collect();
  }
  void Lose(WorkerId w) {
    core_->WorkerLost(w, "connection reset", now_);
    Collect();
  }
  void Advance(Duration d) {
    now_ += d;
    core_->Tick(now_);
    Collect();
  }
  void Collect() {
    for (RouterAction& a : core_->TakeActions()) {
      if (auto* s = std::get_if<SubmitAction>(&a)) submits_.push_back(std::move(*s));
      if (auto* c = std::get_if<CancelAction>(&a)) cancels_.push_back(*c);
      if (auto* d = std::get_if<DeliverAction>(&a)) {
        auto& got = tokens_[d->key];
        EXPECT_EQ(d->first, got.empty() && !heads_[d->key]++);
        EXPECT_EQ(d->delta.first_index,
                  static_cast<int32_t>(got[d->delta.sample].size()) + resumed_at_);
        got[d->delta.sample].insert(got[d->delta.sample].end(), d->delta.tokens.begin(),
                                    d->delta.tokens.end());
        text_[d->key] += d->text;
        delivered_.push_back(std::move(*d));
      }
      if (auto* f = std::get_if<FinishAction>(&a)) {
        EXPECT_EQ(finished_.count(f->key), 0u) << "two last words";
        finished_[f->key] = std::move(*f);
      }
    }
  }
  std::string Reason(RequestKey key) {
    if (!finished_.count(key)) return "in flight";
    return finished_[key].error ? finished_[key].error->reason : "OK";
  }
  const SubmitAction& Last() { return submits_.back(); }

  TimePoint now_{seconds(1000)};
  std::unique_ptr<RouterCore> core_;
  std::vector<SubmitAction> submits_;
  std::vector<CancelAction> cancels_;
  std::vector<DeliverAction> delivered_;
  std::map<RequestKey, std::map<int, std::vector<TokenId>>> tokens_;
  std::map<RequestKey, int> heads_;
  std::map<RequestKey, std::string> text_;
  std::map<RequestKey, FinishAction> finished_;
  int32_t resumed_at_ = 0;
};

TEST_F(RouterCoreTest, ARequestRunsToItsEnd) {
  MakeCore(1);
  EXPECT_TRUE(core_->Serving());
  Start(1, Request());
  ASSERT_EQ(submits_.size(), 1u);
  EXPECT_TRUE(Last().request.resumed.empty());
  now_ += milliseconds(5);
  Delta(Last(), 0, {10, 11});
  EXPECT_TRUE(delivered_[0].first);
  EXPECT_EQ(delivered_[0].fingerprint, "fp");
  Delta(Last(), 2, {12}, FinishReason::kStop);
  EXPECT_EQ(Reason(1), "in flight");
  Finished(Last());
  EXPECT_EQ(Reason(1), "OK");
  EXPECT_THAT(tokens_[1][0], ElementsAre(10, 11, 12));
  const FinishAction& f = finished_[1];
  EXPECT_EQ(f.usage.prompt_tokens, 3);
  EXPECT_EQ(f.usage.output_tokens, 3);
  EXPECT_EQ(f.usage.cached_tokens, 2);
  EXPECT_EQ(f.usage.first_token_time, milliseconds(5));
  EXPECT_EQ(f.failovers, 0);
  EXPECT_TRUE(f.exact);
  EXPECT_TRUE(cancels_.empty());
  EXPECT_EQ(core_->num_requests(), 0u);
  EXPECT_EQ(core_->admission().in_flight(), 0);
}

TEST_F(RouterCoreTest, AWorkerThatDiesInMidStreamIsReplaced) {
  MakeCore(2);
  ClientRequest r = Request();
  r.generation.num_samples = 2;
  Start(1, r);
  const SubmitAction first = Last();
  Delta(first, 0, {10, 11}, FinishReason::kNone, 0);
  Delta(first, 0, {20}, FinishReason::kStop, 1);
  Lose(first.worker);
  ASSERT_EQ(submits_.size(), 2u);
  const SubmitAction second = Last();
  EXPECT_NE(second.worker, first.worker);
  EXPECT_EQ(second.request.prompt, r.generation.prompt);  // output is never turned into prompt
  EXPECT_EQ(second.request.sampling, r.generation.sampling);
  ASSERT_EQ(second.request.resumed.size(), 2u);
  EXPECT_THAT(second.request.resumed[0].emitted, ElementsAre(10, 11));
  EXPECT_EQ(second.request.resumed[0].finish, FinishReason::kNone);
  EXPECT_EQ(second.request.resumed[1].finish, FinishReason::kStop);
  Delta(first, 2, {77});  // a late word of the dead one
  Delta(second, 2, {12}, FinishReason::kLength);
  Finished(second);
  EXPECT_EQ(Reason(1), "OK");
  EXPECT_THAT(tokens_[1][0], ElementsAre(10, 11, 12));
  EXPECT_THAT(tokens_[1][1], ElementsAre(20));
  EXPECT_EQ(finished_[1].failovers, 1);
  EXPECT_TRUE(finished_[1].exact);
}

TEST_F(RouterCoreTest, OtherNumericsAreTold) {
  MakeCore(2);
  Start(1, Request());
  const SubmitAction first = Last();
  Bring(1 - first.worker, "another");
  Delta(first, 0, {10});
  Lose(first.worker);
  Delta(Last(), 1, {11}, FinishReason::kStop);
  Finished(Last());
  EXPECT_FALSE(finished_[1].exact);
  EXPECT_EQ(finished_[1].fingerprint, "fp");
}

TEST_F(RouterCoreTest, GapsRepeatsAndNonsenseAreFaultsOfTheWorker) {
  for (int kind = 0; kind < 6; ++kind) {
    SCOPED_TRACE(kind);
    MakeCore(2);
    submits_.clear(), cancels_.clear(), finished_.clear(), tokens_.clear(), heads_.clear();
    Start(1, Request());
    const SubmitAction first = Last();
    Delta(first, 0, {10, 11});
    if (kind == 0) Delta(first, 3, {12});
    if (kind == 1) Delta(first, 1, {12});
    if (kind == 2) Delta(first, 2, {12}, FinishReason::kNone, /*sample=*/1);
    if (kind == 3) Delta(first, 2, {100});                       // outside the vocabulary
    if (kind == 4) Delta(first, 2, std::vector<TokenId>(7, 1));  // beyond max_tokens
    if (kind == 5) Finished(first);                              // with the sample open
    ASSERT_EQ(submits_.size(), 2u);
    EXPECT_NE(Last().worker, first.worker);
    ASSERT_EQ(cancels_.size(), 1u);
    EXPECT_EQ(cancels_[0].handle, first.handle);
    EXPECT_EQ(core_->workers().Find(first.worker)->Circuit(now_), CircuitState::kOpen);
    Delta(Last(), 2, {12}, FinishReason::kStop);
    Finished(Last());
    EXPECT_EQ(Reason(1), "OK");
    EXPECT_THAT(tokens_[1][0], ElementsAre(10, 11, 12));
  }
}

TEST_F(RouterCoreTest, AttemptsWithoutProgressAreBounded) {
  RouterOptions options;
  options.max_attempts = 3;
  MakeCore(1, options);
  Start(1, Request());
  for (int i = 0; i < 3; ++i) {
    Lose(0);
    Bring(0);
  }
  EXPECT_EQ(Reason(1), "WORKER_LOST");
  EXPECT_EQ(finished_[1].error->metadata.at("attempts"), "3");

  Start(2, Request());
  Delta(Last(), 0, {10});
  for (int i = 0; i < 5; ++i) {  // each attempt makes progress: no bound
    Lose(0);
    Bring(0);
    Delta(Last(), 1 + i, {11 + i});
  }
  EXPECT_EQ(Reason(2), "in flight");
  for (int i = 0; i < 3; ++i) {
    Lose(0);
    Bring(0);
  }
  EXPECT_EQ(Reason(2), "STREAM_LOST");
  EXPECT_EQ(finished_[2].error->metadata.at("tokens_sent"), "6");

  Start(3, Request());
  for (int i = 0; i < 3; ++i) {
    Finished(Last(), absl::InternalError("kernel"));
    Advance(seconds(11));
  }
  EXPECT_EQ(Reason(3), "ENGINE_FAULT");
}

TEST_F(RouterCoreTest, WaitsForAWorkerUpToTheFailoverTimeout) {
  MakeCore(1);
  Start(1, Request("a"));
  Delta(Last(), 0, {10});
  Lose(0);
  Start(2, Request("b"));
  EXPECT_FALSE(core_->Serving());
  Advance(seconds(9));
  EXPECT_EQ(Reason(1), "in flight");
  Bring(0);
  ASSERT_EQ(submits_.size(), 3u);  // both, the running one first
  EXPECT_EQ(KeyOf(submits_[1].handle), 1u);
  Lose(0);
  EXPECT_EQ(core_->NextWake(), now_ + seconds(10));
  Advance(seconds(10));
  EXPECT_EQ(Reason(1), "STREAM_LOST");
  EXPECT_EQ(Reason(2), "WORKER_LOST");
  Start(3, Request("c"));
  Advance(seconds(10));
  EXPECT_EQ(Reason(3), "NO_WORKER");
  EXPECT_EQ(core_->admission().waiting(), 0);
}

TEST_F(RouterCoreTest, UnknownAndLoadingModels) {
  MakeCore(1);
  ClientRequest r = Request();
  r.model = "other";
  Start(1, r);
  EXPECT_EQ(Reason(1), "MODEL_NOT_FOUND");
  core_->WorkerConnected(0, now_);
  WorkerSnapshot loading;
  loading.model = "m";
  core_->WorkerReported(0, loading, now_);
  Start(2, Request());
  Advance(seconds(10));
  EXPECT_EQ(Reason(2), "MODEL_LOADING");
  // A listed worker that never spoke may yet have the model.
  const WorkerAddress both[] = {{"w0"}, {"w1"}};
  core_->Relist(both, now_);
  Start(3, r);
  EXPECT_EQ(Reason(3), "in flight");
  Advance(seconds(10));
  EXPECT_EQ(Reason(3), "MODEL_NOT_FOUND");
}

TEST_F(RouterCoreTest, RefusalsMoveOnAndThenWait) {
  MakeCore(2);
  Start(1, Request());
  const SubmitAction first = Last();
  Finished(first, absl::ResourceExhaustedError("queue full"));
  const SubmitAction second = Last();
  EXPECT_NE(second.worker, first.worker);
  Finished(second, absl::ResourceExhaustedError("queue full"));
  EXPECT_EQ(submits_.size(), 2u);  // both are full: wait a little
  EXPECT_EQ(core_->NextWake(), now_ + milliseconds(20));
  Advance(milliseconds(20));
  EXPECT_EQ(submits_.size(), 3u);
  while (Reason(1) == "in flight") {
    Finished(Last(), absl::ResourceExhaustedError("queue full"));
    if (core_->admission().waiting() > 0) Advance(milliseconds(500));
    ASSERT_LT(now_, TimePoint{seconds(1100)});
    if (submits_.size() > 100) break;
  }
  Finished(Last(), absl::UnavailableError("draining"));
  EXPECT_NE(Reason(1), "WORKER_LOST");  // refusals are not losses
}

TEST_F(RouterCoreTest, QueueIsBoundedAndOrdered) {
  RouterOptions options;
  options.admission = {.max_in_flight = 1, .max_queue = 2};
  MakeCore(1, options);
  Start(1, Request("a"));
  Start(2, Request("b"));
  ClientRequest urgent = Request("c");
  urgent.generation.priority = 5;
  Start(3, urgent);
  Start(4, Request("d"));
  EXPECT_EQ(Reason(4), "QUEUE_FULL");
  EXPECT_EQ(submits_.size(), 1u);
  Delta(Last(), 0, {10}, FinishReason::kStop);
  Finished(Last());
  EXPECT_EQ(KeyOf(Last().handle), 3u);
  Delta(Last(), 0, {10}, FinishReason::kStop);
  Finished(Last());
  EXPECT_EQ(KeyOf(Last().handle), 2u);
  Start(5, Request("e"));
  Advance(seconds(4));
  Bring(0);
  Advance(seconds(26));
  EXPECT_NE(Reason(5), "OK");
}

TEST_F(RouterCoreTest, QueueWaitIsBounded) {
  RouterOptions options;
  options.admission.max_in_flight = 1;
  options.silence_timeout = std::chrono::hours(1);
  MakeCore(1, options);
  Start(1, Request("a"));
  Start(2, Request("b"));
  Advance(seconds(29));
  EXPECT_EQ(Reason(2), "in flight");
  Advance(seconds(1));
  EXPECT_EQ(Reason(2), "QUEUE_FULL");
}

TEST_F(RouterCoreTest, CancelReachesTheWorkerAndFreesTheId) {
  MakeCore(1);
  Start(1, Request());
  Start(2, Request());
  EXPECT_EQ(Reason(2), "DUPLICATE_REQUEST_ID");
  core_->CancelByClient(1, now_);
  core_->CancelByClient(99, now_);
  Collect();
  EXPECT_EQ(Reason(1), "CANCELLED");
  ASSERT_EQ(cancels_.size(), 1u);
  Delta(Last(), 0, {10});  // late
  Finished(Last(), absl::CancelledError());
  EXPECT_TRUE(delivered_.empty());
  Start(3, Request());
  EXPECT_EQ(Reason(3), "in flight");
}

TEST_F(RouterCoreTest, DeadlinesTellTheirStage) {
  RouterOptions options;
  options.admission.max_in_flight = 2;
  MakeCore(1, options);
  for (RequestKey key = 1; key <= 3; ++key) {
    ClientRequest r = Request(absl::StrCat(key));
    r.generation.deadline = now_ + seconds(1);
    Start(key, r);
  }
  Delta(submits_[0], 0, {10});
  ClientRequest late = Request("late");
  late.generation.deadline = now_;
  Start(4, late);
  EXPECT_EQ(Reason(4), "DEADLINE");
  EXPECT_EQ(core_->NextWake(), now_ + seconds(1));
  Advance(seconds(1));
  for (RequestKey key = 1; key <= 3; ++key) EXPECT_EQ(Reason(key), "DEADLINE");
  EXPECT_EQ(finished_[1].error->metadata.at("stage"), "decode");
  EXPECT_EQ(finished_[2].error->metadata.at("stage"), "prefill");
  EXPECT_EQ(finished_[3].error->metadata.at("stage"), "queued");
  EXPECT_EQ(cancels_.size(), 2u);
}

TEST_F(RouterCoreTest, WorkersVerdictsOnARequestAreFinal) {
  MakeCore(2);
  Start(1, Request());
  Finished(Last(), absl::InvalidArgumentError("top_k = -1"));
  EXPECT_EQ(Reason(1), "INVALID_FIELD");
  Start(2, Request());
  Finished(Last(), absl::FailedPreconditionError("9 blocks of 4"));
  EXPECT_EQ(Reason(2), "KV_CAPACITY_TOO_SMALL");
  Start(3, Request());
  Finished(Last(), absl::DeadlineExceededError(""));
  EXPECT_EQ(Reason(3), "DEADLINE");
  EXPECT_EQ(submits_.size(), 3u);
}

TEST_F(RouterCoreTest, RefusedAtTheDoor) {
  MakeCore(1);
  auto refused = [&, key = RequestKey{100}](auto change) mutable {
    ClientRequest r = Request(absl::StrCat(++key));
    change(&r);
    Start(key, r);
    return Reason(key);
  };
  EXPECT_EQ(refused([](ClientRequest* r) { r->generation.prompt.clear(); }), "INVALID_FIELD");
  EXPECT_EQ(refused([](ClientRequest* r) { r->generation.num_samples = 0; }), "INVALID_FIELD");
  EXPECT_EQ(refused([](ClientRequest* r) { r->generation.prompt = {100}; }), "INVALID_FIELD");
  EXPECT_EQ(refused([](ClientRequest* r) { r->generation.prompt = {-1}; }), "INVALID_FIELD");
  EXPECT_EQ(refused([](ClientRequest* r) { r->generation.sampling.top_p = 2; }), "INVALID_FIELD");
  EXPECT_EQ(refused([](ClientRequest* r) { r->generation.resumed.resize(2); }), "INVALID_FIELD");
  EXPECT_EQ(refused([](ClientRequest* r) {
              r->generation.resumed = {{{1, 100}}};
            }),
            "INVALID_FIELD");
  EXPECT_EQ(refused([](ClientRequest* r) { r->generation.sampling.max_tokens = 98; }),
            "CONTEXT_LENGTH_EXCEEDED");
  core_->StartDrain();
  EXPECT_EQ(refused([](ClientRequest*) {}), "DRAINING");
  EXPECT_TRUE(submits_.empty());
  EXPECT_FALSE(core_->Serving());
}

TEST_F(RouterCoreTest, StopStringsEndASampleHereAndCancelThere) {
  MakeCore(1);
  ClientRequest r = Request();
  r.make_text = [] { return std::make_unique<FakeText>(); };
  Start(1, r);
  Delta(Last(), 0, {10, 98});
  EXPECT_EQ(text_[1], "10,");
  Delta(Last(), 2, {11, 99, 12});
  EXPECT_EQ(text_[1], "10,98,11,");
  EXPECT_THAT(tokens_[1][0], ElementsAre(10, 98, 11, 99));
  EXPECT_EQ(delivered_.back().delta.finish, FinishReason::kStop);
  ASSERT_EQ(cancels_.size(), 1u);
  Delta(Last(), 5, {13});  // the worker does not know yet
  EXPECT_EQ(Reason(1), "in flight");
  Finished(Last(), absl::CancelledError());
  EXPECT_EQ(Reason(1), "OK");
  EXPECT_EQ(finished_[1].usage.output_tokens, 4);
  EXPECT_EQ(finished_[1].usage.cached_tokens, 2);

  Start(2, r);  // the worker's last word does not come
  Delta(Last(), 0, {99});
  Advance(milliseconds(250));
  EXPECT_EQ(Reason(2), "OK");

  Start(3, r);  // or the worker goes
  Delta(Last(), 0, {98}, FinishReason::kLength);
  EXPECT_EQ(text_[3], "98,");
  Lose(0);
  EXPECT_EQ(Reason(3), "OK");
}

TEST_F(RouterCoreTest, ResumeGoesOnBehindWhatTheClientHas) {
  MakeCore(1);
  ClientRequest r = Request();
  r.make_text = [] { return std::make_unique<FakeText>(); };
  r.generation.resumed = {{{10, 98}, FinishReason::kNone}};
  r.resume_fingerprint = "older";
  resumed_at_ = 2;
  Start(1, r);
  EXPECT_THAT(Last().request.resumed[0].emitted, ElementsAre(10, 98));
  Delta(Last(), 2, {11}, FinishReason::kStop);
  Finished(Last());
  EXPECT_EQ(text_[1], "98,11,");  // what was held back comes with the next token
  EXPECT_FALSE(finished_[1].exact);

  r.generation.resumed = {{std::vector<TokenId>(8, 5), FinishReason::kNone}};  // had all of it
  Start(2, r);
  EXPECT_EQ(Reason(2), "OK");
  r.generation.resumed = {{{10, 99}, FinishReason::kNone}};  // had the stop string
  Start(3, r);
  EXPECT_EQ(Reason(3), "OK");
  r.generation.resumed = {{{10, 20}, FinishReason::kNone}};  // had the stop id
  r.generation.sampling.stop_token_ids = {20};
  Start(4, r);
  EXPECT_EQ(Reason(4), "OK");
  EXPECT_EQ(submits_.size(), 1u);
}

TEST_F(RouterCoreTest, DrainingWorkersGetNothingNewAndHandOver) {
  MakeCore(2);
  core_->SetWorkerDrain(0, true, now_);
  for (RequestKey k = 1; k <= 4; ++k) {
    Start(k, Request(absl::StrCat(k)));
    EXPECT_EQ(Last().worker, 1);
  }
  const SubmitAction at = submits_[0];
  Delta(at, 0, {10});
  core_->SetWorkerDrain(0, false, now_);
  Finished(at, absl::UnavailableError("drain timeout"));
  EXPECT_EQ(Last().worker, 0);
  EXPECT_THAT(Last().request.resumed[0].emitted, ElementsAre(10));
}

TEST_F(RouterCoreTest, ASilentWorkerIsAsGoodAsLost) {
  MakeCore(2);
  Start(1, Request());
  const SubmitAction first = Last();
  Delta(first, 0, {10});
  Advance(seconds(4));
  Delta(first, 1, {11});
  Advance(seconds(4));
  EXPECT_EQ(submits_.size(), 1u);
  Advance(seconds(1));
  ASSERT_EQ(submits_.size(), 2u);
  EXPECT_NE(Last().worker, first.worker);
  Delta(first, 2, {12});  // awake again, too late
  Delta(Last(), 2, {12}, FinishReason::kStop);
  Finished(Last());
  EXPECT_THAT(tokens_[1][0], ElementsAre(10, 11, 12));
}

TEST_F(RouterCoreTest, ReplayIsBounded) {
  RouterOptions options;
  options.max_replay_tokens = 4;
  MakeCore(2, options);
  Start(1, Request("a"));
  Start(2, Request("b"));
  Delta(submits_[0], 0, {10});
  Delta(submits_[1], 0, {10, 11});
  Lose(0);
  Lose(1);
  EXPECT_EQ(Reason(1), "in flight");
  EXPECT_EQ(Reason(2), "STREAM_LOST");
  EXPECT_THAT(finished_[2].error->message, HasSubstr("--max-replay-tokens"));
}

TEST_F(RouterCoreTest, AnAbortIsTheClientsLastWord) {
  MakeCore(1);
  Start(1, Request());
  core_->Abort(1, ServingError::ClientTooSlow(5000, 4096), now_);
  Collect();
  EXPECT_EQ(Reason(1), "CLIENT_TOO_SLOW");
  EXPECT_EQ(cancels_.size(), 1u);
}

}  // namespace
}  // namespace paceline

#include "worker/spec/draft_controller.h"

#include <cmath>
#include <functional>
#include <random>

#include <gtest/gtest.h>

namespace paceline {
namespace {

// A batch whose drafts are accepted with a fixed chance each, and whose steps cost what a curve
// says, in virtual time.
class Batch {
 public:
  using Cost = std::function<double(int32_t rows)>;

  Batch(std::vector<double> acceptance, Cost cost, DraftControllerOptions options = {})
      : acceptance_(std::move(acceptance)), cost_(std::move(cost)), controller_(options) {
    for (size_t i = 0; i < acceptance_.size(); ++i) requests_.push_back(controller_.NewRequest(1));
  }

  void Step() {
    std::vector<DraftRequest*> all;
    for (DraftRequest& r : requests_) all.push_back(&r);
    controller_.Plan(all);
    DraftController::StepSummary step{.sequences = static_cast<int32_t>(requests_.size())};
    for (size_t i = 0; i < requests_.size(); ++i) {
      DraftRequest& r = requests_[i];
      const int32_t drafted = r.planned;
      const bool probe = r.probe;
      int32_t accepted = 0;
      while (accepted < drafted && Coin(acceptance_[i])) ++accepted;
      step.rows += 1 + drafted;
      step.tokens += probe ? 1 : 1 + accepted;
      if (!probe) step.draft_rows += drafted;
      tokens += 1 + accepted;
      drafted_rows += drafted;
      controller_.Observe(&r, ProposalSource::kRemoteFull, drafted, accepted);
    }
    const double took = cost_(step.rows);
    seconds += took;
    step.step = Seconds(took * noise_(rng_));
    step.context = context;
    controller_.EndStep(step);
    ++steps;
  }
  void Run(int n) {
    for (int i = 0; i < n; ++i) Step();
  }
  int64_t context = 0;  // tokens attended to
  void Reset() { tokens = seconds = steps = drafted_rows = 0; }
  // Tokens per second of always drafting so many.
  double Fixed(int32_t len) const {
    double expected = 0;
    for (double a : acceptance_) {
      for (int32_t i = 0; i <= len; ++i) expected += std::pow(a, i);
    }
    return expected / cost_(static_cast<int32_t>(acceptance_.size()) * (1 + len));
  }
  double BestFixed() const {
    double best = 0;
    for (int32_t len = 0; len <= 8; ++len) best = std::max(best, Fixed(len));
    return best;
  }
  std::vector<double>& acceptance() { return acceptance_; }
  DraftController& controller() { return controller_; }
  std::vector<DraftRequest>& requests() { return requests_; }

  double tokens = 0, seconds = 0, steps = 0, drafted_rows = 0;

 private:
  bool Coin(double p) { return std::uniform_real_distribution<>(0, 1)(rng_) < p; }

  std::vector<double> acceptance_;
  Cost cost_;
  DraftController controller_;
  std::vector<DraftRequest> requests_;
  std::mt19937 rng_{17};
  std::uniform_real_distribution<> noise_{0.97, 1.03};
};

Batch::Cost Linear(double fixed, double row) {
  return [=](int32_t rows) { return fixed + row * rows; };
}

TEST(DraftControllerTest, AsGoodAsTheBestFixedLength) {
  for (int32_t batch : {1, 8, 64}) {
    for (double row : {0.0, 0.02, 0.1, 0.5, 2.0}) {  // of a step's fixed share, over the batch
      for (double a : {0.1, 0.3, 0.5, 0.7, 0.9}) {
        Batch b(std::vector<double>(batch, a), Linear(0.01, 0.01 * row / batch));
        b.Run(600);
        b.Reset();
        b.Run(1000);
        EXPECT_GT(b.tokens / b.seconds, 0.95 * b.BestFixed())
            << "batch " << batch << " row " << row << " acceptance " << a << " drafts "
            << b.drafted_rows / b.steps / batch;
        EXPECT_GT(b.tokens / b.seconds, 0.98 * b.Fixed(0)) << batch << " " << row << " " << a;
      }
    }
  }
}

TEST(DraftControllerTest, KernelsChangeShape) {
  // Steps of up to 16 rows cost the same, then twice as much.
  Batch b(std::vector<double>(4, 0.8),
          [](int32_t rows) { return rows <= 16 ? 0.01 : 0.02 + 1e-4 * rows; });
  b.Run(2000);
  b.Reset();
  b.Run(1000);
  EXPECT_GT(b.tokens / b.seconds, 0.95 * b.Fixed(3));
  EXPECT_LE(b.drafted_rows / b.steps, 13);
}

TEST(DraftControllerTest, EachRequestItsOwnLength) {
  std::vector<double> acceptance(16, 0.9);
  for (int i = 0; i < 8; ++i) acceptance[i] = 0.1;
  Batch b(acceptance, Linear(0.01, 0.0005));
  b.Run(600);
  double bad = 0, good = 0;
  for (int step = 0; step < 200; ++step) {
    b.Step();
    for (int i = 0; i < 16; ++i) (i < 8 ? bad : good) += b.requests()[i].planned / 1600.0;
  }
  EXPECT_LT(bad, 0.5);
  EXPECT_GT(good, 3);
}

TEST(DraftControllerTest, UselessDraftsEndAndProbesAreFew) {
  for (int32_t batch : {1, 16}) {
    Batch b(std::vector<double>(batch, 0.0), Linear(0.01, 0.01 * 0.2 / batch));
    b.Run(3000);
    b.Reset();
    b.Run(20000);
    EXPECT_LE(b.drafted_rows, 0.005 * b.steps * batch) << batch;
    EXPECT_GT(b.drafted_rows, 0) << "must go on looking";
    EXPECT_GT(b.controller().probes(), 0u);
  }
}

TEST(DraftControllerTest, AProbeFindsThatDraftsHaveBecomeGood) {
  DraftControllerOptions options;
  options.first_probe = 32;
  options.last_probe = 64;
  Batch b({0.0}, Linear(0.01, 0.002), options);
  b.Run(2000);
  EXPECT_EQ(b.requests()[0].planned, 0);
  b.acceptance()[0] = 0.95;
  b.Run(6000);
  b.Reset();
  b.Run(500);
  EXPECT_GT(b.tokens / b.steps, 2);
}

TEST(DraftControllerTest, ProbesBackOff) {
  Batch b({0.0}, Linear(0.01, 0.005));
  b.Run(4000);
  const uint64_t early = b.controller().probes();
  b.Run(20000);
  const uint64_t later = b.controller().probes() - early;
  EXPECT_LE(later, 20000 / 4096 + 1);
}

// Steps with drafts take longer than their rows explain.
// The longer the contexts, the dearer the step and the cheaper a row against it.
TEST(DraftControllerTest, LongContextsMakeLongerDrafts) {
  double extra = 0;
  Batch batch({0.5}, [&](int32_t rows) { return 0.004 + 0.002 * rows + extra; });
  const auto mean_len = [&](int64_t context, int steps) {
    batch.context = context;
    extra = 1e-6 * static_cast<double>(context);
    batch.Reset();
    batch.Run(steps);
    return static_cast<double>(batch.drafted_rows) / steps;
  };
  mean_len(500, 500);
  const double at_short = mean_len(500, 500);
  mean_len(30'000, 500);
  const double at_long = mean_len(30'000, 500);
  EXPECT_GT(at_long, at_short + 1);
  // Both are known now: the next steps are right at once.
  const double between = (at_short + at_long) / 2;
  EXPECT_LT(mean_len(500, 20), between);
  EXPECT_GT(mean_len(30'000, 20), between);
}

DraftController::StepSummary Dear(double factor, int32_t tokens) {
  return {
      .step = Seconds(0.01 * factor), .rows = 8, .sequences = 4, .draft_rows = 4, .tokens = tokens};
}

TEST(DraftControllerTest, TheEngineTurnsItOffAndOnAgain) {
  DraftControllerOptions options;
  options.first_trial = 100;
  options.window = 16;
  DraftController c(options);
  DraftRequest request = c.NewRequest(0);
  DraftRequest* const all[] = {&request};
  const auto plain = [&] {
    c.EndStep({.step = Seconds(0.01), .rows = 4, .sequences = 4, .tokens = 4});
  };
  for (int i = 0; i < 50; ++i) plain();
  for (int i = 0; i < 16; ++i) c.EndStep(Dear(1.5, 5));  // 25 % more tokens, 50 % more time
  EXPECT_TRUE(c.engine_off());
  EXPECT_EQ(c.times_off(), 1u);
  EXPECT_LT(c.gain(), 1);
  c.Plan(all);
  EXPECT_EQ(request.planned, 0);
  EXPECT_EQ(c.NewRequest(0).planned, 0);

  // A trial after a while; it fails, and the next one is twice as far away.
  for (int i = 0; i < 100; ++i) plain();
  EXPECT_FALSE(c.engine_off());
  for (int i = 0; i < options.trial; ++i) c.EndStep(Dear(1.5, 5));
  EXPECT_TRUE(c.engine_off());
  for (int i = 0; i < 199; ++i) plain();
  EXPECT_TRUE(c.engine_off());
  plain();
  EXPECT_FALSE(c.engine_off());
  // This one pays.
  for (int i = 0; i < options.trial; ++i) c.EndStep(Dear(1.2, 12));
  EXPECT_FALSE(c.engine_off());
  EXPECT_EQ(c.times_off(), 1u);
  EXPECT_GT(c.gain(), 1);
  for (int i = 0; i < 300; ++i) c.EndStep(Dear(1.2, 12));
  EXPECT_FALSE(c.engine_off());
}

TEST(DraftControllerTest, MeasuresAPlainStepNowAndThen) {
  DraftControllerOptions options;
  options.cost_age = 50;
  Batch b({0.9}, Linear(0.01, 1e-5), options);
  b.Run(200);
  int plain = 0;
  for (int i = 0; i < 500; ++i) {
    b.Step();
    plain += b.requests()[0].planned == 0;
  }
  EXPECT_GE(plain, 8);
  EXPECT_LE(plain, 12);
}

TEST(DraftControllerTest, NewRequestsStartFromWhatOthersSaw) {
  Batch b(std::vector<double>(4, 0.05), Linear(0.01, 0.0002));
  b.Run(3000);
  const DraftRequest fresh = b.controller().NewRequest(1);
  EXPECT_LT(b.controller().SurvivalAt(fresh, 0), 0.2);
  // Of another temperature nothing is known.
  EXPECT_NEAR(b.controller().SurvivalAt(b.controller().NewRequest(0), 0), 0.6, 1e-9);
}

TEST(DraftControllerTest, NoMoreThanARequestCanTake) {
  Batch b(std::vector<double>(2, 0.95), Linear(0.01, 0));
  b.Run(100);
  b.requests()[0].max_len = 2;
  b.requests()[1].max_len = 0;
  b.Step();
  EXPECT_LE(b.requests()[0].planned, 2);
  EXPECT_EQ(b.requests()[1].planned, 0);
}

TEST(DraftControllerTest, CoverOfTheOtherRoute) {
  Batch b({0.8}, Linear(0.01, 0.0008));
  b.Run(500);
  DraftRequest request = b.requests()[0];
  ASSERT_GT(request.planned, 1);
  for (int i = 0; i < 50; ++i) {
    b.controller().Observe(&request, ProposalSource::kNgram, 4, 0);
  }
  EXPECT_EQ(b.controller().CoverLen(request), 0);
  EXPECT_FALSE(b.controller().PrefersNgram(request));
  for (int i = 0; i < 200; ++i) {
    b.controller().Observe(&request, ProposalSource::kNgram, 8, 8);
  }
  EXPECT_EQ(b.controller().CoverLen(request), request.planned);
  EXPECT_TRUE(b.controller().PrefersNgram(request));
}

TEST(DraftControllerTest, SameCallsSameAnswers) {
  Batch a(std::vector<double>(8, 0.6), Linear(0.01, 0.0005));
  Batch b(std::vector<double>(8, 0.6), Linear(0.01, 0.0005));
  for (int i = 0; i < 500; ++i) {
    a.Step();
    b.Step();
    for (int r = 0; r < 8; ++r) ASSERT_EQ(a.requests()[r].planned, b.requests()[r].planned);
  }
}

}  // namespace
}  // namespace paceline

// Host time of the speculation machinery per engine step: what the engine thread spends in the
// speculator, from Propose to EndStep, for a batch whose drafter answers every step in time. The
// drafter itself is scripted and not timed; the receive thread's share is printed apart.
//
//   spec_host_bench [--steps N] [--batch B] (default: 1, 16, 64 and 256)
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "common/clock.h"
#include "common/hash.h"
#include "worker/spec/draft_speculator.h"

namespace paceline {
namespace {

constexpr int32_t kVocab = 128256;
constexpr int32_t kPromptLen = 500;
constexpr double kAcceptance = 0.7;

class Stopwatch {
 public:
  void Start() { start_ = SteadyClock::Get().Now(); }
  void Stop() { total_ += SteadyClock::Get().Now() - start_; }
  double TakeMicros() { return ToSeconds(std::exchange(total_, Duration{})) * 1e6; }

 private:
  TimePoint start_{};
  Duration total_{};
};

class Link final : public DraftLink {
 public:
  const std::string& name() const override { return name_; }
  DraftLinkStatus status() const override {
    return {.state = DraftLinkState::kUp, .incarnation = 1};
  }
  bool Send(uint64_t, TargetFrame frame) override {
    frames.push_back(std::move(frame));
    return true;
  }
  std::vector<TargetFrame> frames;

 private:
  const std::string name_ = "drafter";
};

struct Sequence {
  DraftSessionId id;
  SamplingParams sampling;
  std::vector<TokenId> tokens;
  SpecProposal proposal;

  SpecSequence Spec() const {
    return {.id = id,
            .tokens = tokens,
            .prompt_len = kPromptLen,
            .max_len = 1 << 20,
            .mode = DecodingMode::kAuto,
            .sampling = &sampling};
  }
};

// The text is a function of (session, position); a draft agrees with it by a coin of the same.
TokenId Truth(uint64_t session, int32_t position) {
  return static_cast<TokenId>(HashCombine(session, position) % kVocab);
}
TokenId Draft(uint64_t session, int32_t position) {
  const double coin = static_cast<double>(HashCombine(~session, position) >> 11) * 0x1p-53;
  return coin < kAcceptance ? Truth(session, position)
                            : static_cast<TokenId>(HashCombine(session + 7, position) % kVocab);
}

DraftProposal Answer(const DraftCommit& commit) {
  const uint64_t session = commit.id.session;
  DraftProposal proposal{
      .id = commit.id, .base_len = commit.base_len, .prefix_hash = commit.prefix_hash};
  const auto add = [&](int32_t accepted, TokenId next, int32_t from) {
    DraftBranch& branch = proposal.branches.emplace_back();
    branch.accepted = accepted;
    branch.next = next;
    for (int32_t i = 0; i < commit.want_len; ++i) {
      branch.tokens.push_back(Draft(session, from + i));
    }
  };
  if (commit.want_branches == 0) {
    add(0, 0, commit.base_len);
    return proposal;
  }
  proposal.kind = ProposalKind::kEnumerated;
  const auto verified = static_cast<int32_t>(commit.in_flight.size());
  for (int32_t i = 0; i < commit.want_branches; ++i) {
    // The right next token first, then wrong guesses.
    const int32_t accepted = i % (verified + 1);
    const int32_t position = commit.base_len + accepted;
    const TokenId next = i <= verified ? Truth(session, position) : (i * 31) % kVocab;
    add(accepted, next, position + 1);
  }
  return proposal;
}

struct Figures {
  double median = 0, p99 = 0, receive = 0;  // microseconds per step
  double tokens = 0;                        // per sequence and step
};

Figures Measure(int32_t batch, DraftStrategy strategy, int32_t steps) {
  DraftSpeculatorOptions options;
  options.vocab_size = kVocab;
  options.strategy = strategy;
  options.opens_per_step = batch;
  options.open_tokens_per_step = 1 << 30;
  DraftSpeculator speculator(options);
  auto link = std::make_shared<Link>();
  const DraftLinkId id = speculator.AddLink(link);
  std::vector<Sequence> sequences(batch);
  for (int32_t i = 0; i < batch; ++i) {
    Sequence& s = sequences[i];
    s.id.session = static_cast<uint64_t>(i) + 1;
    for (int32_t p = 0; p < kPromptLen; ++p) s.tokens.push_back(Truth(s.id.session, p));
    speculator.EndLaunch();  // takes the link over
    speculator.Begin(s.Spec());
  }
  std::vector<double> micros;
  Figures figures;
  int64_t tokens = 0;
  Stopwatch host, receive;
  for (int32_t step = 0; step < steps; ++step) {
    int32_t rows = 0;
    host.Start();
    for (Sequence& s : sequences) {
      s.proposal = speculator.Propose(s.Spec(), 8, false);
      speculator.Launched(s.Spec(), s.proposal.tokens);
      rows += 1 + static_cast<int32_t>(s.proposal.tokens.size());
    }
    speculator.EndLaunch();
    host.Stop();
    for (TargetFrame& frame : link->frames) {
      DraftFrame answer;
      for (const DraftCommit& commit : frame.commits) {
        if (commit.want_len > 0) answer.proposals.push_back(Answer(commit));
      }
      receive.Start();
      speculator.mailbox().Deliver(id, 1, std::move(answer));
      receive.Stop();
    }
    link->frames.clear();
    std::vector<SpecOutcome> outcomes;
    for (Sequence& s : sequences) {
      const auto base = static_cast<int32_t>(s.tokens.size());
      SpecOutcome& outcome = outcomes.emplace_back();
      outcome.id = s.id;
      outcome.source = s.proposal.source;
      outcome.drafted = static_cast<int32_t>(s.proposal.tokens.size());
      while (outcome.accepted < outcome.drafted &&
             s.proposal.tokens[outcome.accepted] == Truth(s.id.session, base + outcome.accepted)) {
        ++outcome.accepted;
      }
      for (int32_t i = 0; i <= outcome.accepted; ++i) {
        s.tokens.push_back(Truth(s.id.session, base + i));
      }
      outcome.base_len = static_cast<int32_t>(s.tokens.size());
      tokens += outcome.accepted + 1;
    }
    host.Start();
    for (int32_t i = 0; i < batch; ++i) {
      Sequence& s = sequences[i];
      outcomes[i].new_tokens = std::span(s.tokens).last(outcomes[i].accepted + 1);
      speculator.Committed(s.Spec(), outcomes[i]);
    }
    // A memory-bound step: flat, with little for each row.
    speculator.EndStep(
        {.step = std::chrono::microseconds(10000 + 5 * rows), .rows = rows, .sequences = batch});
    host.Stop();
    micros.push_back(host.TakeMicros());
  }
  micros.erase(micros.begin(), micros.begin() + steps / 10);
  std::ranges::sort(micros);
  figures.median = micros[micros.size() / 2];
  figures.p99 = micros[micros.size() * 99 / 100];
  figures.receive = receive.TakeMicros() / steps;
  figures.tokens = static_cast<double>(tokens) / steps / batch;
  return figures;
}

int Main(int argc, char** argv) {
  int32_t steps = 2000;
  std::vector<int32_t> batches = {1, 16, 64, 256};
  for (int i = 1; i + 1 < argc; i += 2) {
    const int value = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--steps") == 0 && value >= 100) {
      steps = value;
    } else if (std::strcmp(argv[i], "--batch") == 0 && value >= 1) {
      batches = {value};
    } else {
      std::fprintf(stderr, "usage: spec_host_bench [--steps N>=100] [--batch B]\n");
      return 2;
    }
  }
  std::printf(
      "| batch | strategy | host us per step, median | p99 | receive us | tokens per step |\n");
  std::printf("|---|---|---|---|---|---|\n");
  for (int32_t batch : batches) {
    for (DraftStrategy strategy : {DraftStrategy::kChain, DraftStrategy::kEnumerate}) {
      const Figures f = Measure(batch, strategy, steps);
      std::printf("| %d | %s | %.1f | %.1f | %.1f | %.2f |\n", batch,
                  strategy == DraftStrategy::kChain ? "chain" : "enumerate", f.median, f.p99,
                  f.receive, f.tokens);
    }
  }
  return 0;
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) { return paceline::Main(argc, argv); }

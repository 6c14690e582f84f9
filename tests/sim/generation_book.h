// Random requests, and the book of what an engine owes for them: every delta is compared with what
// the hash model says that sample must emit, every last word with what was asked.
#pragma once

#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/sim/hash_model.h"
#include "worker/engine/engine.h"

namespace paceline {

struct RandomRequestOptions {
  int32_t max_prompt = 60;
  int32_t max_tokens = 40;
  int32_t max_samples = 4;
  int32_t priorities = 3;
  bool sessions = true;
};

class RandomRequests {
 public:
  RandomRequests(const HashModelOptions& model, RandomRequestOptions options, uint64_t seed);

  // Prompts with common beginnings, parameters of every kind, some of it resumed from elsewhere.
  GenerationRequest Next();
  // One of the sessions that requests name.
  std::string AnySession();

 private:
  int32_t Below(int32_t n) { return static_cast<int32_t>(rng_() % static_cast<uint64_t>(n)); }
  SamplingParams Sampling();
  void Resume(GenerationRequest* request);

  HashModel model_;
  RandomRequestOptions options_;
  std::mt19937_64 rng_;
  std::vector<std::vector<TokenId>> stems_;
};

class GenerationBook {
 public:
  explicit GenerationBook(const HashModelOptions& model) : model_(model) {}

  void Submitted(RequestHandle handle, const GenerationRequest& request);
  // From now on the request may end early with one of these codes.
  void MayEnd(RequestHandle handle, absl::StatusCode code);
  void Take(const EngineOutput& output);

  // What was wrong first; empty if nothing.
  const std::string& fault() const { return fault_; }
  bool open(RequestHandle handle) const { return open_.contains(handle); }
  size_t num_open() const { return open_.size(); }
  int64_t tokens() const { return tokens_; }
  int64_t cached_tokens() const { return cached_tokens_; }
  int64_t finished() const { return finished_; }

 private:
  struct Sample {
    std::vector<TokenId> truth;
    std::vector<TokenLogprobs> logprobs;
    size_t received = 0;
    bool finished = false;
  };
  struct Open {
    GenerationRequest request;
    std::vector<Sample> samples;
    int32_t output_tokens = 0;
    std::vector<absl::StatusCode> may_end;
  };

  Sample Expected(const GenerationRequest& request, int32_t sample) const;
  void TakeDelta(const EngineOutput::Delta& d);
  void TakeFinished(const EngineOutput::Finished& f);
  void Fault(RequestHandle handle, const std::string& what);

  HashModel model_;
  std::map<RequestHandle, Open> open_;
  std::string fault_;
  int64_t tokens_ = 0;
  int64_t cached_tokens_ = 0;
  int64_t finished_ = 0;
};

}  // namespace paceline

// What a target and a draft worker say to each other, as values. The wire form is
// proto/paceline/draft/v1. The target owns the truth; the drafter's state is a soft cache that
// any later message can rebuild. Nothing here can change a token: it changes speed only.
//
// Positions are absolute (prompt and output counted together). A base length L means: tokens
// [0, L) are committed, the next token has position L.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/types/sampling_params.h"

namespace paceline {

// One sample of one request at one target. The epoch grows with each preemption, resume or re-open;
// a message of another epoch is dropped.
struct DraftSessionId {
  uint64_t session = 0;  // unique within the target's incarnation
  uint32_t epoch = 0;
  friend bool operator==(const DraftSessionId&, const DraftSessionId&) = default;
};

// What target and drafter must share; compared once, when the stream opens.
struct DraftPairing {
  std::string tokenizer_fingerprint;
  int32_t sampler_version = kSamplerVersion;
  friend bool operator==(const DraftPairing&, const DraftPairing&) = default;
};

struct DraftOpen {
  DraftSessionId id;
  SamplingParams sampling;  // with the seed; drafts are drawn with the target's own noise
  int32_t sample = 0;
  int32_t prompt_len = 0;       // tokens[0, prompt_len) are the prompt (penalties tell them apart)
  int32_t max_len = 0;          // prompt + max_tokens; nothing is drafted at or beyond it
  std::vector<TokenId> tokens;  // prompt and the output so far; its size is the base length
  int32_t priority = 0;
  std::string cache_salt;  // prefixes are shared only within an equal salt
};

// Cumulative and idempotent: tokens [base_len - new_tokens.size(), base_len) are new_tokens.
// A drafter that lacks earlier tokens answers kNeedSync.
struct DraftCommit {
  DraftSessionId id;
  int32_t base_len = 0;
  std::vector<TokenId> new_tokens;
  uint64_t prefix_hash = 0;        // HashTokens of [0, base_len)
  std::vector<TokenId> in_flight;  // the chain that the step in flight verifies behind base_len
  // Tokens wanted: of a chain behind base_len, so that it reaches over in_flight; of each branch
  // behind its outcome. 0 = keep up, send nothing.
  int32_t want_len = 0;
  int32_t want_branches = 0;  // outcomes to enumerate; 0 = chain
};

struct DraftClose {
  DraftSessionId id;
};

enum class ProposalKind : uint8_t {
  kChain = 0,   // branches[0].tokens continue the base
  kEnumerated,  // each branch is keyed by an outcome of the verify in flight
};

// For kEnumerated: if `accepted` tokens of in_flight are accepted and `next` follows them, then
// `tokens` continue behind `next`. For kChain: accepted = 0, next unused.
struct DraftBranch {
  int32_t accepted = 0;
  TokenId next = 0;
  std::vector<TokenId> tokens;
};

struct DraftProposal {
  DraftSessionId id;
  int32_t base_len = 0;
  uint64_t prefix_hash = 0;  // of [0, base_len), as the drafter knows it
  ProposalKind kind = ProposalKind::kChain;
  std::vector<DraftBranch> branches;
};

enum class DraftNackReason : uint8_t {
  kNeedSync = 0,  // have_len tokens are known; send the rest by a new open
  kEvicted,       // the session's state is gone
  kOverloaded,    // refused beyond the drafter's credit
  kInvalid,       // a frame of this session made no sense; the session is closed
};

struct DraftNack {
  DraftSessionId id;
  DraftNackReason reason = DraftNackReason::kNeedSync;
  int32_t have_len = 0;
};

// The drafter's own report, sent with its frames.
struct DraftLoad {
  int32_t sessions = 0;
  int32_t rows_per_step = 0;  // of the last step
  int32_t step_micros = 0;    // duration of the last step
  int32_t free_blocks = 0;
};

struct TargetFrame {
  std::vector<DraftOpen> opens;
  std::vector<DraftCommit> commits;
  std::vector<DraftClose> closes;
  bool empty() const { return opens.empty() && commits.empty() && closes.empty(); }
};

struct DraftFrame {
  std::vector<DraftProposal> proposals;
  std::vector<DraftNack> nacks;
  DraftLoad load;
};

}  // namespace paceline

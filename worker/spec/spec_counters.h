// What speculation did, for metrics and benchmarks. Plain sums since the start.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace paceline {

// Why a sequence's step went without a remote draft.
enum class FallbackReason : uint8_t {
  kController = 0,  // draft length 0 pays best
  kMode,            // the request wants none
  kNoLink,          // no draft worker is up
  kNotOpen,         // the session is being opened, or was refused or evicted
  kLate,            // nothing for this base has come yet
  kMiss,            // what came disagrees with what was committed
  kQuarantined,     // the session's drafter sent nonsense
  kNumReasons,
};

// Why a frame's part was not used; a receive-side drop.
enum class DraftDrop : uint8_t {
  kUnknownSession = 0,  // ended meanwhile, or never ours
  kEpoch,
  kIncarnation,  // from an older stream, or from a drafter that does not serve the session
  kStaleBase,    // older than any base still remembered
  kBadBase,      // a base never told: quarantine
  kPrefixHash,   // quarantine
  kTokenRange,   // quarantine
  kSize,         // more branches or tokens than allowed, or none: quarantine
  kQuarantined,  // the session is in quarantine already
  kFrameSize,    // more proposals in a frame than allowed: the rest is dropped
  kNumReasons,
};

inline constexpr int kSpecPositions = 16;  // draft positions counted apart

struct SpecCounters {
  uint64_t drafts = 0;    // verified drafts (sequence-steps with at least one draft row)
  uint64_t drafted = 0;   // draft rows that ran
  uint64_t accepted = 0;  // of those
  std::array<uint64_t, kSpecPositions> drafted_at{};
  std::array<uint64_t, kSpecPositions> accepted_at{};  // unconditional: the first i + 1 agreed

  // Sequence-steps by what was proposed (ProposalSource).
  uint64_t steps_none = 0;
  uint64_t steps_full = 0;     // remote, of the length asked for
  uint64_t steps_partial = 0;  // remote, shorter
  uint64_t steps_ngram = 0;

  uint64_t proposals_received = 0;
  uint64_t proposals_late = 0;   // arrived after their base had been passed
  uint64_t proposals_stale = 0;  // dropped unused: disagreed or outlived
  uint64_t outcome_hits = 0;     // enumerated, and the outcome was among the branches
  uint64_t outcome_misses = 0;
  uint64_t wanted_remote = 0;   // sequence-steps in which a remote draft was wanted
  uint64_t planned = 0;         // drafts that the controller or the request asked for
  double gain = 1;              // of drafting over plain, as the controller judged it last
  uint64_t probes = 0;          // verifies made only to measure
  uint64_t engine_off = 0;      // times speculation was turned off for the whole engine
  uint64_t sync_waits = 0;      // steps sat out in mode sync
  uint64_t plans_delayed = 0;   // put off for drafts while the step before ran ...
  uint64_t plans_answered = 0;  // ... and all of them came,
  uint64_t plans_overran = 0;   // ... or that step had ended before the launch
  std::array<uint64_t, static_cast<size_t>(FallbackReason::kNumReasons)> fallbacks{};
  std::array<uint64_t, static_cast<size_t>(DraftDrop::kNumReasons)> drops{};

  uint64_t opens = 0;
  uint64_t reopens = 0;  // of those, not the first of their epoch
  uint64_t moves = 0;    // to another drafter
  uint64_t nacks = 0;
  uint64_t quarantines = 0;
  uint64_t silences = 0;  // times a drafter that was up answered nothing, and lost its sessions
};

}  // namespace paceline

#include "worker/draft/outcome_ranking.h"

#include <algorithm>

namespace paceline {
namespace {

// Cumulative shares of ranks 1, 1-2, 1-4 and 1-8 where the drafter's own choice was wrong, and how
// many observations they are worth.
constexpr double kPriorWeight = 200;
constexpr double kPriorFirst = 0.41, kPriorSecond = 0.60, kPriorFourth = 0.77, kPriorEighth = 0.89;
constexpr double kPriorTail = 1.0 / 16;  // what each later rank takes of what is left
constexpr double kMaxTotal = 4000;       // older observations fade

}  // namespace

GuessRanks::GuessRanks() {
  double left = 1 - kPriorEighth;
  for (int32_t rank = 1; rank < kMaxGuessRanks; ++rank) {
    double share = kPriorFirst;
    if (rank == 2) share = kPriorSecond - kPriorFirst;
    if (rank > 2) share = (kPriorFourth - kPriorSecond) / 2;
    if (rank > 4) share = (kPriorEighth - kPriorFourth) / 4;
    if (rank > 8) {
      share = left * kPriorTail;
      left -= share;
    }
    counts_[rank] = kPriorWeight * share;
  }
  total_ = kPriorWeight;
}

void GuessRanks::Observe(int32_t rank) {
  total_ += 1;
  if (rank >= 1 && rank < kMaxGuessRanks) counts_[rank] += 1;
  if (total_ < kMaxTotal) return;
  total_ /= 2;
  for (double& count : counts_) count /= 2;
}

std::vector<Outcome> RankOutcomes(std::span<const int32_t> draft_ranks, bool whole,
                                  double agreement, const GuessRanks& ranks, int32_t num_ranks,
                                  int32_t num_outcomes) {
  num_ranks = std::min(num_ranks, kMaxGuessRanks);
  const auto chance = [&](int32_t rank) {
    return rank == 0 ? agreement : (1 - agreement) * ranks.Share(rank);
  };
  std::vector<Outcome> outcomes;
  const auto drafts = static_cast<int32_t>(draft_ranks.size());
  double reached = 1;  // P(the drafts before this position are accepted)
  for (int32_t j = 0; j < drafts + (whole ? 1 : 0); ++j) {
    const int32_t draft_rank = j < drafts ? draft_ranks[j] : -1;
    for (int32_t rank = 0; rank < num_ranks; ++rank) {
      if (rank == draft_rank) continue;
      outcomes.push_back({.accepted = j, .rank = rank, .probability = reached * chance(rank)});
    }
    // A draft that is no candidate came from elsewhere: as good as the least of them.
    reached *= chance(draft_rank < 0 || draft_rank >= num_ranks ? num_ranks - 1 : draft_rank);
  }
  const auto more_likely = [](const Outcome& a, const Outcome& b) {
    if (a.probability != b.probability) return a.probability > b.probability;
    return a.accepted != b.accepted ? a.accepted < b.accepted : a.rank < b.rank;
  };
  const size_t keep = std::min(outcomes.size(), static_cast<size_t>(std::max(0, num_outcomes)));
  std::partial_sort(outcomes.begin(), outcomes.begin() + static_cast<int64_t>(keep), outcomes.end(),
                    more_likely);
  outcomes.resize(keep);
  return outcomes;
}

}  // namespace paceline

// Which outcomes of a verify are worth drafting for. An outcome is how many drafts of the step in
// flight are accepted and which token follows. Target and drafter draw with the same noise, so the
// token that follows is sought by its rank among the drafter's noise-coupled candidates for that
// position, best first: rank 0 is the drafter's own choice.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace paceline {

inline constexpr int32_t kMaxGuessRanks = 64;

struct Outcome {
  int32_t accepted = 0;
  int32_t rank = 0;
  double probability = 0;
};

// Where target tokens lay among the candidates when they were not rank 0; shared by all sessions of
// a drafter. Starts from figures measured on a small distilled pair.
class GuessRanks {
 public:
  GuessRanks();
  // A target's token had this rank, >= 1; kNone or kMaxGuessRanks and more: it was not there.
  void Observe(int32_t rank);
  // P(rank | not rank 0), rank >= 1.
  double Share(int32_t rank) const { return counts_[rank] / total_; }

 private:
  std::array<double, kMaxGuessRanks> counts_{};
  double total_ = 0;
};

// How often a target's token is the drafter's own choice: a moving average of one session.
class Agreement {
 public:
  void Observe(bool agreed) { value_ += kWeight * ((agreed ? 1.0 : 0.0) - value_); }
  double value() const { return value_; }

 private:
  static constexpr double kWeight = 0.05;
  double value_ = 0.6;
};

// The most likely outcomes of a verify of draft_ranks.size() drafts, best first, at most
// `num_outcomes`. draft_ranks: rank of each draft among the candidates of its position, -1 = not
// among them. Ranks are below num_ranks. Outcomes that would have been accepted are left out. With
// `whole` those behind the last draft are there too.
std::vector<Outcome> RankOutcomes(std::span<const int32_t> draft_ranks, bool whole,
                                  double agreement, const GuessRanks& ranks, int32_t num_ranks,
                                  int32_t num_outcomes);

}  // namespace paceline

// Smoothed bigram statistics of a token sequence, and their low-rank form:
//   log p(v | u)  ~  log p(v) + sum_r left[u][r] * right[v][r]   (+ a constant per u).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/types/sampling_params.h"

namespace paceline {

struct BigramModel {
  int32_t vocab_size = 0;
  int32_t rank = 0;
  std::vector<double> log_unigram;  // [vocab]
  std::vector<double> left;         // [vocab][rank]
  std::vector<double> right;        // [vocab][rank]
};

// Unseen tokens get a small share; `rare` gets the share rare_share whatever its count. The matrix
// of pointwise mutual information is factored by subspace iteration on its sparse form.
BigramModel FitBigrams(std::span<const TokenId> tokens, int32_t vocab_size, int32_t rank,
                       TokenId rare, double rare_share);

}  // namespace paceline

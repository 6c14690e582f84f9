#include "tools/standin/bigram.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "common/hash.h"

namespace paceline {
namespace {

// Share of the observed bigrams in the smoothed distribution; the rest is the unigram's.
constexpr double kBigramShare = 0.92;
constexpr double kUnseenCount = 0.003;
constexpr int kIterations = 10;

struct Entry {
  int32_t row;
  int32_t column;
  double value;
};
using Matrix = std::vector<std::vector<double>>;  // columns

// y = M x, or M^T x.
std::vector<double> Times(const std::vector<Entry>& m, bool transposed,
                          const std::vector<double>& x) {
  std::vector<double> y(x.size(), 0.0);
  for (const Entry& e : m) {
    if (transposed) {
      y[e.column] += e.value * x[e.row];
    } else {
      y[e.row] += e.value * x[e.column];
    }
  }
  return y;
}

double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Modified Gram-Schmidt. Columns that vanish become zero.
void Orthonormalize(Matrix* columns) {
  for (size_t i = 0; i < columns->size(); ++i) {
    std::vector<double>& c = (*columns)[i];
    const double before = std::sqrt(Dot(c, c));
    for (size_t j = 0; j < i; ++j) {
      const double along = Dot(c, (*columns)[j]);
      for (size_t k = 0; k < c.size(); ++k) c[k] -= along * (*columns)[j][k];
    }
    const double length = std::sqrt(Dot(c, c));
    const double scale = length > 1e-9 * before && length > 0 ? 1 / length : 0;
    for (double& v : c) v *= scale;
  }
}

std::vector<double> SmoothedUnigram(std::span<const TokenId> tokens, int32_t vocab_size,
                                    TokenId rare, double rare_share) {
  std::vector<double> p(static_cast<size_t>(vocab_size), kUnseenCount);
  for (TokenId t : tokens) p[t] += 1;
  p[rare] = 0;
  double total = 0;
  for (double v : p) total += v;
  for (double& v : p) v *= (1 - rare_share) / total;
  p[rare] = rare_share;
  return p;
}

// log of the smoothed bigram over the unigram, less its value where nothing was seen.
std::vector<Entry> SparseInformation(std::span<const TokenId> tokens,
                                     const std::vector<double>& unigram) {
  std::map<std::pair<TokenId, TokenId>, int> pairs;
  std::vector<int> firsts(unigram.size(), 0);
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    ++pairs[{tokens[i], tokens[i + 1]}];
    ++firsts[tokens[i]];
  }
  std::vector<Entry> entries;
  for (const auto& [pair, count] : pairs) {
    const double seen = kBigramShare * count / firsts[pair.first];
    const double lift = seen / ((1 - kBigramShare) * unigram[pair.second]);
    entries.push_back({pair.first, pair.second, std::log1p(lift)});
  }
  return entries;
}

}  // namespace

BigramModel FitBigrams(std::span<const TokenId> tokens, int32_t vocab_size, int32_t rank,
                       TokenId rare, double rare_share) {
  BigramModel model;
  model.vocab_size = vocab_size;
  model.rank = rank;
  const std::vector<double> unigram = SmoothedUnigram(tokens, vocab_size, rare, rare_share);
  for (double p : unigram) model.log_unigram.push_back(std::log(p));
  const std::vector<Entry> m = SparseInformation(tokens, unigram);

  Matrix q(static_cast<size_t>(rank));
  for (int32_t r = 0; r < rank; ++r) {
    for (int32_t v = 0; v < vocab_size; ++v) {
      const uint64_t word = Mix64(static_cast<uint64_t>(r) * vocab_size + v);
      q[r].push_back(static_cast<double>(static_cast<int64_t>(word)) * 0x1p-63);
    }
  }
  Orthonormalize(&q);
  for (int i = 0; i < kIterations; ++i) {
    for (auto& column : q) column = Times(m, false, Times(m, true, column));
    Orthonormalize(&q);
  }
  // M ~ Q (Q^T M), and both sides share the singular values.
  model.left.assign(static_cast<size_t>(vocab_size) * rank, 0.0);
  model.right = model.left;
  for (int32_t r = 0; r < rank; ++r) {
    const std::vector<double> row = Times(m, true, q[r]);
    const double root = std::sqrt(std::sqrt(Dot(row, row)));
    if (root <= 0) continue;
    for (int32_t v = 0; v < vocab_size; ++v) {
      model.left[v * rank + r] = q[r][v] * root;
      model.right[v * rank + r] = row[v] / root;
    }
  }
  return model;
}

}  // namespace paceline

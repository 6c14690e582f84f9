#include "kernels/cpu/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <map>
#include <numeric>
#include <set>

#include "kernels/cpu/random_inputs.h"
#include "kernels/noise.h"

namespace paceline::kernels {
namespace {

constexpr double kGone = -std::numeric_limits<double>::infinity();
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A row with all that it points to.
struct Row {
  std::vector<float> logits;
  std::vector<int32_t> history, path, banned;
  std::vector<std::pair<int32_t, float>> bias;
  std::vector<uint32_t> allowed;
  SampleParams params;

  const SampleParams& Params() {
    params.logits = logits.data();
    params.vocab_size = static_cast<int32_t>(logits.size());
    params.history = history.data();
    params.history_len = static_cast<int32_t>(history.size());
    params.path = path.data();
    params.path_len = static_cast<int32_t>(path.size());
    params.banned = banned.data();
    params.num_banned = static_cast<int32_t>(banned.size());
    params.logit_bias = bias.data();
    params.num_logit_bias = static_cast<int32_t>(bias.size());
    params.allowed = allowed.empty() ? nullptr : allowed.data();
    return params;
  }
};

SampleOutput Drawn(Row& row, ThreadPool& pool) {
  SampleOutput out;
  EXPECT_EQ(Sample(&row.Params(), 1, &out, pool), CpuResult::kOk);
  return out;
}

// --- The documented order in double, with a sort of the whole vocabulary ---

struct Reference {
  std::vector<double> raw;     // log softmax of the logits as they came
  std::vector<double> kept;    // logits behind all filters, over the temperature; kGone = removed
  std::vector<double> scores;  // with noise
  bool close = false;          // a filter's border is within rounding: which side is open
};

double Clean(double logit) { return std::isnan(logit) ? kGone : std::min<double>(logit, FLT_MAX); }

double LogSum(const std::vector<double>& values) {
  const double most = *std::max_element(values.begin(), values.end());
  if (most == kGone) return kGone;
  double sum = 0;
  for (double v : values) sum += std::exp(v - most);
  return most + std::log(sum);
}

void Edit(const Row& row, std::vector<double>* logits) {
  const SampleParams& p = row.params;
  const auto inside = [&](int32_t id) { return id >= 0 && id < p.vocab_size; };
  for (int32_t v = 0; v < p.vocab_size && !row.allowed.empty(); ++v) {
    if ((row.allowed[v / 32] >> (v % 32) & 1) == 0) (*logits)[v] = kGone;
  }
  for (const auto& [id, bias] : row.bias) {
    if (inside(id)) (*logits)[id] += bias;
  }
  std::map<int32_t, int32_t> seen;  // to the number of times in the output
  for (size_t i = 0; i < row.history.size(); ++i) {
    if (inside(row.history[i])) {
      seen[row.history[i]] += static_cast<int32_t>(i) >= p.prompt_len ? 1 : 0;
    }
  }
  for (int32_t id : row.path) {
    if (inside(id)) ++seen[id];
  }
  for (const auto& [id, count] : seen) {
    double& l = (*logits)[id];
    l = l > 0 ? l / p.repetition_penalty : l * p.repetition_penalty;
    if (count > 0) l -= p.presence_penalty + double{p.frequency_penalty} * count;
  }
  for (int32_t id : row.banned) {
    if (inside(id)) (*logits)[id] = kGone;
  }
  for (double& l : *logits) l = Clean(l);
}

void Filter(const SampleParams& p, Reference* ref) {
  std::vector<double>& l = ref->kept;
  std::vector<int32_t> order(l.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return l[a] > l[b]; });
  size_t size = order.size();
  while (size > 0 && l[order[size - 1]] == kGone) --size;
  if (p.top_k > 0) size = std::min<size_t>(size, static_cast<size_t>(p.top_k));
  const auto weight = [&](size_t i) { return std::exp(l[order[i]] - l[order[0]]); };
  double total = 0;
  for (size_t i = 0; i < size; ++i) total += weight(i);
  if (p.top_p < 1) {
    double sum = 0;
    for (size_t i = 0; i < size; ++i) {
      sum += weight(i);
      const double over = sum / total - double{p.top_p};
      if (std::fabs(over) < 2e-6) ref->close = true;
      if (over >= 0) size = i + 1;
    }
  }
  if (p.min_p > 0) {
    for (size_t i = 0; i < size; ++i) {
      if (std::fabs(weight(i) / double{p.min_p} - 1) < 1e-5) ref->close = true;
      if (weight(i) < double{p.min_p}) size = i;
    }
  }
  // Equal in float or not: the order of nearly equal logits at the border is open.
  if (size > 0 && size < order.size()) {
    const double gap = l[order[size - 1]] - l[order[size]];
    if (gap > 0 && gap < 1e-5 * std::max(1.0, std::fabs(l[order[size]]))) ref->close = true;
  }
  for (size_t i = size; i < order.size(); ++i) l[order[i]] = kGone;
}

Reference Expect(Row& row) {
  const SampleParams& p = row.Params();
  Reference ref;
  for (float l : row.logits) ref.raw.push_back(Clean(double{l}));
  ref.kept = ref.raw;
  const double norm = LogSum(ref.raw);
  for (double& l : ref.raw) l -= norm;
  Edit(row, &ref.kept);
  if (p.temperature > 0) {
    const double most = *std::max_element(ref.kept.begin(), ref.kept.end());
    for (double& l : ref.kept) l = most == kGone ? kGone : (l - most) / double{p.temperature};
    Filter(p, &ref);
  }
  ref.scores = ref.kept;
  for (int32_t v = 0; v < p.vocab_size && p.temperature > 0; ++v) {
    if (ref.scores[v] == kGone) continue;
    ref.scores[v] += double{GumbelNoise(p.seed, p.sample, p.position, static_cast<uint32_t>(v))};
  }
  return ref;
}

void Check(Row& row, ThreadPool& pool, int* close) {
  const SampleOutput out = Drawn(row, pool);
  const Reference ref = Expect(row);
  const SampleParams& p = row.params;
  const auto best = std::max_element(ref.scores.begin(), ref.scores.end());
  if (*best == kGone) {
    EXPECT_EQ(out.token, -1);
    EXPECT_TRUE(out.candidates.empty());
    return;
  }
  ASSERT_GE(out.token, 0);
  ASSERT_LT(out.token, p.vocab_size);
  if (p.top_logprobs >= 0) {
    const size_t count = static_cast<size_t>(p.top_logprobs);
    EXPECT_NEAR(out.logprob, ref.raw[out.token], 1e-4 * std::max(1.0, -ref.raw[out.token]));
    EXPECT_LE(out.top_logprobs.size(), count);
    for (size_t i = 0; i < out.top_logprobs.size(); ++i) {
      const auto& [id, logprob] = out.top_logprobs[i];
      EXPECT_NEAR(logprob, ref.raw[id], 1e-4 * std::max(1.0, -ref.raw[id]));
      if (i == 0) continue;
      const auto& before = out.top_logprobs[i - 1];
      EXPECT_TRUE(row.logits[before.first] > row.logits[id] ||
                  (row.logits[before.first] == row.logits[id] && before.first < id));
    }
  }
  if (ref.close) {
    ++*close;
    return;
  }
  const double tolerance = p.temperature > 0 ? 1e-4 : 0;
  const auto same = [&](double a, double b) {
    return std::fabs(a - b) <= tolerance * std::max(1.0, std::fabs(a));
  };
  const auto expected = static_cast<int32_t>(best - ref.scores.begin());
  if (out.token != expected) {
    EXPECT_TRUE(same(*best, ref.scores[out.token]) && ref.scores[out.token] != *best)
        << "token " << out.token << " scores " << ref.scores[out.token] << ", token " << expected
        << " " << *best;
  }
  if (p.num_candidates == 0) return;
  const auto left = std::ranges::count_if(ref.scores, [](double s) { return s != kGone; });
  ASSERT_EQ(static_cast<int64_t>(out.candidates.size()), std::min<int64_t>(left, p.num_candidates));
  EXPECT_EQ(out.candidates[0], out.token);
  std::vector<double> sorted = ref.scores;
  std::ranges::sort(sorted, std::greater<>());
  for (size_t i = 0; i < out.candidates.size(); ++i) {
    EXPECT_TRUE(same(ref.scores[out.candidates[i]], sorted[i])) << "candidate " << i;
  }
  EXPECT_EQ(std::set<int32_t>(out.candidates.begin(), out.candidates.end()).size(),
            out.candidates.size());
}

// Random, coarse (many equal), peaked, with holes.
std::vector<float> Logits(int32_t vocab, RandomInputs& random) {
  std::vector<float> logits = random.Floats(vocab, 8);
  switch (random.Int(0, 4)) {
    case 0:
      for (float& l : logits) l = std::round(l);
      break;
    case 1:
      for (float& l : logits) l = random.Int(0, 3) == 0 ? kMinusInf : l;
      break;
    case 2:
      for (float& l : logits) l = random.Int(0, 9) == 0 ? kNan : l * 0.01f;
      break;
    case 3:
      logits[random.Int(0, vocab - 1)] = 40;
      break;
    default:
      break;
  }
  return logits;
}

Row RandomRow(int32_t vocab, RandomInputs& random) {
  Row row;
  row.logits = Logits(vocab, random);
  SampleParams& p = row.params;
  p.seed = random.engine()();
  p.sample = static_cast<uint32_t>(random.Int(0, 5));
  p.position = static_cast<uint32_t>(random.Int(0, 100000));
  const float temperatures[] = {0, 0.25f, 0.7f, 1, 1.7f};
  p.temperature = temperatures[random.Int(0, 4)];
  if (random.Int(0, 2) == 0) p.top_k = random.Int(1, random.Int(0, 1) == 0 ? 5 : vocab + 2);
  if (random.Int(0, 2) == 0) p.top_p = static_cast<float>(random.Int(1, 99)) / 100;
  if (random.Int(0, 2) == 0) p.min_p = static_cast<float>(random.Int(1, 60)) / 100;
  const auto ids = [&](int count) {
    std::vector<int32_t> list;
    for (int i = 0; i < count; ++i) list.push_back(random.Int(-1, vocab));  // two are no ids
    return list;
  };
  if (random.Int(0, 1) == 0) {
    row.history = ids(random.Int(0, 40));
    p.prompt_len = random.Int(0, static_cast<int>(row.history.size()));
    row.path = ids(random.Int(0, 4));
    p.repetition_penalty = random.Int(0, 1) == 0 ? 1.0f : 1.5f;
    p.presence_penalty = static_cast<float>(random.Int(-2, 2));
    p.frequency_penalty = random.Uniform();
  }
  if (random.Int(0, 3) == 0) row.banned = ids(3);
  if (random.Int(0, 3) == 0) row.bias = {{random.Int(0, vocab - 1), 3.5f}, {vocab, 9.0f}};
  if (random.Int(0, 3) == 0) {
    for (int32_t v = 0; v < vocab; v += 32) {
      row.allowed.push_back(static_cast<uint32_t>(random.engine()()));
    }
  }
  if (random.Int(0, 1) == 0) p.top_logprobs = random.Int(0, 5);
  if (random.Int(0, 1) == 0) p.num_candidates = random.Int(1, 9);
  return row;
}

class SamplerTest : public testing::TestWithParam<Isa> {};
INSTANTIATE_TEST_SUITE_P(Isas, SamplerTest, testing::ValuesIn(SupportedIsas()),
                         [](const auto& info) { return IsaName(info.param); });

TEST_P(SamplerTest, FollowsTheDocumentedOrder) {
  ThreadPool pool(1, GetParam());
  RandomInputs random(1);
  int close = 0;
  int rows = 0;
  for (const auto& [vocab, count] : std::map<int32_t, int>{
           {1, 100}, {2, 300}, {3, 300}, {17, 300}, {1000, 200}, {32000, Thin() ? 4 : 25}}) {
    for (int i = 0; i < count; ++i, ++rows) {
      Row row = RandomRow(vocab, random);
      Check(row, pool, &close);
      ASSERT_FALSE(HasFailure()) << "vocabulary " << vocab << ", row " << i << ", temperature "
                                 << row.params.temperature << " top_k " << row.params.top_k
                                 << " top_p " << row.params.top_p << " min_p " << row.params.min_p;
    }
  }
  EXPECT_LT(close, rows / 20) << "too many rows say nothing";
}

TEST_P(SamplerTest, TiesGoToTheLowestId) {
  ThreadPool pool(1, GetParam());
  for (int32_t vocab : {2, 16, 17, 1000, 32000}) {
    Row row;
    row.logits.assign(vocab, 1.5f);
    row.params.temperature = 0;
    row.params.num_candidates = 3;
    EXPECT_EQ(Drawn(row, pool).token, 0);
    row.logits[0] = 1;
    const SampleOutput out = Drawn(row, pool);
    EXPECT_EQ(out.token, 1);
    if (vocab > 3) {
      EXPECT_EQ(out.candidates, (std::vector<int32_t>{1, 2, 3}));
    }
    // Top-k of equals keeps the lowest ids, exactly k of them.
    row.logits.assign(vocab, -2.0f);
    row.params.temperature = 1;
    row.params.top_k = 2;
    row.params.num_candidates = vocab;
    for (uint32_t position = 0; position < 8; ++position) {
      row.params.position = position;
      std::vector<int32_t> kept = Drawn(row, pool).candidates;
      std::ranges::sort(kept);
      EXPECT_EQ(kept, (std::vector<int32_t>{0, 1}));
    }
  }
}

std::set<int32_t> Kept(Row& row, ThreadPool& pool) {
  row.params.num_candidates = static_cast<int32_t>(row.logits.size());
  const std::vector<int32_t> ids = Drawn(row, pool).candidates;
  return {ids.begin(), ids.end()};
}

TEST_P(SamplerTest, FiltersKeepWhatTheySay) {
  ThreadPool pool(1, GetParam());
  Row row;
  for (float p : {0.1f, 0.4f, 0.3f, 0.2f}) row.logits.push_back(std::log(p));
  row.params.top_p = 0.6f;  // 0.4, then the one that crosses
  EXPECT_EQ(Kept(row, pool), (std::set<int32_t>{1, 2}));
  row.params.top_p = 0.75f;
  EXPECT_EQ(Kept(row, pool), (std::set<int32_t>{1, 2, 3}));
  row.params.top_p = 1e-6f;  // never nothing
  EXPECT_EQ(Kept(row, pool), (std::set<int32_t>{1}));
  row.params.top_p = 0.6f;  // of what top-k leaves, renormalised: 0.57 does not reach it
  row.params.top_k = 2;
  EXPECT_EQ(Kept(row, pool), (std::set<int32_t>{1, 2}));
  row.params.top_p = 0.5f;
  EXPECT_EQ(Kept(row, pool), (std::set<int32_t>{1}));
  row.params.top_k = 0;
  row.params.top_p = 1;
  row.params.min_p = 0.6f;  // of the greatest
  EXPECT_EQ(Kept(row, pool), (std::set<int32_t>{1, 2}));
}

TEST_P(SamplerTest, OddLogits) {
  ThreadPool pool(1, GetParam());
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (float temperature : {0.0f, 1.0f}) {
    for (int32_t vocab : {1, 3, 40}) {
      Row row;
      row.params.temperature = temperature;
      row.params.top_logprobs = 2;
      for (float nothing : {kNan, kMinusInf}) {
        row.logits.assign(vocab, nothing);
        EXPECT_EQ(Drawn(row, pool).token, -1);
        row.logits[vocab - 1] = -7;
        const SampleOutput out = Drawn(row, pool);
        EXPECT_EQ(out.token, vocab - 1);
        EXPECT_NEAR(out.logprob, 0, 1e-5);
        EXPECT_EQ(out.top_logprobs.size(), 1u);
      }
      row.logits.assign(vocab, 0.0f);
      row.logits[vocab / 2] = kInf;
      EXPECT_EQ(Drawn(row, pool).token, vocab / 2);
      row.logits.assign(vocab, -3e38f);
      row.logits[vocab / 2] = 3e38f;
      EXPECT_EQ(Drawn(row, pool).token, vocab / 2);
    }
  }
}

TEST_P(SamplerTest, RowsDoNotDependOnTheirNeighbours) {
  RandomInputs random(3);
  std::vector<Row> rows;
  for (int i = 0; i < 40; ++i) rows.push_back(RandomRow(i % 2 == 0 ? 100 : 3001, random));
  std::vector<SampleParams> params;
  for (Row& row : rows) params.push_back(row.Params());
  ThreadPool one(1, GetParam()), three(3, GetParam());
  std::vector<SampleOutput> outputs(rows.size());
  ASSERT_EQ(Sample(params.data(), 40, outputs.data(), three), CpuResult::kOk);
  for (size_t i = 0; i < rows.size(); ++i) {
    const SampleOutput alone = Drawn(rows[i], one);
    EXPECT_EQ(outputs[i].token, alone.token);
    EXPECT_EQ(outputs[i].logprob, alone.logprob);
    EXPECT_EQ(outputs[i].top_logprobs, alone.top_logprobs);
    EXPECT_EQ(outputs[i].candidates, alone.candidates);
  }
}

// Frequencies over seeds, positions or samples against p; the draws are fixed, so is the outcome.
TEST_P(SamplerTest, FrequenciesAreThoseOfTheDistribution) {
  ThreadPool pool(1, GetParam());
  const int draws = Thin() ? 1 << 12 : 1 << 15;
  for (int variant = 0; variant < 7; ++variant) {
    Row row;
    if (variant == 0) {
      row.logits = {std::log(0.1f), std::log(0.6f), std::log(0.3f)};
    } else {
      for (int v = 0; v < 40; ++v) row.logits.push_back(static_cast<float>((v * 29) % 17) / 4);
    }
    SampleParams& p = row.params;
    if (variant == 2) p.temperature = 0.6f;
    if (variant == 3) p.top_k = 7;
    if (variant == 4) p.top_p = 0.7f;
    if (variant == 5) p.min_p = 0.2f;
    if (variant == 6) p.temperature = 1.5f, p.top_k = 25, p.top_p = 0.9f, p.min_p = 0.1f;
    const Reference ref = Expect(row);
    const double norm = LogSum(ref.kept);
    for (int over = 0; over < 3; ++over) {
      std::vector<int> counts(row.logits.size());
      for (int i = 0; i < draws; ++i) {
        p.seed = over == 0 ? static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15u : 42;
        p.position = over == 1 ? static_cast<uint32_t>(i) : 7;
        p.sample = over == 2 ? static_cast<uint32_t>(i) : 0;
        ++counts[Drawn(row, pool).token];
      }
      double chi_square = 0;
      int cells = 0;
      for (size_t v = 0; v < counts.size(); ++v) {
        const double expected = ref.kept[v] == kGone ? 0 : draws * std::exp(ref.kept[v] - norm);
        if (expected == 0) {
          EXPECT_EQ(counts[v], 0) << "a token that was filtered out";
          continue;
        }
        chi_square += (counts[v] - expected) * (counts[v] - expected) / expected;
        ++cells;
      }
      const double freedom = cells - 1;
      EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2 * freedom)) << "variant " << variant;
    }
  }
}

TEST(Sampler, RefusesBadShapes) {
  ThreadPool pool(1);
  std::vector<float> logits(4, 0);
  SampleOutput out;
  const auto result = [&](auto change) {
    SampleParams p;
    p.logits = logits.data();
    p.vocab_size = 4;
    change(p);
    return Sample(&p, 1, &out, pool);
  };
  EXPECT_EQ(result([](auto&) {}), CpuResult::kOk);
  EXPECT_EQ(result([](auto& p) { p.logits = nullptr; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p) { p.vocab_size = 0; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p) { p.temperature = -1; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p) { p.temperature = kNan; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p) { p.top_p = 0; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p) { p.min_p = 1; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p) { p.repetition_penalty = 0; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p) { p.history_len = 3; }), CpuResult::kBadShape);
  EXPECT_EQ(result([](auto& p) { p.num_banned = -1; }), CpuResult::kBadShape);
  EXPECT_EQ(Sample(nullptr, -1, &out, pool), CpuResult::kBadShape);
}

}  // namespace
}  // namespace paceline::kernels

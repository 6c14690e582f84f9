// The CUDA sampler against the CPU's on equal logits: the same tokens, candidates and logprobs.
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>

#include "kernels/cpu/random_inputs.h"
#include "kernels/cpu/sampler.h"
#include "kernels/cuda/device_buffers.h"
#include "kernels/cuda/sampler.h"
#include "kernels/noise.h"

namespace paceline::kernels {
namespace {

// A row for both samplers.
struct Draw {
  SampleParams cpu;
  std::vector<int32_t> history;
  std::vector<std::pair<int32_t, float>> bias;
  std::vector<int32_t> banned;
  std::vector<uint32_t> allowed;
};

// What the host makes of a draw for the device.
CudaSampleRow RowOf(const Draw& d, int32_t logits_row, std::vector<CudaSampleEdit>* edits) {
  std::map<int32_t, CudaSampleEdit> by_id;
  const auto of = [&](int32_t id) -> CudaSampleEdit& {
    by_id[id].id = id;
    return by_id[id];
  };
  for (const auto& [id, bias] : d.bias) of(id).bias += bias;
  for (size_t i = 0; i < d.history.size(); ++i) {
    CudaSampleEdit& edit = of(d.history[i]);
    edit.output_count = std::max(edit.output_count, 0);
    if (static_cast<int32_t>(i) >= d.cpu.prompt_len) ++edit.output_count;
  }
  for (int32_t id : d.banned) of(id).banned = 1;
  const SampleParams& p = d.cpu;
  CudaSampleRow row;
  row.seed = p.seed;
  row.sample = p.sample;
  row.position = p.position;
  row.logits_row = logits_row;
  row.temperature = p.temperature;
  row.top_k = p.top_k;
  row.top_p = p.top_p;
  row.min_p = p.min_p;
  row.repetition_penalty = p.repetition_penalty;
  row.presence_penalty = p.presence_penalty;
  row.frequency_penalty = p.frequency_penalty;
  row.edit_begin = static_cast<int32_t>(edits->size());
  for (const auto& [id, edit] : by_id) edits->push_back(edit);
  row.edit_end = static_cast<int32_t>(edits->size());
  row.top_logprobs = p.top_logprobs;
  row.num_candidates = p.num_candidates;
  return row;
}

struct Results {
  std::vector<SampleOutput> cpu;
  std::vector<CudaSampleResult> cuda;
};

Results SampleBoth(std::vector<Draw>& draws, const std::vector<float>& logits, int32_t vocab,
                   bool with_allowed = false) {
  std::vector<SampleParams> cpu;
  std::vector<CudaSampleRow> rows;
  std::vector<CudaSampleEdit> edits;
  std::vector<uint32_t> allowed;
  for (size_t i = 0; i < draws.size(); ++i) {
    Draw& d = draws[i];
    d.cpu.logits = logits.data() + static_cast<int64_t>(i) * vocab;
    d.cpu.vocab_size = vocab;
    d.cpu.history = d.history.data();
    d.cpu.history_len = static_cast<int32_t>(d.history.size());
    d.cpu.logit_bias = d.bias.data();
    d.cpu.num_logit_bias = static_cast<int32_t>(d.bias.size());
    d.cpu.banned = d.banned.data();
    d.cpu.num_banned = static_cast<int32_t>(d.banned.size());
    if (with_allowed) d.cpu.allowed = d.allowed.data();
    allowed.insert(allowed.end(), d.allowed.begin(), d.allowed.end());
    cpu.push_back(d.cpu);
    rows.push_back(RowOf(d, static_cast<int32_t>(i), &edits));
  }
  Results r;
  r.cpu.resize(draws.size());
  ThreadPool pool(1);
  EXPECT_EQ(Sample(cpu.data(), static_cast<int64_t>(cpu.size()), r.cpu.data(), pool),
            CpuResult::kOk);
  const auto n = static_cast<int64_t>(draws.size());
  DeviceArray<float> d_logits(logits), values(n * vocab), scores(n * vocab);
  DeviceArray<CudaSampleRow> d_rows(rows);
  DeviceArray<CudaSampleEdit> d_edits(edits);
  DeviceArray<uint32_t> d_allowed(allowed);
  DeviceArray<CudaSampleResult> results(n);
  DeviceArray<uint8_t> workspace(CudaSampleWorkspaceBytes(static_cast<int32_t>(n), vocab));
  CudaSampleParams p;
  p.logits = d_logits.data();
  p.vocab_size = vocab;
  p.rows = d_rows.data();
  p.edits = d_edits.data();
  if (with_allowed) p.allowed = d_allowed.data();
  p.num_rows = static_cast<int32_t>(n);
  p.values = values.data();
  p.scores = scores.data();
  p.workspace = workspace.data();
  p.results = results.data();
  Must(CudaSample(p, nullptr));
  r.cuda = results.Get();
  values.ExpectGuards();
  scores.ExpectGuards();
  workspace.ExpectGuards();
  results.ExpectGuards();
  return r;
}

// Equal where every choice is exact. Top-p and min-p compare sums of exponentials that round
// differently on both sides: `loose` rows may rarely differ there.
void ExpectEqual(const Results& r, const std::vector<Draw>& draws, int32_t* differ) {
  for (size_t i = 0; i < draws.size(); ++i) {
    const SampleOutput& cpu = r.cpu[i];
    const CudaSampleResult& cuda = r.cuda[i];
    const SampleParams& p = draws[i].cpu;
    const bool exact = p.top_p >= 1.0f && p.min_p == 0.0f;
    if (!exact && cpu.token != cuda.token) {
      ++*differ;
      continue;
    }
    ASSERT_EQ(cuda.token, cpu.token) << i;
    ASSERT_EQ(cuda.num_top, static_cast<int32_t>(cpu.top_logprobs.size())) << i;
    for (int32_t t = 0; t < cuda.num_top; ++t) {
      ASSERT_EQ(cuda.top_ids[t], cpu.top_logprobs[t].first) << i;
      ASSERT_NEAR(cuda.top_logprobs[t], cpu.top_logprobs[t].second, 1e-4) << i;
    }
    ASSERT_NEAR(cuda.logprob, cpu.logprob, 1e-4) << i;
    if (exact) {
      ASSERT_EQ(cuda.num_candidates, static_cast<int32_t>(cpu.candidates.size())) << i;
      for (int32_t c = 0; c < cuda.num_candidates; ++c) {
        ASSERT_EQ(cuda.candidates[c], cpu.candidates[c]) << i;
      }
    }
  }
}

TEST(CudaSampler, EqualsTheCpuOnRandomRequests) {
  PACELINE_NEEDS_GPU();
  int32_t differ = 0, total = 0;
  for (int32_t vocab : {1, 3, 100, 1000, 5003}) {
    SCOPED_TRACE(vocab);
    RandomInputs random(vocab);
    const int32_t rows = 40;
    std::vector<float> logits = random.Floats(int64_t{rows} * vocab, 6);
    std::vector<Draw> draws(rows);
    for (int32_t i = 0; i < rows; ++i) {
      Draw& d = draws[i];
      float* row = logits.data() + int64_t{i} * vocab;
      if (i % 5 == 1) {  // many ties
        for (int32_t v = 0; v < vocab; ++v) row[v] = std::round(row[v]);
      }
      if (i % 7 == 2) row[random.Int(0, vocab - 1)] = std::numeric_limits<float>::quiet_NaN();
      if (i % 7 == 3) row[random.Int(0, vocab - 1)] = -std::numeric_limits<float>::infinity();
      if (i % 11 == 4) row[random.Int(0, vocab - 1)] = std::numeric_limits<float>::infinity();
      if (i % 3 == 0) row[random.Int(0, vocab - 1)] = -0.0f;
      SampleParams& p = d.cpu;
      p.seed = random.engine()();
      p.sample = static_cast<uint32_t>(i % 3);
      p.position = static_cast<uint32_t>(random.Int(0, 100000));
      p.temperature = i % 4 == 0 ? 0.0f : std::fabs(random.Uniform()) * 1.5f + 0.1f;
      if (i % 3 == 1) p.top_k = random.Int(1, std::max(1, vocab / 2));
      if (i % 4 == 2) p.top_p = 0.3f + 0.69f * std::fabs(random.Uniform());
      if (i % 6 == 5) p.min_p = 0.2f * std::fabs(random.Uniform());
      if (i % 5 == 3) {
        p.repetition_penalty = 1.2f;
        p.presence_penalty = 0.5f;
        p.frequency_penalty = 0.25f;
        for (int j = 0; j < 30; ++j) d.history.push_back(random.Int(0, vocab - 1));
        p.prompt_len = 12;
      }
      if (i % 6 == 1) d.bias = {{random.Int(0, vocab - 1), 3.0f}};
      if (i % 6 == 2 && vocab > 3) d.banned = {0, vocab - 1};
      if (i % 2 == 0) p.top_logprobs = i % 20;
      p.num_candidates = i % 5 == 0 ? 0 : i % 9;
    }
    const Results r = SampleBoth(draws, logits, vocab);
    ExpectEqual(r, draws, &differ);
    total += rows;
  }
  EXPECT_LE(differ, total / 50);
}

TEST(CudaSampler, ExactlyKWithTiesToTheLowestId) {
  PACELINE_NEEDS_GPU();
  const int32_t vocab = 700;
  const std::vector<float> logits(vocab * 3, 1.5f);
  std::vector<Draw> draws(3);
  for (int32_t i = 0; i < 3; ++i) {
    draws[i].cpu.top_k = i == 0 ? 5 : i == 1 ? 64 : 300;
    draws[i].cpu.num_candidates = 64;
    draws[i].cpu.seed = static_cast<uint64_t>(i + 1);
  }
  const Results r = SampleBoth(draws, logits, vocab);
  int32_t differ = 0;
  ExpectEqual(r, draws, &differ);
  EXPECT_EQ(r.cuda[0].num_candidates, 5);
  for (int32_t c = 0; c < 5; ++c) EXPECT_LT(r.cuda[0].candidates[c], 5);
  EXPECT_EQ(r.cuda[1].num_candidates, 64);
}

TEST(CudaSampler, MasksAndNothingLeft) {
  PACELINE_NEEDS_GPU();
  RandomInputs random(8);
  const int32_t vocab = 200;
  const auto logits = random.Floats(vocab * 4, 3);
  std::vector<Draw> draws(4);
  for (int32_t i = 0; i < 4; ++i) {
    draws[i].allowed.assign(7, 0);
    for (uint32_t& word : draws[i].allowed) word = static_cast<uint32_t>(random.engine()());
    draws[i].cpu.temperature = i % 2 == 0 ? 1.0f : 0.0f;
    draws[i].cpu.top_p = 0.9f;
    draws[i].cpu.top_logprobs = 2;
    draws[i].cpu.num_candidates = 3;
  }
  draws[3].allowed.assign(7, 0);
  draws[2].allowed.assign(7, 0);
  draws[2].allowed[6] = 1u << 7;  // id 199 alone
  const Results r = SampleBoth(draws, logits, vocab, true);
  int32_t differ = 0;
  ExpectEqual(r, draws, &differ);
  EXPECT_EQ(differ, 0);
  EXPECT_EQ(r.cuda[3].token, -1);
  EXPECT_EQ(r.cuda[3].num_candidates, 0);
  EXPECT_EQ(r.cuda[2].token, 199);
  EXPECT_EQ(r.cuda[2].num_candidates, 1);
}

// Of equal logits the scores are the noise itself: the host's, bit for bit. They are written where
// the whole row is scored: here all but one id are kept.
TEST(CudaSampler, NoiseHasTheHostsBits) {
  PACELINE_NEEDS_GPU();
  const int32_t vocab = kEmulated ? 3001 : 200001;
  RandomInputs random(23);
  CudaSampleRow row;
  row.seed = random.engine()();
  row.sample = 3;
  row.position = static_cast<uint32_t>(random.Int(0, 1 << 20));
  row.top_k = vocab - 1;
  DeviceArray<float> logits(std::vector<float>(static_cast<size_t>(vocab), 2.5f));
  DeviceArray<float> values(vocab), scores(vocab);
  DeviceArray<CudaSampleRow> rows(std::vector<CudaSampleRow>{row});
  DeviceArray<CudaSampleResult> results(1);
  DeviceArray<uint8_t> workspace(CudaSampleWorkspaceBytes(1, vocab));
  CudaSampleParams p;
  p.logits = logits.data();
  p.vocab_size = vocab;
  p.rows = rows.data();
  p.num_rows = 1;
  p.values = values.data();
  p.scores = scores.data();
  p.workspace = workspace.data();
  p.results = results.data();
  Must(CudaSample(p, nullptr));
  const auto got = scores.Get();
  for (int32_t v = 0; v + 1 < vocab; ++v) {
    const float expected =
        GumbelNoise(row.seed, row.sample, row.position, static_cast<uint32_t>(v));
    ASSERT_EQ(std::memcmp(&got[static_cast<size_t>(v)], &expected, sizeof(float)), 0)
        << v << ": " << got[static_cast<size_t>(v)] << " " << expected;
  }
}

// Noise alone decides among many: bounds must never drop an id that wins.
TEST(CudaSampler, BoundsKeepTheBestScores) {
  PACELINE_NEEDS_GPU();
  const int32_t vocab = kEmulated ? 9001 : 128256;
  const int32_t rows = kEmulated ? 6 : 48;
  RandomInputs random(29);
  auto logits = random.Floats(int64_t{rows} * vocab, 4);
  std::vector<Draw> draws(static_cast<size_t>(rows));
  for (int32_t i = 0; i < rows; ++i) {
    float* row = logits.data() + int64_t{i} * vocab;
    if (i % 6 == 1) std::fill(row, row + vocab, 0.25f);
    if (i % 6 == 2) std::fill(row + 5, row + vocab, -1e30f);  // padding
    if (i % 6 == 3) row[random.Int(0, vocab - 1)] = 500;
    SampleParams& p = draws[static_cast<size_t>(i)].cpu;
    p.seed = random.engine()();
    p.temperature = i % 6 == 4 ? 0.01f : i % 6 == 5 ? 50.0f : 1.0f;
    p.num_candidates = i % 4 == 0 ? 0 : i % 4 == 1 ? 1 : 64;
  }
  int32_t differ = 0;
  ExpectEqual(SampleBoth(draws, logits, vocab), draws, &differ);
}

// More equal values than any list holds, at every rule.
TEST(CudaSampler, ManyTies) {
  PACELINE_NEEDS_GPU();
  const int32_t vocab = 20000;
  std::vector<float> logits(static_cast<size_t>(vocab) * 4, 2.0f);
  std::vector<Draw> draws(4);
  for (int32_t i = 0; i < 4; ++i) {
    draws[static_cast<size_t>(i)].cpu.seed = static_cast<uint64_t>(i);
    draws[static_cast<size_t>(i)].cpu.top_logprobs = 3;
    draws[static_cast<size_t>(i)].cpu.num_candidates = 5;
  }
  draws[0].cpu.temperature = 0;
  draws[1].cpu.top_k = 40;
  draws[2].cpu.top_p = 0.5f;
  draws[3].cpu.min_p = 0.5f;
  int32_t differ = 0;
  ExpectEqual(SampleBoth(draws, logits, vocab), draws, &differ);
  EXPECT_EQ(differ, 0);
}

TEST(CudaSampler, ARowIsTheSameInAnyBatch) {
  PACELINE_NEEDS_GPU();
  const int32_t vocab = 30000;
  RandomInputs random(31);
  const auto logits = random.Floats(int64_t{6} * vocab, 5);
  std::vector<Draw> draws(6);
  for (size_t i = 0; i < draws.size(); ++i) {
    draws[i].cpu.seed = i;
    draws[i].cpu.top_logprobs = 4;
    if (i % 2 == 1) draws[i].cpu.top_p = 0.9f;
    if (i % 3 == 1) draws[i].cpu.top_k = 50;
  }
  const Results all = SampleBoth(draws, logits, vocab);
  for (size_t i = 0; i < draws.size(); ++i) {
    std::vector<Draw> one(draws.begin() + static_cast<int64_t>(i),
                          draws.begin() + static_cast<int64_t>(i) + 1);
    const auto at = logits.begin() + static_cast<int64_t>(i) * vocab;
    const Results r = SampleBoth(one, std::vector<float>(at, at + vocab), vocab);
    EXPECT_EQ(r.cuda[0].token, all.cuda[i].token);
    EXPECT_EQ(std::memcmp(&r.cuda[0].logprob, &all.cuda[i].logprob, sizeof(float)), 0);
    EXPECT_EQ(std::memcmp(r.cuda[0].top_logprobs, all.cuda[i].top_logprobs, 4 * sizeof(float)), 0);
  }
}

TEST(CudaSampler, NothingButNan) {
  PACELINE_NEEDS_GPU();
  std::vector<float> logits(50, std::numeric_limits<float>::quiet_NaN());
  std::vector<Draw> draws(1);
  draws[0].cpu.top_k = 3;
  draws[0].cpu.num_candidates = 2;
  draws[0].cpu.top_logprobs = 2;
  EXPECT_EQ(SampleBoth(draws, logits, 50).cuda[0].token, -1);
}

// A vocabulary of today's size, where every thread walks many elements.
TEST(CudaSampler, LargeVocabulary) {
  PACELINE_NEEDS_GPU();
  const int32_t vocab = 40000;
  RandomInputs random(17);
  const auto logits = random.Floats(int64_t{3} * vocab, 9);
  std::vector<Draw> draws(3);
  for (int32_t i = 0; i < 3; ++i) {
    draws[i].cpu.seed = random.engine()();
    draws[i].cpu.num_candidates = 8;
    draws[i].cpu.top_logprobs = 5;
  }
  draws[1].cpu.top_k = 50;
  draws[2].cpu.top_k = 1000;
  draws[2].cpu.top_p = 0.95f;
  int32_t differ = 0;
  ExpectEqual(SampleBoth(draws, logits, vocab), draws, &differ);
  EXPECT_LE(differ, 1);
}

}  // namespace
}  // namespace paceline::kernels

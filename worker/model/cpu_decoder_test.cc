// The decoder beside the naive model, and beside itself: chunked, batched, in layer ranges.
#include "worker/model/cpu_decoder.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <random>

#include "gtest/gtest.h"
#include "worker/model/naive_model.h"

namespace paceline {
namespace {

constexpr int32_t kBlock = 16;

std::vector<TokenId> RandomTokens(int32_t count, int32_t vocab, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back(static_cast<TokenId>(rng() % vocab));
  return tokens;
}

// A decoder with a pool whose blocks are handed out in a scattered order.
class Bench {
 public:
  explicit Bench(std::shared_ptr<const CpuModel> model, int threads = 2,
                 kernels::Isa isa = kernels::DetectIsa())
      : model_(std::move(model)),
        pool_(threads, isa),
        kv_(KvPoolCpu::Create({.num_blocks = 64,
                               .block_size = kBlock,
                               .kv_heads = model_->config.num_kv_heads,
                               .head_dim = model_->config.head_dim},
                              model_->config.num_layers)
                .value()),
        decoder_(*model_, kv_, pool_, 1024, 4) {}

  std::vector<int32_t> Table(int32_t first) const {
    std::vector<int32_t> table;
    for (int32_t i = 0; i < 16; ++i) table.push_back((first + i * 37) % 64);
    return table;
  }

  // Appends rows to the batch; the span's outputs are wanted for all of them.
  DecoderSpan& Add(const std::vector<int32_t>& table, std::span<const TokenId> tokens,
                   int32_t context) {
    DecoderSpan& span = batch_.spans.emplace_back();
    span.block_table = table.data();
    span.context_len = context;
    span.row_begin = static_cast<int32_t>(batch_.tokens.size());
    span.num_rows = span.tail_rows = static_cast<int32_t>(tokens.size());
    span.layer_end = model_->config.num_layers;
    for (size_t i = 0; i < tokens.size(); ++i) {
      batch_.tokens.push_back(tokens[i]);
      batch_.positions.push_back(context + static_cast<int32_t>(i));
    }
    return span;
  }

  // Runs what was added; logits of the given rows.
  std::vector<std::vector<float>> Run(const std::vector<int32_t>& rows) {
    decoder_.Run(batch_);
    batch_ = {};
    const auto vocab = static_cast<size_t>(model_->config.vocab_size);
    std::vector<float> flat(rows.size() * vocab);
    if (!rows.empty()) decoder_.Head(rows, flat.data());
    std::vector<std::vector<float>> logits;
    for (size_t i = 0; i < rows.size(); ++i) {
      logits.emplace_back(flat.begin() + i * vocab, flat.begin() + (i + 1) * vocab);
    }
    return logits;
  }

  std::vector<int32_t> AllRows() const {
    std::vector<int32_t> rows(batch_.tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  }

  CpuDecoder& decoder() { return decoder_; }

 private:
  std::shared_ptr<const CpuModel> model_;
  kernels::ThreadPool pool_;
  KvPoolCpu kv_;
  CpuDecoder decoder_;
  DecoderBatch batch_;
};

struct Shape {
  const char* name;
  ModelConfig config;
};

std::vector<Shape> Shapes() {
  std::vector<Shape> shapes;
  const auto add = [&](const char* name) -> ModelConfig& {
    shapes.push_back({name, TinyConfig()});
    return shapes.back().config;
  };
  add("llama");
  add("tied").tie_embeddings = true;
  add("mha").num_kv_heads = 4;
  add("mqa").num_kv_heads = 1;
  ModelConfig& wide = add("wide_heads");  // q width 4 * 48 apart from hidden 64
  wide.head_dim = 48;
  ModelConfig& odd = add("odd_sizes");
  odd.hidden_size = 50;
  odd.intermediate_size = 77;
  odd.head_dim = 10;
  odd.vocab_size = 97;
  ModelConfig& bias = add("attention_bias");
  bias.qkv_bias = bias.o_bias = true;
  ModelConfig& qwen2 = add("qwen2");
  qwen2.architecture = "Qwen2ForCausalLM";
  qwen2.qkv_bias = true;
  qwen2.rope.theta = 1e6;
  ModelConfig& qwen3 = add("qwen3");
  qwen3.architecture = "Qwen3ForCausalLM";
  qwen3.qk_norm = true;
  qwen3.head_dim = 32;
  ModelConfig& mistral = add("mistral_window");
  mistral.architecture = "MistralForCausalLM";
  mistral.sliding_window = 20;
  ModelConfig& llama3 = add("llama3_rope");
  llama3.rope = {.theta = 500.0,
                 .scaling = RopeScalingKind::kLlama3,
                 .factor = 8,
                 .low_freq_factor = 1,
                 .high_freq_factor = 4,
                 .original_max_position = 64};
  ModelConfig& linear = add("linear_rope");
  linear.rope.scaling = RopeScalingKind::kLinear;
  linear.rope.factor = 2.5;
  return shapes;
}

class DecoderShapes : public ::testing::TestWithParam<Shape> {};

std::shared_ptr<const CpuModel> MakeModel(const Shape& shape, std::string* dir) {
  *dir = FreshDir(shape.name);
  WriteRandomModel(*dir, shape.config, 7);
  auto model = LoadCpuModel(*dir);
  EXPECT_TRUE(model.ok()) << model.status();
  return *model;
}

std::vector<kernels::Isa> Isas() {
  std::vector<kernels::Isa> isas;
  for (kernels::Isa isa :
       {kernels::Isa::kPortable, kernels::Isa::kAvx2, kernels::Isa::kAvx512Bf16}) {
    if (kernels::IsaSupported(isa)) isas.push_back(isa);
  }
  return isas;
}

void ExpectNear(const std::shared_ptr<const CpuModel>& model, kernels::Isa isa,
                const std::vector<TokenId>& tokens,
                const std::vector<std::vector<double>>& expected) {
  Bench bench(model, 2, isa);
  const auto table = bench.Table(5);
  bench.Add(table, tokens, 0);
  const auto logits = bench.Run(bench.AllRows());
  double error = 0, square = 0, worst = 0;
  for (size_t t = 0; t < tokens.size(); ++t) {
    for (size_t v = 0; v < expected[t].size(); ++v) {
      const double e = logits[t][v] - expected[t][v];
      error += e * e;
      square += expected[t][v] * expected[t][v];
      worst = std::max(worst, std::fabs(e));
    }
  }
  const double count = static_cast<double>(tokens.size() * expected[0].size());
  const double scale = std::sqrt(square / count);
  EXPECT_LT(std::sqrt(error / square), 0.02);
  EXPECT_LT(worst, 0.12 * scale);
  EXPECT_GT(scale, 0.3);  // not all zeros on both sides
}

TEST_P(DecoderShapes, AgreesWithTheNaiveModel) {
  std::string dir;
  const auto model = MakeModel(GetParam(), &dir);
  EXPECT_EQ(CanonicalText(model->config), CanonicalText(GetParam().config));
  const NaiveModel naive(model->config, *ModelTensors::Open(dir));
  std::filesystem::remove_all(dir);
  const std::vector<TokenId> tokens = RandomTokens(75, model->config.vocab_size, 3);
  const auto expected = naive.Logits(tokens);
  for (kernels::Isa isa : Isas()) {
    SCOPED_TRACE(kernels::IsaName(isa));
    ExpectNear(model, isa, tokens, expected);
  }
}

// One request's bits: in one span, in chunks, token by token, beside others, on other threads.
TEST_P(DecoderShapes, BitsDoNotDependOnTheBatch) {
  std::string dir;
  const auto model = MakeModel(GetParam(), &dir);
  std::filesystem::remove_all(dir);
  const int32_t vocab = model->config.vocab_size;
  const std::vector<TokenId> tokens = RandomTokens(50, vocab, 4);
  for (kernels::Isa isa : Isas()) {
    SCOPED_TRACE(kernels::IsaName(isa));
    std::vector<std::vector<float>> whole;
    {
      Bench bench(model, 1, isa);
      const auto table = bench.Table(0);
      bench.Add(table, tokens, 0);
      whole = bench.Run(bench.AllRows());
    }
    Bench bench(model, 2, isa);
    const auto table = bench.Table(9);
    const auto other = bench.Table(30);
    const std::vector<TokenId> noise = RandomTokens(80, vocab, 5);
    int32_t done = 0;
    for (int32_t chunk : {1, 7, 16, 1, 1, 19, 1, 4}) {
      const std::span<const TokenId> part = std::span(tokens).subspan(done, chunk);
      bench.Add(other, std::span(noise).first(3 + done), 0);
      bench.Add(table, part, done);
      std::vector<int32_t> rows(part.size());
      std::iota(rows.begin(), rows.end(), 3 + done);
      const auto logits = bench.Run(rows);
      for (size_t i = 0; i < part.size(); ++i) {
        ASSERT_EQ(0, std::memcmp(logits[i].data(), whole[done + i].data(), vocab * sizeof(float)))
            << "position " << done + i;
      }
      done += chunk;
    }
    EXPECT_EQ(done, 50);
  }
}

INSTANTIATE_TEST_SUITE_P(All, DecoderShapes, ::testing::ValuesIn(Shapes()),
                         [](const auto& info) { return std::string(info.param.name); });

class DecoderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = RandomCpuModel(TinyConfig(), 11);
    tokens_ = RandomTokens(40, model_->config.vocab_size, 8);
  }
  void ExpectSameBits(const std::vector<float>& a, const std::vector<float>& b) {
    ASSERT_EQ(a.size(), b.size());
    EXPECT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(float)));
  }
  std::shared_ptr<const CpuModel> model_;
  std::vector<TokenId> tokens_;
};

// A row whose output nobody wants leaves the same KV.
TEST_F(DecoderTest, UnwantedRowsChangeNothing) {
  Bench all(model_), last(model_);
  const auto table = all.Table(3);
  const auto second = all.Table(40);
  for (Bench* bench : {&all, &last}) {
    const bool only_last = bench == &last;
    bench->Add(table, tokens_, 0).tail_rows = only_last ? 1 : 40;
    bench->Add(second, std::span(tokens_).first(20), 0).tail_rows = only_last ? 0 : 20;
  }
  ExpectSameBits(all.Run({39})[0], last.Run({39})[0]);
  const std::vector<TokenId> next = {5};
  for (Bench* bench : {&all, &last}) {
    bench->Add(second, next, 20);
    bench->Add(table, next, 40);
  }
  const auto a = all.Run({0, 1});
  const auto b = last.Run({0, 1});
  ExpectSameBits(a[0], b[0]);
  ExpectSameBits(a[1], b[1]);
}

// Layers [0, 2), hidden rows saved, then [2, 3) from them: as in one go.
TEST_F(DecoderTest, LayerRangesJoin) {
  Bench whole(model_), halves(model_);
  const auto table = whole.Table(0);
  whole.Add(table, tokens_, 0);
  const auto expected = whole.Run({0, 20, 39});

  const auto other = halves.Table(32);
  DecoderSpan& lower = halves.Add(table, tokens_, 0);
  lower.layer_end = 2;
  lower.hidden_out = 1;
  halves.Add(other, std::span(tokens_).first(9), 0);  // a neighbour with all layers
  halves.Run({});
  EXPECT_EQ(halves.decoder().saved_rows(1), 40);
  halves.Add(other, std::span(tokens_).subspan(9, 1), 9);
  DecoderSpan& upper = halves.Add(table, tokens_, 0);
  upper.layer_begin = 2;
  upper.hidden_in = 1;
  const auto logits = halves.Run({1, 21, 40});
  for (size_t i = 0; i < 3; ++i) ExpectSameBits(logits[i], expected[i]);
}

// The exit head is the final norm and head behind an earlier layer.
TEST_F(DecoderTest, AnExitReusesTheHead) {
  const std::string dir = FreshDir("exit");
  WriteRandomModel(dir, TinyConfig(), 5);
  const auto model = *LoadCpuModel(dir);
  const auto expected = NaiveModel(model->config, *ModelTensors::Open(dir)).Logits(tokens_, 2);
  std::filesystem::remove_all(dir);
  Bench bench(model);
  const auto table = bench.Table(0);
  bench.Add(table, tokens_, 0).layer_end = 2;
  const auto logits = bench.Run({39})[0];
  for (size_t v = 0; v < logits.size(); ++v) EXPECT_NEAR(logits[v], expected[39][v], 0.15);
}

// The path 0-2-4 of a tree sees what the same tokens in a row see.
TEST_F(DecoderTest, ATreesPathHasTheBitsOfAChain) {
  Bench chain(model_), tree(model_);
  const auto table = chain.Table(7);
  const std::span<const TokenId> prompt = std::span(tokens_).first(21);
  for (Bench* bench : {&chain, &tree}) {
    bench->Add(table, prompt, 0);
    bench->Run({});
  }
  chain.Add(table, std::vector<TokenId>{3, 4, 5}, 21);
  const auto expected = chain.Run({0, 1, 2});

  const std::vector<int32_t> parents = {-1, 0, 0, 1, 2, 4};
  DecoderBatch batch;
  batch.tokens = {3, 9, 4, 8, 5, 6};
  batch.positions = {21, 22, 22, 23, 23, 24};
  batch.spans.push_back({.block_table = table.data(),
                         .context_len = 21,
                         .num_rows = 6,
                         .parents = parents.data(),
                         .layer_end = 3,
                         .tail_rows = 6});
  tree.decoder().Run(batch);
  const std::vector<int32_t> rows = {0, 2, 4};
  std::vector<float> logits(3 * 211);
  tree.decoder().Head(rows, logits.data());
  for (size_t i = 0; i < 3; ++i) {
    ExpectSameBits({logits.begin() + i * 211, logits.begin() + (i + 1) * 211}, expected[i]);
  }
}

TEST_F(DecoderTest, RandomModelsAreReproducible) {
  Bench a(model_), b(RandomCpuModel(TinyConfig(), 11)), c(RandomCpuModel(TinyConfig(), 12));
  const auto table = a.Table(0);
  for (Bench* bench : {&a, &b, &c}) bench->Add(table, tokens_, 0);
  const auto first = a.Run({39})[0];
  ExpectSameBits(first, b.Run({39})[0]);
  EXPECT_NE(first, c.Run({39})[0]);
  EXPECT_NE(RandomCpuModel(TinyConfig(), 12)->fingerprint, model_->fingerprint);
}

}  // namespace
}  // namespace paceline

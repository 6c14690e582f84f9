// The CUDA decoder beside the CPU's and the naive model; a row's bits however its steps are cut.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <random>

#include "gtest/gtest.h"
#include "kernels/cuda/device_buffers.h"
#include "worker/model/cpu_decoder.h"
#include "worker/model/cuda_decoder_cuda.h"
#include "worker/model/naive_model.h"

namespace paceline {
namespace {

constexpr int32_t kBlock = 16;

std::vector<TokenId> RandomTokens(int32_t count, int32_t vocab, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<TokenId>(rng() % static_cast<uint64_t>(vocab)));
  }
  return tokens;
}

using Logits = std::vector<std::vector<float>>;

// A CUDA decoder with a pool whose blocks are handed out in a scattered order.
class Bench {
 public:
  explicit Bench(std::shared_ptr<const CudaModel> model, CudaDecoderOptions options = {})
      : model_(std::move(model)),
        stream_(CudaStream::Create().value()),
        kv_(KvPoolCuda::Create({.num_blocks = 64,
                                .block_size = kBlock,
                                .kv_heads = model_->config.num_kv_heads,
                                .head_dim = model_->config.head_dim},
                               model_->config.num_layers)
                .value()) {
    options.max_position = 1024;
    options.num_hidden_slots = 4;
    options.partial_bytes = int64_t{1} << 20;
    decoder_ = CudaDecoder::Create(*model_, kv_, stream_.get(), options).value();
    // NaN wherever nothing was written.
    kernels::Must(cudaMemsetAsync(kv_.k(0), 0xff, static_cast<size_t>(kv_.bytes()), stream_.get()));
  }
  ~Bench() { EXPECT_TRUE(stream_.Synchronize("test").ok()); }

  std::vector<int32_t> Table(int32_t first) const {
    std::vector<int32_t> table;
    for (int32_t i = 0; i < 32; ++i) table.push_back((first + i * 37) % 64);
    return table;
  }
  DecoderSpan& Add(const std::vector<int32_t>& table, std::span<const TokenId> tokens,
                   int32_t context) {
    DecoderSpan& span = batch.spans.emplace_back();
    span.block_table = table.data();
    span.context_len = context;
    span.row_begin = static_cast<int32_t>(batch.tokens.size());
    span.num_rows = span.tail_rows = static_cast<int32_t>(tokens.size());
    span.layer_end = model_->config.num_layers;
    for (size_t i = 0; i < tokens.size(); ++i) {
      batch.tokens.push_back(tokens[i]);
      batch.positions.push_back(context + static_cast<int32_t>(i));
    }
    return span;
  }
  // Runs what was added; logits of the given rows.
  Logits Run(const std::vector<int32_t>& rows) {
    absl::Status status = decoder_->Run(batch);
    EXPECT_TRUE(status.ok()) << status;
    batch = {};
    const auto vocab = model_->config.vocab_size;
    kernels::DeviceArray<int32_t> d_rows(rows);
    const auto n = static_cast<int32_t>(rows.size());
    kernels::DeviceArray<float> d_logits(int64_t{n} * vocab);
    if (n > 0) status = decoder_->Head(d_rows.data(), n, d_logits.data());
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(stream_.Synchronize("test").ok());
    const std::vector<float> flat = d_logits.Get();
    Logits logits;
    for (int32_t i = 0; i < n; ++i) {
      logits.emplace_back(flat.begin() + int64_t{i} * vocab, flat.begin() + int64_t{i + 1} * vocab);
    }
    return logits;
  }
  std::vector<int32_t> AllRows() const {
    std::vector<int32_t> rows(batch.tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
  }
  CudaDecoder& decoder() { return *decoder_; }

  DecoderBatch batch;

 private:
  std::shared_ptr<const CudaModel> model_;
  CudaStream stream_;
  KvPoolCuda kv_;
  std::unique_ptr<CudaDecoder> decoder_;
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
  add("mqa").num_kv_heads = 1;
  ModelConfig& wide = add("wide_heads");  // q width apart from hidden
  wide.head_dim = 72;
  wide.hidden_size = 40;
  wide.intermediate_size = 104;
  ModelConfig& large = add("head_dim_128");
  large.head_dim = 128;
  ModelConfig& largest = add("head_dim_256");
  largest.head_dim = 256;
  if (kernels::kEmulated) shapes.resize(shapes.size() - 2);
  ModelConfig& bias = add("attention_bias");
  bias.qkv_bias = bias.o_bias = true;
  ModelConfig& qwen3 = add("qwen3");
  qwen3.architecture = "Qwen3ForCausalLM";
  qwen3.qk_norm = true;
  qwen3.head_dim = 32;
  ModelConfig& mistral = add("mistral_window");
  mistral.architecture = "MistralForCausalLM";
  mistral.sliding_window = 20;
  return shapes;
}

class CudaDecoderShapes : public ::testing::TestWithParam<Shape> {};

TEST_P(CudaDecoderShapes, AgreesWithTheNaiveModel) {
  PACELINE_NEEDS_GPU();
  const std::string dir = FreshDir(std::string("cuda_") + GetParam().name);
  WriteRandomModel(dir, GetParam().config, 7);
  const auto model = LoadCudaModel(dir);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->fingerprint, LoadCpuModel(dir).value()->fingerprint);
  const NaiveModel naive((*model)->config, *ModelTensors::Open(dir));
  std::filesystem::remove_all(dir);
  const size_t prompt = kernels::kEmulated ? 20 : 70;
  const std::vector<TokenId> tokens =
      RandomTokens(static_cast<int32_t>(prompt) + 5, (*model)->config.vocab_size, 3);
  const auto expected = naive.Logits(tokens);
  CudaDecoderOptions options;
  options.max_rows = 16;  // the batch grows the workspace
  Bench bench(*model, options);
  const auto table = bench.Table(5);
  // The last rows one by one: attention over earlier steps' KV, and the path of few rows.
  bench.Add(table, std::span(tokens).first(prompt), 0);
  Logits logits = bench.Run(bench.AllRows());
  for (size_t i = prompt; i < tokens.size(); ++i) {
    bench.Add(table, std::span(tokens).subspan(i, 1), static_cast<int32_t>(i));
    logits.push_back(bench.Run({0})[0]);
  }
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
  EXPECT_LT(std::sqrt(error / square), 0.02);
  EXPECT_LT(worst, 0.12 * std::sqrt(square / count));
}

TEST_P(CudaDecoderShapes, BitsDoNotDependOnTheBatch) {
  PACELINE_NEEDS_GPU();
  const auto model = RandomCudaModel(GetParam().config, 7).value();
  const int32_t vocab = model->config.vocab_size;
  const std::vector<TokenId> tokens = RandomTokens(50, vocab, 4);
  Logits whole;
  {
    Bench bench(model);
    const auto table = bench.Table(0);
    bench.Add(table, tokens, 0);
    whole = bench.Run(bench.AllRows());
  }
  Bench bench(model);
  const auto table = bench.Table(9);
  const auto other = bench.Table(30);
  const std::vector<TokenId> noise = RandomTokens(80, vocab, 5);
  int32_t done = 0;
  for (int32_t chunk : {1, 7, 16, 1, 1, 19, 1, 4}) {
    const std::span<const TokenId> part =
        std::span(tokens).subspan(static_cast<size_t>(done), static_cast<size_t>(chunk));
    bench.Add(other, std::span(noise).first(static_cast<size_t>(3 + done)), 0);
    bench.Add(table, part, done);
    std::vector<int32_t> rows(part.size());
    std::iota(rows.begin(), rows.end(), 3 + done);
    const auto logits = bench.Run(rows);
    for (size_t i = 0; i < part.size(); ++i) {
      ASSERT_EQ(0, std::memcmp(logits[i].data(), whole[static_cast<size_t>(done) + i].data(),
                               static_cast<size_t>(vocab) * sizeof(float)))
          << "position " << done + static_cast<int32_t>(i);
    }
    done += chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaDecoderShapes, ::testing::ValuesIn(Shapes()),
                         [](const auto& info) { return std::string(info.param.name); });

class CudaDecoderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    PACELINE_NEEDS_GPU();
    model_ = RandomCudaModel(TinyConfig(), 11).value();
    tokens_ = RandomTokens(40, model_->config.vocab_size, 8);
  }
  std::shared_ptr<const CudaModel> model_;
  std::vector<TokenId> tokens_;
};

// A row whose output nobody wants leaves the same KV.
TEST_F(CudaDecoderTest, UnwantedRowsChangeNothing) {
  Bench all(model_), last(model_);
  const auto table = all.Table(3);
  const auto second = all.Table(20);
  for (Bench* bench : {&all, &last}) {
    const bool only_last = bench == &last;
    bench->Add(table, tokens_, 0).tail_rows = only_last ? 1 : 40;
    bench->Add(second, std::span(tokens_).first(20), 0).tail_rows = only_last ? 0 : 20;
  }
  EXPECT_EQ(all.Run({39}), last.Run({39}));
  const std::vector<TokenId> next = {5};
  for (Bench* bench : {&all, &last}) {
    bench->Add(second, next, 20);
    bench->Add(table, next, 40);
  }
  EXPECT_EQ(all.Run({0, 1}), last.Run({0, 1}));
  // Nothing wanted at all.
  last.Add(table, next, 41).tail_rows = 0;
  last.Run({});
}

// Layers [0, 2), hidden rows saved, then [2, 3) from them: as in one go.
TEST_F(CudaDecoderTest, LayerRangesJoin) {
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
  EXPECT_EQ(halves.Run({1, 21, 40}), expected);
}

// The path 0-2-4 of a tree sees what the same tokens in a row see: within rounding.
TEST_F(CudaDecoderTest, ATreesPathSeesWhatAChainSees) {
  Bench chain(model_), tree(model_);
  const auto table = chain.Table(7);
  for (Bench* bench : {&chain, &tree}) {
    bench->Add(table, std::span(tokens_).first(21), 0);
    bench->Run({});
  }
  chain.Add(table, std::vector<TokenId>{3, 4, 5}, 21);
  const auto expected = chain.Run({0, 1, 2});
  const std::vector<int32_t> parents = {-1, 0, 0, 1, 2, 4};
  tree.batch.tokens = {3, 9, 4, 8, 5, 6};
  tree.batch.positions = {21, 22, 22, 23, 23, 24};
  tree.batch.spans.push_back({.block_table = table.data(),
                              .context_len = 21,
                              .num_rows = 6,
                              .parents = parents.data(),
                              .layer_end = 3,
                              .tail_rows = 6});
  const auto logits = tree.Run({0, 2, 4});
  for (size_t i = 0; i < 3; ++i) {
    for (size_t v = 0; v < logits[i].size(); ++v) {
      EXPECT_NEAR(logits[i][v], expected[i][v], 0.05);
    }
  }
}

// Widths of a small real model, beside the CPU decoder.
TEST_F(CudaDecoderTest, AgreesWithTheCpuAtRealWidths) {
  if (kernels::kEmulated) GTEST_SKIP() << "skipped: takes a GPU";
  ModelConfig config = TinyConfig();
  config.hidden_size = 1024;
  config.intermediate_size = 2816;
  config.num_heads = 16;
  config.num_kv_heads = 4;
  config.head_dim = 64;
  config.num_layers = 2;
  config.vocab_size = 32000;
  const std::vector<TokenId> tokens = RandomTokens(300, config.vocab_size, 12);
  const auto cpu_model = RandomCpuModel(config, 3);
  kernels::ThreadPool pool(8);
  KvPoolCpu cpu_kv = KvPoolCpu::Create({.num_blocks = 64,
                                        .block_size = kBlock,
                                        .kv_heads = config.num_kv_heads,
                                        .head_dim = config.head_dim},
                                       config.num_layers)
                         .value();
  CpuDecoder cpu(*cpu_model, cpu_kv, pool, 1024, 0);
  CudaDecoderOptions options;
  Bench bench(RandomCudaModel(config, 3).value(), options);
  const auto table = bench.Table(0);
  bench.Add(table, tokens, 0);
  cpu.Run(bench.batch);
  const std::vector<int32_t> rows = {0, 1, 63, 64, 255, 256, 299};
  std::vector<float> expected(rows.size() * static_cast<size_t>(config.vocab_size));
  cpu.Head(rows, expected.data());
  const Logits logits = bench.Run(rows);
  double error = 0, square = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const size_t row = i / static_cast<size_t>(config.vocab_size);
    const double e = logits[row][i % static_cast<size_t>(config.vocab_size)] - expected[i];
    error += e * e;
    square += double{expected[i]} * expected[i];
  }
  EXPECT_LT(std::sqrt(error / square), 0.02);
  EXPECT_GT(square, 0);
}

TEST_F(CudaDecoderTest, RefusesSizesThatTheKernelsLack) {
  ModelConfig config = TinyConfig();
  config.head_dim = 10;
  EXPECT_EQ(RandomCudaModel(config, 1).status().code(), absl::StatusCode::kUnimplemented);
  config = TinyConfig();
  config.hidden_size = 50;
  EXPECT_EQ(RandomCudaModel(config, 1).status().code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace paceline

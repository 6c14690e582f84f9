// Logits of tiny models as torch computes them (tests/golden/make_logits.py), beside the decoder's
// and the naive model's.
#include <cmath>
#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "worker/model/cpu_decoder.h"
#include "worker/model/naive_model.h"
#include "worker/model/safetensors_writer.h"
#include "worker/model/tensor_names.h"

namespace paceline {
namespace {

using nlohmann::json;

uint64_t Fnv(const std::string& name) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (unsigned char b : name) h = (h ^ b) * 0x100000001b3ull;
  return h;
}

uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// The rule of make_logits.py.
float GoldenWeight(const std::string& name, uint64_t i, size_t dims) {
  const auto k = static_cast<int>(Mix(Fnv(name) + i) & 255);
  if (dims == 2 || name.ends_with(".bias")) return static_cast<float>(k - 128) / 256;
  return 1 + static_cast<float>(k / 4 - 32) / 128;
}

TEST(GoldenLogitsTest, AgreeWithTorch) {
  std::ifstream in("tests/golden/logits.json");
  ASSERT_TRUE(in) << "run from the repository's root";
  const json golden = json::parse(in);
  ASSERT_GE(golden["cases"].size(), 7u);
  for (const auto& [name, golden_case] : golden["cases"].items()) {
    SCOPED_TRACE(name);
    const std::string text = golden_case["config"].dump();
    const auto config = ParseModelConfig(text, "", name);
    ASSERT_TRUE(config.ok()) << config.status();
    const std::string dir = FreshDir("golden_" + name);
    std::vector<TensorToWrite> tensors;
    for (const TensorSpec& spec : RequiredTensors(*config)) {
      int64_t count = 1;
      for (int64_t d : spec.shape) count *= d;
      std::vector<float> values;
      for (int64_t i = 0; i < count; ++i) {
        values.push_back(GoldenWeight(spec.name, static_cast<uint64_t>(i), spec.shape.size()));
      }
      tensors.push_back(Bf16Tensor(spec.name, spec.shape, values));
    }
    ASSERT_TRUE(WriteTextFile(dir + "/config.json", text).ok());
    ASSERT_TRUE(WriteTextFile(dir + "/model.safetensors", SafetensorsBytes(tensors)).ok());
    const auto model = LoadCpuModel(dir);
    ASSERT_TRUE(model.ok()) << model.status();
    const NaiveModel naive(*config, *ModelTensors::Open(dir));
    std::filesystem::remove_all(dir);

    const std::vector<TokenId> tokens = golden_case["tokens"];
    const auto exact = naive.Logits(tokens);
    kernels::ThreadPool pool(2);
    KvPoolCpu kv = *KvPoolCpu::Create(
        {.num_blocks = 8, .kv_heads = config->num_kv_heads, .head_dim = config->head_dim},
        config->num_layers);
    CpuDecoder decoder(**model, kv, pool, 128, 0);
    const std::vector<int32_t> table = {5, 2, 7, 0};
    DecoderBatch batch;
    for (size_t i = 0; i < tokens.size(); ++i) {
      batch.tokens.push_back(tokens[i]);
      batch.positions.push_back(static_cast<int32_t>(i));
    }
    const auto rows = static_cast<int32_t>(tokens.size());
    batch.spans.push_back({.block_table = table.data(),
                           .num_rows = rows,
                           .layer_end = config->num_layers,
                           .tail_rows = rows});
    decoder.Run(batch);
    for (const auto& [row_text, expected] : golden_case["logits"].items()) {
      const int32_t row = std::stoi(row_text);
      std::vector<float> logits(static_cast<size_t>(config->vocab_size));
      decoder.Head(std::vector<int32_t>{row}, logits.data());
      double error = 0, square = 0;
      for (size_t v = 0; v < logits.size(); ++v) {
        const double e = expected[v].get<double>();
        EXPECT_NEAR(exact[static_cast<size_t>(row)][v], e, 2e-4 * (1 + std::fabs(e)));
        error += std::pow(logits[v] - e, 2);
        square += e * e;
      }
      EXPECT_LT(std::sqrt(error / square), 0.03) << "row " << row;
    }
  }
}

}  // namespace
}  // namespace paceline

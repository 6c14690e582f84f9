#include "worker/model/config.h"

#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "worker/model/naive_model.h"
#include "worker/model/safetensors_writer.h"

namespace paceline {
namespace {

using nlohmann::json;

json Base() {
  return json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "eos_token_id": 2, "rope_scaling": null, "model_type": "llama", "torch_dtype": "bfloat16"})");
}

absl::StatusOr<ModelConfig> Parse(const json& j, std::string_view generation = "") {
  return ParseModelConfig(j.dump(), generation, "config.json");
}

TEST(ConfigTest, Llama) {
  const auto c = Parse(Base());
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->vocab_size, 1000);
  EXPECT_EQ(c->head_dim, 16);
  EXPECT_EQ(c->q_dim(), 64);
  EXPECT_EQ(c->kv_dim(), 32);
  EXPECT_EQ(c->qkv_dim(), 128);
  EXPECT_FALSE(c->tie_embeddings);
  EXPECT_FALSE(c->qkv_bias);
  EXPECT_FALSE(c->qk_norm);
  EXPECT_EQ(c->eos_token_ids, std::vector<TokenId>{2});
  EXPECT_EQ(c->rope.theta, 10000.0);
  EXPECT_EQ(c->rope, RopeSettings{});
}

TEST(ConfigTest, DefaultsAreThoseOfTransformers) {
  json j = Base();
  for (const char* key : {"num_key_value_heads", "rms_norm_eps", "eos_token_id"}) j.erase(key);
  j["head_dim"] = nullptr;
  const auto c = Parse(j);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->num_kv_heads, 4);
  EXPECT_FLOAT_EQ(c->rms_norm_eps, 1e-6f);
  EXPECT_TRUE(c->eos_token_ids.empty());
}

TEST(ConfigTest, HeadDimApartFromHiddenSize) {
  json j = Base();
  j["head_dim"] = 48;
  j["hidden_size"] = 66;  // not a multiple of the heads
  const auto c = Parse(j);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->q_dim(), 192);
}

TEST(ConfigTest, TraitsOfArchitectures) {
  json j = Base();
  j["attention_bias"] = true;
  EXPECT_TRUE(Parse(j)->qkv_bias);
  EXPECT_TRUE(Parse(j)->o_bias);
  j["architectures"] = {"Qwen2ForCausalLM"};
  j["use_sliding_window"] = false;
  j["sliding_window"] = 100;
  EXPECT_TRUE(Parse(j)->qkv_bias);
  EXPECT_FALSE(Parse(j)->o_bias);
  EXPECT_EQ(Parse(j)->sliding_window, 0);
  j["architectures"] = {"Qwen3ForCausalLM"};
  j["attention_bias"] = false;
  j["layer_types"] = {"full_attention", "full_attention"};
  EXPECT_TRUE(Parse(j)->qk_norm);
  EXPECT_FALSE(Parse(j)->qkv_bias);
  j["architectures"] = {"MistralForCausalLM"};
  EXPECT_EQ(Parse(j)->sliding_window, 100);
  j["sliding_window"] = 4096;  // never reached
  EXPECT_EQ(Parse(j)->sliding_window, 0);
  j["sliding_window"] = nullptr;
  EXPECT_EQ(Parse(j)->sliding_window, 0);
}

TEST(ConfigTest, RopeScaling) {
  json j = Base();
  j["rope_theta"] = 500000;
  j["rope_scaling"] = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  auto c = Parse(j);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->rope.scaling, RopeScalingKind::kLlama3);
  EXPECT_EQ(c->rope.theta, 500000.0);
  EXPECT_EQ(c->rope.original_max_position, 8192);
  j["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  EXPECT_EQ(Parse(j)->rope.scaling, RopeScalingKind::kLinear);
  EXPECT_EQ(Parse(j)->rope.factor, 2.0);
  j["rope_scaling"] = {{"rope_type", "default"}};
  EXPECT_EQ(Parse(j)->rope.scaling, RopeScalingKind::kNone);
  j.erase("rope_scaling");
  j.erase("rope_theta");
  j["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  EXPECT_EQ(Parse(j)->rope.theta, 1e6);
}

TEST(ConfigTest, EosIds) {
  json j = Base();
  j["eos_token_id"] = {7, 9};
  EXPECT_EQ(Parse(j)->eos_token_ids, (std::vector<TokenId>{7, 9}));
  EXPECT_EQ(Parse(j, R"({"eos_token_id": [1, 2, 3]})")->eos_token_ids,
            (std::vector<TokenId>{1, 2, 3}));
  EXPECT_EQ(Parse(j, R"({"temperature": 0.6})")->eos_token_ids, (std::vector<TokenId>{7, 9}));
  EXPECT_FALSE(Parse(j, R"({"eos_token_id": 1000})").ok());
  EXPECT_FALSE(Parse(j, "[]").ok());
}

TEST(ConfigTest, CanonicalTextTellsConfigsApart) {
  const ModelConfig a = TinyConfig();
  ModelConfig b = a;
  EXPECT_EQ(CanonicalText(a), CanonicalText(b));
  b.rope.theta = 5e5;
  EXPECT_NE(CanonicalText(a), CanonicalText(b));
}

TEST(ConfigTest, CountsItsParameters) {
  ModelConfig c = TinyConfig();
  const int64_t layer = 64 * 128 + 64 * 64 + 3 * 64 * 96 + 2 * 64;
  EXPECT_EQ(c.num_parameters(), 3 * layer + 2 * 211 * 64 + 64);
  EXPECT_EQ(c.step_weight_bytes(), 2 * (3 * layer + 211 * 64 + 64));
  c.tie_embeddings = true;
  EXPECT_EQ(c.num_parameters(), 3 * layer + 211 * 64 + 64);
}

TEST(ConfigTest, LoadsFromADirectory) {
  const std::string dir = FreshDir("config");
  EXPECT_EQ(LoadModelConfig(dir).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteTextFile(dir + "/config.json", Base().dump()).ok());
  EXPECT_EQ(LoadModelConfig(dir)->eos_token_ids, std::vector<TokenId>{2});
  ASSERT_TRUE(WriteTextFile(dir + "/generation_config.json", R"({"eos_token_id": 5})").ok());
  EXPECT_EQ(LoadModelConfig(dir)->eos_token_ids, std::vector<TokenId>{5});
  ASSERT_TRUE(WriteTextFile(dir + "/generation_config.json", "{").ok());
  EXPECT_FALSE(LoadModelConfig(dir).ok());
  ASSERT_TRUE(WriteTextFile(dir + "/config.json", std::string(5 << 20, ' ')).ok());
  EXPECT_NE(LoadModelConfig(dir).status().message().find("limit"), std::string::npos);
  std::filesystem::remove_all(dir);
}

// --- Rejections ---

struct Rejection {
  const char* name;
  const char* pointer;  // JSON pointer of what is changed
  const char* value;    // JSON; empty = removed
  const char* message;  // must be in the message
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};

constexpr absl::StatusCode kLacking = absl::StatusCode::kUnimplemented;

class ConfigRejections : public ::testing::TestWithParam<Rejection> {};

TEST_P(ConfigRejections, SayWhatIsWrong) {
  const Rejection& r = GetParam();
  json j = Base();
  if (*r.value == '\0') {
    j.erase(std::string(r.pointer).substr(1));
  } else {
    j[json::json_pointer(r.pointer)] = json::parse(r.value);
  }
  const absl::Status status = Parse(j).status();
  EXPECT_EQ(status.code(), r.code) << status;
  EXPECT_NE(status.message().find(r.message), std::string::npos) << status;
  EXPECT_NE(status.message().find("config.json"), std::string::npos) << status;
}

INSTANTIATE_TEST_SUITE_P(
    All, ConfigRejections,
    ::testing::ValuesIn(std::vector<Rejection>{
        {"NoArchitectures", "/architectures", "", "architectures"},
        {"ArchitecturesNotAList", "/architectures", "\"LlamaForCausalLM\"", "architectures"},
        {"TwoArchitectures", "/architectures", "[\"LlamaForCausalLM\", \"X\"]", "architectures"},
        {"UnknownArchitecture", "/architectures", "[\"MambaForCausalLM\"]", "MambaForCausalLM",
         kLacking},
        {"NoVocab", "/vocab_size", "", "lacks \"vocab_size\""},
        {"VocabNull", "/vocab_size", "null", "lacks \"vocab_size\""},
        {"VocabZero", "/vocab_size", "0", "vocab_size"},
        {"VocabNegative", "/vocab_size", "-5", "vocab_size"},
        {"VocabHuge", "/vocab_size", "18446744073709551615", "vocab_size"},
        {"VocabFloat", "/vocab_size", "1000.5", "vocab_size"},
        {"VocabString", "/vocab_size", "\"1000\"", "vocab_size"},
        {"HiddenHuge", "/hidden_size", "1000000000", "hidden_size"},
        {"NoHidden", "/hidden_size", "", "hidden_size"},
        {"NoFfn", "/intermediate_size", "", "intermediate_size"},
        {"NoLayers", "/num_hidden_layers", "", "num_hidden_layers"},
        {"LayersZero", "/num_hidden_layers", "0", "num_hidden_layers"},
        {"LayersMany", "/num_hidden_layers", "100000", "num_hidden_layers"},
        {"NoHeads", "/num_attention_heads", "", "num_attention_heads"},
        {"KvHeadsDoNotDivide", "/num_key_value_heads", "3", "multiple of \"num_key_value_heads\""},
        {"HeadsDoNotDivideHidden", "/hidden_size", "66", "multiple of \"num_attention_heads\""},
        {"HeadDimOdd", "/head_dim", "15", "head_dim", kLacking},
        {"HeadDimZero", "/head_dim", "0", "head_dim"},
        {"HeadDimObject", "/head_dim", "{}", "head_dim"},
        {"NoPositions", "/max_position_embeddings", "", "max_position_embeddings"},
        {"PositionsHuge", "/max_position_embeddings", "99999999999", "max_position_embeddings"},
        {"EpsZero", "/rms_norm_eps", "0", "rms_norm_eps"},
        {"EpsString", "/rms_norm_eps", "\"1e-5\"", "rms_norm_eps"},
        {"TieNotBool", "/tie_word_embeddings", "1", "tie_word_embeddings"},
        {"Gelu", "/hidden_act", "\"gelu\"", "gelu", kLacking},
        {"ActNotAString", "/hidden_act", "3", "hidden_act"},
        {"MlpBias", "/mlp_bias", "true", "mlp_bias", kLacking},
        {"PartialRotary", "/partial_rotary_factor", "0.5", "partial_rotary_factor", kLacking},
        {"Quantized", "/quantization_config", "{\"bits\": 4}", "quantization_config", kLacking},
        {"Softcap", "/final_logit_softcapping", "30.0", "final_logit_softcapping", kLacking},
        {"Experts", "/num_local_experts", "8", "num_local_experts", kLacking},
        {"SlidingLayers", "/layer_types", "[\"full_attention\", \"sliding_attention\"]",
         "sliding_attention", kLacking},
        {"UseSlidingWindow", "/use_sliding_window", "true", "use_sliding_window", kLacking},
        {"ThetaNegative", "/rope_theta", "-1", "rope_theta"},
        {"RopeNotAnObject", "/rope_scaling", "3", "rope_scaling"},
        {"RopeYarn", "/rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4}", "yarn", kLacking},
        {"RopeDynamic", "/rope_scaling", "{\"type\": \"dynamic\", \"factor\": 4}", "dynamic",
         kLacking},
        {"LinearWithoutFactor", "/rope_scaling", "{\"type\": \"linear\"}", "factor"},
        {"Llama3WithoutFactors", "/rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 8}",
         "low_freq_factor"},
        {"Llama3FactorsEqual", "/rope_scaling",
         "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
         "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 8192}",
         "high_freq_factor"},
        {"EosBeyondVocab", "/eos_token_id", "1000", "eos_token_id"},
        {"EosNegative", "/eos_token_id", "[-1]", "eos_token_id"},
        {"EosString", "/eos_token_id", "\"</s>\"", "eos_token_id"},
    }),
    [](const auto& info) { return std::string(info.param.name); });

TEST(ConfigTest, HostileTexts) {
  const auto message = [](std::string_view text) {
    const auto c = ParseModelConfig(text, "", "config.json");
    EXPECT_EQ(c.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(c.status().message());
  };
  EXPECT_NE(message("").find("not JSON"), std::string::npos);
  EXPECT_NE(message("{\"a\": }").find("not JSON"), std::string::npos);
  EXPECT_NE(message("[]").find("not an object"), std::string::npos);
  EXPECT_NE(message("{\"a\": 1, \"a\": 2}").find("twice"), std::string::npos);
  EXPECT_NE(message(std::string(1000000, '[')).find("nested"), std::string::npos);
  EXPECT_NE(message("{\"a\": " + std::string(65, '[') + std::string(65, ']') + "}").find("nested"),
            std::string::npos);
  EXPECT_NE(message(std::string("{\"a\": \"\xff\xfe\"}")).find("not JSON"), std::string::npos);
  EXPECT_NE(message(std::string(1, '\0')).find("not JSON"), std::string::npos);
}

}  // namespace
}  // namespace paceline

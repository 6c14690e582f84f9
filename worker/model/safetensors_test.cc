#include "worker/model/safetensors.h"

#include <cmath>
#include <cstring>
#include <filesystem>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "worker/model/cpu_model.h"
#include "worker/model/naive_model.h"
#include "worker/model/safetensors_writer.h"

namespace paceline {
namespace {

// Header text with its length, then `data` bytes.
std::string File(const std::string& header, size_t data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i));
  return bytes + header + std::string(data, '\1');
}

absl::StatusOr<std::map<std::string, TensorView>> Parse(const std::string& bytes) {
  static const std::string name = "m.safetensors";
  return ParseSafetensors({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, name);
}

TEST(SafetensorsTest, RoundTrip) {
  const std::string bytes =
      SafetensorsBytes({Bf16Tensor("b", {2, 3}, {1, 2, 3, -4, 5.5f, 0}), F32Tensor("a", {1}, {7}),
                        F32Tensor("empty", {0, 4}, {}), F32Tensor("scalar", {}, {3})});
  const auto tensors = Parse(bytes);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 4u);
  const TensorView& b = tensors->at("b");
  EXPECT_EQ(b.dtype, TensorDtype::kBf16);
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  float values[6];
  ReadFloat(b, 0, 6, values);
  EXPECT_EQ(values[3], -4);
  EXPECT_EQ(values[4], 5.5f);
  ReadFloat(b, 4, 1, values);
  EXPECT_EQ(values[0], 5.5f);
  EXPECT_EQ(tensors->at("scalar").num_elements(), 1);
}

TEST(SafetensorsTest, ConvertsToBf16) {
  // 1.00390625 lies between two bf16 values and goes to the even one.
  const std::string bytes = SafetensorsBytes({F32Tensor("f", {3}, {1.00390625f, 1.01171875f, -2})});
  const auto tensors = Parse(bytes);
  uint16_t bits[3];
  ReadBf16(tensors->at("f"), 0, 3, bits);
  EXPECT_EQ(bits[0], 0x3f80);
  EXPECT_EQ(bits[1], 0x3f82);
  EXPECT_EQ(bits[2], 0xc000);
}

TEST(SafetensorsTest, ReadsHalfs) {
  TensorToWrite t{"h", "F16", {8}, {}};
  for (uint16_t h : {0x3c00, 0xc000, 0x0001, 0x8001, 0x7c00, 0x03ff, 0x0400, 0x7bff}) {
    t.bytes.push_back(static_cast<uint8_t>(h));
    t.bytes.push_back(static_cast<uint8_t>(h >> 8));
  }
  const std::string bytes = SafetensorsBytes({t});
  const auto tensors = Parse(bytes);
  float v[8];
  ReadFloat(tensors->at("h"), 0, 8, v);
  EXPECT_EQ(v[0], 1.0f);
  EXPECT_EQ(v[1], -2.0f);
  EXPECT_EQ(v[2], 0x1p-24f);
  EXPECT_EQ(v[3], -0x1p-24f);
  EXPECT_TRUE(std::isinf(v[4]));
  EXPECT_EQ(v[5], 1023 * 0x1p-24f);
  EXPECT_EQ(v[6], 0x1p-14f);
  EXPECT_EQ(v[7], 65504.0f);
}

struct Rejection {
  const char* name;
  std::string bytes;
  const char* message;
};

std::string One(const std::string& entry, size_t data) {
  return File("{\"t\":" + entry + "}", data);
}

std::string LengthOnly(uint64_t length, size_t data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i));
  return bytes + std::string(data, '{');
}

std::vector<Rejection> Rejections() {
  const std::string good = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  return {
      {"Empty", "", "too few"},
      {"SevenBytes", "1234567", "too few"},
      {"HeaderLongerThanFile", LengthOnly(100, 99), "has only"},
      {"HeaderOverLimit", LengthOnly(uint64_t{101} << 20, 10), "limit"},
      {"HeaderLengthWraps", LengthOnly(UINT64_MAX, 10), "limit"},
      {"HeaderLengthWrapsWithEight", LengthOnly(UINT64_MAX - 7, 10), "limit"},
      {"HeaderEmpty", File("", 0), "not JSON"},
      {"HeaderNotJson", File("{\"t\":", 0), "not JSON"},
      {"HeaderAList", File("[]", 0), "not an object"},
      {"HeaderNotUtf8", File("{\"\xff\":1}", 0), "not JSON"},
      {"DepthBomb", File(std::string(100000, '['), 0), "nested"},
      {"DepthBombInside", One(std::string(80, '[') + std::string(80, ']'), 0), "nested"},
      {"TensorTwice", File("{\"t\":" + good + ",\"t\":" + good + "}", 8), "twice"},
      {"EntryNotAnObject", One("3", 0), "not an object"},
      {"NoDtype", One(R"({"shape":[2],"data_offsets":[0,8]})", 8), "lacks a dtype"},
      {"DtypeNotAString", One(R"({"dtype":7,"shape":[2],"data_offsets":[0,8]})", 8), "dtype"},
      {"DtypeUnknown", One(R"({"dtype":"F31","shape":[2],"data_offsets":[0,8]})", 8), "F31"},
      {"NoShape", One(R"({"dtype":"F32","data_offsets":[0,8]})", 8), "lacks a shape"},
      {"ShapeNotAList", One(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})", 8), "shape"},
      {"DimNegative", One(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})", 8), "dimension"},
      {"DimFloat", One(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})", 8), "dimension"},
      {"DimOver63Bits",
       One(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]})", 8),
       "dimension"},
      {"SizeOverflows",
       One(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})", 0),
       "overflows"},
      {"TooManyDims",
       One(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})",
           8),
       "dimensions"},
      {"NoOffsets", One(R"({"dtype":"F32","shape":[2]})", 8), "data_offsets"},
      {"OffsetsOne", One(R"({"dtype":"F32","shape":[2],"data_offsets":[8]})", 8), "data_offsets"},
      {"OffsetsNegative", One(R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})", 8),
       "data_offsets"},
      {"OffsetsReversed", One(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})", 8), "outside"},
      {"OffsetsBeyond", One(R"({"dtype":"F32","shape":[2],"data_offsets":[4,12]})", 8), "outside"},
      {"FileCutShort", One(good, 7), "outside"},
      {"SizeDisagrees", One(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})", 8),
       "needs 12 bytes"},
      {"Overlap",
       File("{\"a\":" + good + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12),
       "overlaps tensor a"},
      {"Gap", One(R"({"dtype":"F32","shape":[2],"data_offsets":[4,12]})", 12), "gap of 4"},
      {"BytesBehind", One(good, 9), "belong to none"},
  };
}

class SafetensorsRejections : public ::testing::TestWithParam<Rejection> {};

TEST_P(SafetensorsRejections, SayWhatIsWrong) {
  const absl::Status status = Parse(GetParam().bytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_NE(status.message().find(GetParam().message), std::string::npos) << status;
  EXPECT_NE(status.message().find("m.safetensors"), std::string::npos) << status;
}

INSTANTIATE_TEST_SUITE_P(All, SafetensorsRejections, ::testing::ValuesIn(Rejections()),
                         [](const auto& info) { return std::string(info.param.name); });

// Every prefix of a good file is refused, and so is nearly every file with one byte changed in its
// header; none crashes.
TEST(SafetensorsTest, CutAndChangedFiles) {
  const std::string bytes =
      SafetensorsBytes({F32Tensor("a", {2}, {1, 2}), Bf16Tensor("b", {3}, {1, 2, 3})});
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(Parse(bytes.substr(0, n)).ok()) << n;
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
      (void)Parse(changed);
    }
  }
}

// --- A directory ---

class ModelDir : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = FreshDir("tensors");
    config_ = TinyConfig();
    config_.num_layers = 1;
    WriteRandomModel(dir_, config_, 3);
    const auto opened = ModelTensors::Open(dir_);
    for (const auto& [name, view] : opened->tensors()) {
      tensors_[name] = {name, view.dtype_name, view.shape, {view.bytes.begin(), view.bytes.end()}};
    }
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  void Write(const std::string& file, const std::string& text) {
    ASSERT_TRUE(WriteTextFile(dir_ + "/" + file, text).ok());
  }
  void WriteTensors(const std::string& file, bool (*wanted)(const std::string&)) {
    std::vector<TensorToWrite> chosen;
    for (const auto& [name, tensor] : tensors_) {
      if (wanted(name)) chosen.push_back(tensor);
    }
    Write(file, SafetensorsBytes(chosen));
  }
  static bool All(const std::string&) { return true; }
  static bool First(const std::string& name) { return name < "model.layers.0.mlp"; }
  static bool Second(const std::string& name) { return !First(name); }
  // Two shards and their index.
  nlohmann::json Shard() {
    std::filesystem::remove(dir_ + "/model.safetensors");
    WriteTensors("a.safetensors", First);
    WriteTensors("b.safetensors", Second);
    nlohmann::json index;
    for (const auto& [name, tensor] : tensors_) {
      index["weight_map"][name] = First(name) ? "a.safetensors" : "b.safetensors";
    }
    return index;
  }
  void WriteIndex(const nlohmann::json& index) {
    Write("model.safetensors.index.json", index.dump());
  }
  void ExpectRefused(const std::string& message) {
    const absl::Status status = LoadCpuModel(dir_).status();
    EXPECT_FALSE(status.ok()) << message;
    EXPECT_NE(status.message().find(message), std::string::npos) << status;
  }

  std::string dir_;
  ModelConfig config_;
  std::map<std::string, TensorToWrite> tensors_;
};

TEST_F(ModelDir, ShardsEqualOneFile) {
  const auto whole = LoadCpuModel(dir_);
  ASSERT_TRUE(whole.ok()) << whole.status();
  WriteIndex(Shard());
  const auto sharded = LoadCpuModel(dir_);
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  EXPECT_EQ((*whole)->fingerprint, (*sharded)->fingerprint);
}

TEST_F(ModelDir, TheFingerprintSeesContentAndConfig) {
  const std::string before = (*LoadCpuModel(dir_))->fingerprint;
  EXPECT_EQ((*LoadCpuModel(dir_))->fingerprint, before);
  tensors_["model.norm.weight"].bytes[5] ^= 1;
  WriteTensors("model.safetensors", All);
  const std::string changed = (*LoadCpuModel(dir_))->fingerprint;
  EXPECT_NE(changed, before);
  config_.rope.theta = 20000;
  Write("config.json", ConfigJson(config_));
  EXPECT_NE((*LoadCpuModel(dir_))->fingerprint, changed);
}

TEST_F(ModelDir, MissingFiles) {
  std::filesystem::remove(dir_ + "/model.safetensors");
  ExpectRefused("model.safetensors");
  std::filesystem::create_directory(dir_ + "/model.safetensors");
  ExpectRefused("not a regular file");
  std::filesystem::remove(dir_ + "/config.json");
  ExpectRefused("config.json");
}

TEST_F(ModelDir, EveryTensorIsNeeded) {
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
                           "model.layers.0.self_attn.k_proj.weight",
                           "model.layers.0.post_attention_layernorm.weight"}) {
    auto node = tensors_.extract(name);
    ASSERT_FALSE(node.empty()) << name;
    WriteTensors("model.safetensors", All);
    ExpectRefused(std::string(name) + " is missing");
    tensors_.insert(std::move(node));
  }
}

TEST_F(ModelDir, WrongShape) {
  tensors_["model.norm.weight"].shape = {32, 2};
  WriteTensors("model.safetensors", All);
  ExpectRefused("tensor model.norm.weight has shape [32, 2], config.json asks for [64]");
  tensors_["model.norm.weight"].shape = {64};
  tensors_["model.layers.0.self_attn.q_proj.weight"].shape = {32, 128};
  WriteTensors("model.safetensors", All);
  ExpectRefused("asks for [64, 64]");
}

TEST_F(ModelDir, WrongDtype) {
  tensors_["model.norm.weight"].dtype = "I16";
  WriteTensors("model.safetensors", All);
  ExpectRefused("dtype I16");
}

TEST_F(ModelDir, TensorsThatNothingReads) {
  tensors_["model.layers.0.self_attn.q_proj.bias"] =
      Bf16Tensor("model.layers.0.self_attn.q_proj.bias", {64}, std::vector<float>(64));
  WriteTensors("model.safetensors", All);
  ExpectRefused("q_proj.bias has no place");
  tensors_.erase("model.layers.0.self_attn.q_proj.bias");
  tensors_["model.layers.1.input_layernorm.weight"] =
      Bf16Tensor("model.layers.1.input_layernorm.weight", {64}, std::vector<float>(64));
  WriteTensors("model.safetensors", All);
  ExpectRefused("model.layers.1.input_layernorm.weight has no place");
  tensors_.erase("model.layers.1.input_layernorm.weight");
  // These do no harm.
  tensors_["model.layers.0.self_attn.rotary_emb.inv_freq"] =
      F32Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", {8}, std::vector<float>(8));
  tensors_["extra.weight"] = F32Tensor("extra.weight", {1}, {1});
  WriteTensors("model.safetensors", All);
  EXPECT_TRUE(LoadCpuModel(dir_).ok());
}

TEST_F(ModelDir, ATiedModelMayStoreEitherName) {
  config_.tie_embeddings = true;
  Write("config.json", ConfigJson(config_));
  tensors_.erase("lm_head.weight");
  WriteTensors("model.safetensors", All);
  EXPECT_TRUE(LoadCpuModel(dir_).ok());
  TensorToWrite t = tensors_["model.embed_tokens.weight"];
  tensors_.erase("model.embed_tokens.weight");
  t.name = "lm_head.weight";
  tensors_["lm_head.weight"] = t;
  WriteTensors("model.safetensors", All);
  EXPECT_TRUE(LoadCpuModel(dir_).ok());
  tensors_.erase("lm_head.weight");
  WriteTensors("model.safetensors", All);
  ExpectRefused("model.embed_tokens.weight is missing");
}

TEST_F(ModelDir, IndexesThatDisagree) {
  const nlohmann::json good = Shard();
  Write("model.safetensors.index.json", "{}");
  ExpectRefused("lacks a weight_map");
  Write("model.safetensors.index.json", "{\"weight_map\": 3}");
  ExpectRefused("lacks a weight_map");
  Write("model.safetensors.index.json", "nonsense");
  ExpectRefused("not JSON");

  nlohmann::json index = good;
  index["weight_map"]["model.norm.weight"] = "c.safetensors";
  WriteIndex(index);
  ExpectRefused("does not place it in this shard");
  index = good;
  index["weight_map"].erase("model.norm.weight");
  WriteIndex(index);
  ExpectRefused("model.norm.weight");
  index = good;
  index["weight_map"]["ghost"] = "b.safetensors";
  WriteIndex(index);
  ExpectRefused("tensor ghost: missing from its shard");
  index = good;
  index["weight_map"]["ghost"] = "c.safetensors";
  WriteIndex(index);
  ExpectRefused("c.safetensors");
  for (const char* path : {"../b.safetensors", "/etc/passwd", "", ".hidden", "x/y"}) {
    index = good;
    index["weight_map"]["model.norm.weight"] = path;
    WriteIndex(index);
    ExpectRefused("not the name of a file");
  }
  index = good;
  index["weight_map"]["model.norm.weight"] = 5;
  WriteIndex(index);
  ExpectRefused("not the name of a file");
  WriteIndex(good);
  EXPECT_TRUE(LoadCpuModel(dir_).ok());
}

}  // namespace
}  // namespace paceline

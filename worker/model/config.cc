#include "worker/model/config.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/model/json_text.h"

namespace paceline {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = size_t{4} << 20;
constexpr int64_t kMaxVocab = int64_t{1} << 22;
constexpr int64_t kMaxWidth = int64_t{1} << 18;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxPositions = int64_t{1} << 24;
constexpr size_t kMaxEosIds = 64;

// Typed reads of one JSON object; the first failure sticks.
class Reader {
 public:
  Reader(const json& object, std::string source) : object_(object), source_(std::move(source)) {}

  const absl::Status& status() const { return status_; }

  bool Has(const char* key) const {
    const auto it = object_.find(key);
    return it != object_.end() && !it->is_null();
  }

  int32_t Int(const char* key, int64_t least, int64_t most) {
    if (!Has(key)) {
      Fail(absl::StrCat("lacks \"", key, "\""));
      return static_cast<int32_t>(least);
    }
    return Int(key, least, most, 0);
  }

  int32_t Int(const char* key, int64_t least, int64_t most, int32_t missing) {
    if (!Has(key)) return missing;
    const json& value = object_[key];
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}) ||
        value.get<int64_t>() < least || value.get<int64_t>() > most) {
      Fail(absl::StrCat("\"", key, "\" is ", Shown(value), "; it must be an integer in [", least,
                        ", ", most, "]"));
      return static_cast<int32_t>(least);
    }
    return static_cast<int32_t>(value.get<int64_t>());
  }

  double Positive(const char* key, double missing) {
    if (!Has(key)) return missing;
    const json& value = object_[key];
    const double number = value.is_number() ? value.get<double>() : NAN;
    if (!std::isfinite(number) || number <= 0) {
      Fail(absl::StrCat("\"", key, "\" is ", Shown(value), "; it must be a positive number"));
      return missing;
    }
    return number;
  }

  bool Bool(const char* key, bool missing) {
    if (!Has(key)) return missing;
    const json& value = object_[key];
    if (!value.is_boolean()) {
      Fail(absl::StrCat("\"", key, "\" is ", Shown(value), "; it must be true or false"));
      return missing;
    }
    return value.get<bool>();
  }

  std::string String(const char* key, const std::string& missing) {
    if (!Has(key)) return missing;
    const json& value = object_[key];
    if (!value.is_string()) {
      Fail(absl::StrCat("\"", key, "\" is ", Shown(value), "; it must be a string"));
      return missing;
    }
    return value.get<std::string>();
  }

  void Fail(const std::string& what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(source_, ": ", what));
  }
  void Lack(const std::string& what) {
    if (status_.ok()) {
      status_ = absl::UnimplementedError(absl::StrCat(source_, ": ", what, " is not supported"));
    }
  }

  static std::string Shown(const json& value) {
    std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 60) + "...";
    return text;
  }

 private:
  const json& object_;
  std::string source_;
  absl::Status status_;
};

std::string ReadArchitecture(const json& object, Reader* in) {
  const auto it = object.find("architectures");
  if (it == object.end() || !it->is_array() || it->size() != 1 || !it->front().is_string()) {
    in->Fail("\"architectures\" must be a list of one name");
    return "";
  }
  const std::string name = it->front().get<std::string>();
  for (const char* known :
       {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    if (name == known) return name;
  }
  in->Lack(absl::StrCat("architecture ", Reader::Shown(it->front())));
  return "";
}

void RefuseWhatIsLacking(const json& object, Reader* in) {
  const std::string act = in->String("hidden_act", "silu");
  if (act != "silu") in->Lack(absl::StrCat("\"hidden_act\" \"", act, "\""));
  if (in->Bool("mlp_bias", false)) in->Lack("\"mlp_bias\"");
  if (in->Bool("use_sliding_window", false)) in->Lack("\"use_sliding_window\"");
  if (in->Positive("partial_rotary_factor", 1.0) != 1.0) in->Lack("\"partial_rotary_factor\"");
  for (const char* key : {"quantization_config", "attn_logit_softcapping",
                          "final_logit_softcapping", "num_experts", "num_local_experts"}) {
    if (in->Has(key)) in->Lack(absl::StrCat("\"", key, "\""));
  }
  if (!in->Has("layer_types")) return;
  for (const json& type : object["layer_types"]) {
    if (type != "full_attention") {
      in->Lack(absl::StrCat("\"layer_types\" ", Reader::Shown(type)));
    }
  }
}

// Old configs keep rope_theta beside rope_scaling; new ones have both in rope_parameters.
absl::Status ReadRope(const json& object, const std::string& source, Reader* in,
                      RopeSettings* rope) {
  rope->theta = in->Positive("rope_theta", 10000.0);
  const char* key = in->Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!in->Has(key)) return absl::OkStatus();
  const json& inner = object[key];
  if (!inner.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": \"", key, "\" is not an object"));
  }
  Reader scaling(inner, absl::StrCat(source, ": ", key));
  rope->theta = scaling.Positive("rope_theta", rope->theta);
  const std::string type = scaling.String("rope_type", scaling.String("type", "default"));
  if (type == "linear") {
    rope->scaling = RopeScalingKind::kLinear;
    if (!scaling.Has("factor")) scaling.Fail("lacks \"factor\"");
    rope->factor = scaling.Positive("factor", 1.0);
  } else if (type == "llama3") {
    rope->scaling = RopeScalingKind::kLlama3;
    for (const char* needed : {"factor", "low_freq_factor", "high_freq_factor"}) {
      if (!scaling.Has(needed)) scaling.Fail(absl::StrCat("lacks \"", needed, "\""));
    }
    rope->factor = scaling.Positive("factor", 1.0);
    rope->low_freq_factor = scaling.Positive("low_freq_factor", 1.0);
    rope->high_freq_factor = scaling.Positive("high_freq_factor", 4.0);
    rope->original_max_position = scaling.Int("original_max_position_embeddings", 1, kMaxPositions);
    if (rope->high_freq_factor <= rope->low_freq_factor) {
      scaling.Fail("\"high_freq_factor\" must be greater than \"low_freq_factor\"");
    }
  } else if (type != "default") {
    scaling.Lack(absl::StrCat("rope_type \"", type, "\""));
  }
  return scaling.status();
}

// An integer or a list of them.
void ReadEos(const json& object, int32_t vocab_size, Reader* in, std::vector<TokenId>* ids) {
  if (!in->Has("eos_token_id")) return;
  const json& value = object["eos_token_id"];
  const json list = value.is_array() ? value : json::array({value});
  if (list.size() > kMaxEosIds) {
    in->Fail(absl::StrCat("\"eos_token_id\" has ", list.size(), " ids, at most ", kMaxEosIds));
    return;
  }
  ids->clear();
  for (const json& id : list) {
    if (!id.is_number_integer() || id < 0 || id >= vocab_size) {
      in->Fail(absl::StrCat("\"eos_token_id\" ", Reader::Shown(id), " is not an id in [0, ",
                            vocab_size, ")"));
      return;
    }
    ids->push_back(id.get<TokenId>());
  }
}

void ReadShape(Reader* in, ModelConfig* c) {
  c->vocab_size = in->Int("vocab_size", 1, kMaxVocab);
  c->hidden_size = in->Int("hidden_size", 1, kMaxWidth);
  c->intermediate_size = in->Int("intermediate_size", 1, kMaxWidth);
  c->num_layers = in->Int("num_hidden_layers", 1, kMaxLayers);
  c->num_heads = in->Int("num_attention_heads", 1, kMaxHeads);
  c->num_kv_heads = c->architecture == "LlamaForCausalLM"
                        ? in->Int("num_key_value_heads", 1, kMaxHeads, c->num_heads)
                        : in->Int("num_key_value_heads", 1, kMaxHeads);
  if (c->num_heads % c->num_kv_heads != 0) {
    in->Fail(absl::StrCat("\"num_attention_heads\" ", c->num_heads,
                          " is not a multiple of \"num_key_value_heads\" ", c->num_kv_heads));
  }
  if (!in->Has("head_dim") && c->hidden_size % c->num_heads != 0) {
    in->Fail(absl::StrCat("\"hidden_size\" ", c->hidden_size,
                          " is not a multiple of \"num_attention_heads\" ", c->num_heads));
  }
  c->head_dim = in->Int("head_dim", 1, kMaxHeadDim, c->hidden_size / c->num_heads);
  if (in->status().ok() && (c->head_dim < 2 || c->head_dim % 2 != 0 || c->head_dim > kMaxHeadDim)) {
    in->Lack(absl::StrCat("head_dim ", c->head_dim, " (even, at most ", kMaxHeadDim, ")"));
  }
  c->max_context = in->Int("max_position_embeddings", 1, kMaxPositions);
  c->rms_norm_eps = static_cast<float>(in->Positive("rms_norm_eps", 1e-6));
  c->tie_embeddings = in->Bool("tie_word_embeddings", false);
}

void ReadArchitectureTraits(Reader* in, ModelConfig* c) {
  const bool bias = in->Bool("attention_bias", false);
  if (c->architecture == "Qwen2ForCausalLM") {
    c->qkv_bias = true;
  } else {
    c->qkv_bias = c->o_bias = bias;
  }
  c->qk_norm = c->architecture == "Qwen3ForCausalLM";
  if (c->architecture == "MistralForCausalLM") {
    c->sliding_window = in->Int("sliding_window", 1, kMaxPositions, 0);
    if (c->sliding_window >= c->max_context) c->sliding_window = 0;
  }
}

}  // namespace

int64_t ModelConfig::num_parameters() const {
  const int64_t layer =
      int64_t{hidden_size} * (qkv_dim() + q_dim() + 3 * int64_t{intermediate_size} + 2);
  return num_layers * layer + int64_t{vocab_size} * hidden_size * (tie_embeddings ? 1 : 2) +
         hidden_size;
}

int64_t ModelConfig::step_weight_bytes() const {
  const int64_t gathered = tie_embeddings ? 0 : int64_t{vocab_size} * hidden_size;
  return 2 * (num_parameters() - gathered);
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config, std::string_view generation,
                                             const std::string& source) {
  ASSIGN_OR_RETURN(const json object, ParseJsonObject(config, source));
  Reader in(object, source);
  ModelConfig c;
  c.architecture = ReadArchitecture(object, &in);
  RETURN_IF_ERROR(in.status());
  RefuseWhatIsLacking(object, &in);
  ReadShape(&in, &c);
  RETURN_IF_ERROR(in.status());
  ReadArchitectureTraits(&in, &c);
  RETURN_IF_ERROR(ReadRope(object, source, &in, &c.rope));
  ReadEos(object, c.vocab_size, &in, &c.eos_token_ids);
  RETURN_IF_ERROR(in.status());
  if (generation.empty()) return c;

  const std::string generation_source = absl::StrCat("generation_config.json beside ", source);
  ASSIGN_OR_RETURN(const json defaults, ParseJsonObject(generation, generation_source));
  Reader generation_in(defaults, generation_source);
  ReadEos(defaults, c.vocab_size, &generation_in, &c.eos_token_ids);
  RETURN_IF_ERROR(generation_in.status());
  return c;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir) {
  const std::string path = dir + "/config.json";
  ASSIGN_OR_RETURN(const std::string config, ReadTextFile(path, kMaxConfigBytes));
  auto generation = ReadTextFile(dir + "/generation_config.json", kMaxConfigBytes);
  if (!generation.ok() && !absl::IsNotFound(generation.status())) return generation.status();
  return ParseModelConfig(config, generation.ok() ? *generation : "", path);
}

std::string CanonicalText(const ModelConfig& c) {
  std::string text = absl::StrCat(
      c.architecture, " vocab ", c.vocab_size, " hidden ", c.hidden_size, " ffn ",
      c.intermediate_size, " layers ", c.num_layers, " heads ", c.num_heads, "/", c.num_kv_heads,
      "x", c.head_dim, " context ", c.max_context, " eps ", c.rms_norm_eps, " tied ",
      c.tie_embeddings, " bias ", c.qkv_bias, c.o_bias, " qknorm ", c.qk_norm);
  absl::StrAppend(&text, " window ", c.sliding_window, " rope ", c.rope.theta, " ",
                  static_cast<int>(c.rope.scaling), " ", c.rope.factor, " ", c.rope.low_freq_factor,
                  " ", c.rope.high_freq_factor, " ", c.rope.original_max_position, " eos");
  for (TokenId id : c.eos_token_ids) absl::StrAppend(&text, " ", id);
  return text;
}

}  // namespace paceline

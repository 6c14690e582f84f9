#include "common/text/token_decoder.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status_macros.h"
#include "common/text/byte_alphabet.h"
#include "common/text/utf8.h"
#include "nlohmann/json.hpp"

namespace paceline {
namespace {

constexpr size_t kMaxSteps = 32;
constexpr int64_t kMaxStrip = 1024;
constexpr size_t kMaxContent = 4096;  // bytes

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The byte of a token like <0x0A>, or -1.
int ByteOfToken(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = HexDigit(token[3]);
  const int low = HexDigit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

absl::Status ExpectCharacter(const JsonNode& node, const std::string& text) {
  if (!text.empty() && DecodeUtf8(text, 0).size == text.size()) return absl::OkStatus();
  return node.Invalid(absl::StrCat(Quoted(text), " is not one character"));
}

}  // namespace

absl::StatusOr<TokenDecoder> TokenDecoder::FromJson(const JsonNode& node) {
  TokenDecoder decoder;
  if (node.IsNull()) return node.Unsupported("no decoder");
  RETURN_IF_ERROR(decoder.Add(node));
  return decoder;
}

absl::Status TokenDecoder::Add(const JsonNode& node) {
  ASSIGN_OR_RETURN(const std::string type, node.String("type"));
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const auto children, node.Array("decoders"));
    for (const JsonNode& child : children) RETURN_IF_ERROR(Add(child));
    return absl::OkStatus();
  }
  if (steps_.size() + leading_strips_.size() == kMaxSteps) {
    return node.Invalid(absl::StrCat("more than ", kMaxSteps, " decoders"));
  }
  if (type == "Strip") return AddStrip(node);
  if (type == "Fuse") {
    fused_ = true;
    return absl::OkStatus();
  }
  if (fused_) return node.Unsupported(absl::StrCat(Quoted(type), " behind Fuse"));
  if (byte_level_) return node.Unsupported(absl::StrCat(Quoted(type), " behind ByteLevel"));
  if (type == "Metaspace") return AddMetaspace(node);
  Step step;
  if (type == "ByteLevel") {
    if (!steps_.empty()) return node.Unsupported("ByteLevel behind another decoder");
    byte_level_ = true;
    return absl::OkStatus();
  }
  if (type == "ByteFallback") {
    step.kind = Step::Kind::kByteFallback;
  } else if (type == "Replace") {
    step.kind = Step::Kind::kReplace;
    ASSIGN_OR_RETURN(const JsonNode pattern, node.Get("pattern"));
    RETURN_IF_ERROR(pattern.ExpectObject());
    if (pattern.value().contains("Regex")) return pattern.Unsupported("Replace of a Regex");
    ASSIGN_OR_RETURN(step.from, pattern.String("String"));
    if (step.from.empty()) return pattern.Invalid("empty String");
    ASSIGN_OR_RETURN(step.to, node.String("content"));
    if (step.to.size() > kMaxContent) {
      return node.Invalid(
          absl::StrCat("content of ", step.to.size(), " bytes, the limit is ", kMaxContent));
    }
  } else {
    return node.Unsupported(absl::StrCat("decoder type ", Quoted(type)));
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status TokenDecoder::AddMetaspace(const JsonNode& node) {
  Step step;
  step.kind = Step::Kind::kMetaspace;
  ASSIGN_OR_RETURN(step.from, node.String("replacement", "\xe2\x96\x81"));
  RETURN_IF_ERROR(ExpectCharacter(node, step.from));
  ASSIGN_OR_RETURN(const bool add_prefix_space, node.Bool("add_prefix_space", true));
  ASSIGN_OR_RETURN(const std::string scheme,
                   node.String("prepend_scheme", add_prefix_space ? "always" : "never"));
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    return node.Unsupported(absl::StrCat("prepend_scheme ", Quoted(scheme)));
  }
  step.to = " ";
  step.drop_first = scheme != "never";
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status TokenDecoder::AddStrip(const JsonNode& node) {
  Step step;
  step.kind = Step::Kind::kStrip;
  ASSIGN_OR_RETURN(step.from, node.String("content"));
  RETURN_IF_ERROR(ExpectCharacter(node, step.from));
  ASSIGN_OR_RETURN(const int64_t start, node.Int("start"));
  ASSIGN_OR_RETURN(const int64_t stop, node.Int("stop"));
  if (start < 0 || start > kMaxStrip || stop < 0 || stop > kMaxStrip) {
    return node.Invalid(
        absl::StrCat("start ", start, " or stop ", stop, " is outside [0, ", kMaxStrip, "]"));
  }
  step.start = static_cast<int>(start);
  step.stop = static_cast<int>(stop);
  if (byte_level_) return node.Unsupported("Strip behind ByteLevel");
  if (!fused_) {
    steps_.push_back(std::move(step));
    return absl::OkStatus();
  }
  // The end of a streamed text is not known.
  if (stop != 0) return node.Unsupported("Strip of the text's end (stop)");
  leading_strips_.push_back({step.from, step.start});
  return absl::OkStatus();
}

std::string TokenDecoder::ApplyStep(const Step& step, std::string text, bool first) {
  switch (step.kind) {
    case Step::Kind::kByteFallback:
      if (const int byte = ByteOfToken(text); byte >= 0) return {static_cast<char>(byte)};
      return text;
    case Step::Kind::kReplace:
      return absl::StrReplaceAll(text, {{step.from, step.to}});
    case Step::Kind::kMetaspace:
      return absl::StrReplaceAll(text, {{step.from, first && step.drop_first ? "" : step.to}});
    case Step::Kind::kStrip:
      for (int i = 0; i < step.start && text.starts_with(step.from); ++i) {
        text.erase(0, step.from.size());
      }
      for (int i = 0; i < step.stop && text.ends_with(step.from); ++i) {
        text.resize(text.size() - step.from.size());
      }
      return text;
  }
  return text;
}

std::string TokenDecoder::BytesOf(std::string_view token, bool first, bool added) const {
  std::string text(token);
  if (byte_level_) {
    if (added) return text;
    return FromByteAlphabet(token).value_or(text);
  }
  for (const Step& step : steps_) {
    if (text.size() > kMaxTokenBytes) break;
    text = ApplyStep(step, std::move(text), first);
  }
  return text;
}

}  // namespace paceline

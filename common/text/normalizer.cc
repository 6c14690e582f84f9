#include "common/text/normalizer.h"

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/text/character_class.h"
#include "common/text/utf8.h"
#include "nlohmann/json.hpp"
#include "utf8proc.h"

namespace paceline {
namespace {

constexpr size_t kMaxSteps = 32;
constexpr size_t kMaxContent = 4096;  // bytes that a step puts in at one place
// What steps make of a text, in bytes: this, and so many times the text.
constexpr size_t kMaxNormal = size_t{1} << 20;
constexpr size_t kMaxGrowth = 32;

// utf8proc allocates the result.
absl::StatusOr<std::string> NormalForm(const std::string& text, int options) {
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &result,
                   static_cast<utf8proc_option_t>(options | UTF8PROC_STABLE));
  if (size < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("normal form of a text of ", text.size(), " bytes: ", utf8proc_errmsg(size)));
  }
  std::string out(reinterpret_cast<const char*>(result), static_cast<size_t>(size));
  std::free(result);
  return out;
}

std::string_view StripSpace(std::string_view text, bool left, bool right) {
  size_t begin = text.size();
  size_t end = 0;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Unit unit = DecodeUtf8(text, pos);
    if (!IsWhiteSpace(unit.character)) {
      begin = std::min(begin, pos);
      end = pos + unit.size;
    }
    pos += unit.size;
  }
  if (begin == text.size()) return left || right ? std::string_view() : text;
  if (!left) begin = 0;
  if (!right) end = text.size();
  return text.substr(begin, end - begin);
}

absl::Status CheckContent(const JsonNode& node, const std::string& content) {
  if (content.size() <= kMaxContent) return absl::OkStatus();
  return node.Invalid(
      absl::StrCat("content of ", content.size(), " bytes, the limit is ", kMaxContent));
}

// Stops where the result is over `limit` bytes.
absl::StatusOr<std::string> ReplaceAll(const Pattern& pattern, const std::string& content,
                                       const std::string& text, size_t limit) {
  std::string out;
  size_t done = 0;
  RETURN_IF_ERROR(pattern.ForEachMatch(text, [&](size_t begin, size_t end) {
    if (out.size() > limit) return;
    out.append(text, done, begin - done);
    out.append(content);
    done = end;
  }));
  if (out.size() <= limit) out.append(text, done);
  return out;
}

}  // namespace

absl::StatusOr<Pattern> PatternFromJson(const JsonNode& node) {
  RETURN_IF_ERROR(node.ExpectObject());
  ASSIGN_OR_RETURN(const JsonNode literal, node.Get("String"));
  if (!literal.IsNull()) {
    ASSIGN_OR_RETURN(std::string text, literal.String());
    return Pattern::Literal(std::move(text));
  }
  ASSIGN_OR_RETURN(const JsonNode regex, node.Get("Regex"));
  if (regex.IsNull()) return node.Invalid("expected a member String or Regex");
  ASSIGN_OR_RETURN(const std::string expression, regex.String());
  auto pattern = Pattern::Regex(expression);
  if (!pattern.ok()) return regex.Invalid(std::string(pattern.status().message()));
  return pattern;
}

absl::StatusOr<Normalizer> Normalizer::FromJson(const JsonNode& node) {
  Normalizer normalizer;
  if (!node.IsNull()) RETURN_IF_ERROR(normalizer.Add(node));
  return normalizer;
}

absl::Status Normalizer::Add(const JsonNode& node) {
  ASSIGN_OR_RETURN(const std::string type, node.String("type"));
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const auto children, node.Array("normalizers"));
    for (const JsonNode& child : children) RETURN_IF_ERROR(Add(child));
    return absl::OkStatus();
  }
  if (steps_.size() == kMaxSteps) {
    return node.Invalid(absl::StrCat("more than ", kMaxSteps, " normalizers"));
  }
  Step step;
  if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    step.kind = type == "NFC"    ? Step::Kind::kNfc
                : type == "NFD"  ? Step::Kind::kNfd
                : type == "NFKC" ? Step::Kind::kNfkc
                                 : Step::Kind::kNfkd;
  } else if (type == "Prepend") {
    step.kind = Step::Kind::kPrepend;
    ASSIGN_OR_RETURN(step.content, node.String("prepend"));
    RETURN_IF_ERROR(CheckContent(node, step.content));
  } else if (type == "Replace") {
    step.kind = Step::Kind::kReplace;
    ASSIGN_OR_RETURN(step.content, node.String("content"));
    RETURN_IF_ERROR(CheckContent(node, step.content));
    ASSIGN_OR_RETURN(const JsonNode pattern, node.Get("pattern"));
    ASSIGN_OR_RETURN(Pattern compiled, PatternFromJson(pattern));
    step.pattern = std::make_shared<const Pattern>(std::move(compiled));
  } else if (type == "Strip") {
    step.kind = Step::Kind::kStrip;
    ASSIGN_OR_RETURN(step.strip_left, node.Bool("strip_left", false));
    ASSIGN_OR_RETURN(step.strip_right, node.Bool("strip_right", false));
  } else {
    return node.Unsupported(absl::StrCat("normalizer type ", Quoted(type)));
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::StatusOr<std::string> Normalizer::ApplyStep(const Step& step, const std::string& text,
                                                  size_t limit) {
  switch (step.kind) {
    case Step::Kind::kNfc:
      return NormalForm(text, UTF8PROC_COMPOSE);
    case Step::Kind::kNfd:
      return NormalForm(text, UTF8PROC_DECOMPOSE);
    case Step::Kind::kNfkc:
      return NormalForm(text, UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
    case Step::Kind::kNfkd:
      return NormalForm(text, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
    case Step::Kind::kPrepend:
      return text.empty() ? text : step.content + text;
    case Step::Kind::kReplace:
      return ReplaceAll(*step.pattern, step.content, text, limit);
    case Step::Kind::kStrip:
      return std::string(StripSpace(text, step.strip_left, step.strip_right));
  }
  return text;
}

absl::StatusOr<std::string> Normalizer::Apply(std::string_view text) const {
  const size_t limit = kMaxNormal + kMaxGrowth * text.size();
  std::string out(text);
  for (const Step& step : steps_) {
    ASSIGN_OR_RETURN(out, ApplyStep(step, out, limit));
    if (out.size() > limit) {
      return absl::ResourceExhaustedError(absl::StrCat("normal form of a text of ", text.size(),
                                                       " bytes: more than ", limit, " bytes"));
    }
  }
  return out;
}

}  // namespace paceline

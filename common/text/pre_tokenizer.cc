#include "common/text/pre_tokenizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "common/text/normalizer.h"
#include "common/text/utf8.h"
#include "nlohmann/json.hpp"

namespace paceline {
namespace {

constexpr size_t kMaxSteps = 32;

std::shared_ptr<const Pattern> OwnRegex(const char* expression) {
  auto pattern = Pattern::Regex(expression);
  CHECK(pattern.ok()) << pattern.status().ToString();
  return std::make_shared<const Pattern>(std::move(pattern).value());
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::FromJson(const JsonNode& node) {
  PreTokenizer pre_tokenizer;
  if (!node.IsNull()) RETURN_IF_ERROR(pre_tokenizer.Add(node));
  return pre_tokenizer;
}

absl::Status PreTokenizer::Add(const JsonNode& node) {
  ASSIGN_OR_RETURN(const std::string type, node.String("type"));
  if (type == "Sequence") {
    ASSIGN_OR_RETURN(const auto children, node.Array("pretokenizers"));
    for (const JsonNode& child : children) RETURN_IF_ERROR(Add(child));
    return absl::OkStatus();
  }
  // Behind ByteLevel the text would be written in GPT-2's alphabet; here it stays as it is.
  if (byte_level_) return node.Unsupported(absl::StrCat(Quoted(type), " behind ByteLevel"));
  if (steps_.size() == kMaxSteps) {
    return node.Invalid(absl::StrCat("more than ", kMaxSteps, " pre-tokenizers"));
  }
  if (type == "ByteLevel") return AddByteLevel(node);
  if (type == "Split") return AddSplit(node);
  if (type == "Metaspace") return AddMetaspace(node);
  Step step;
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool individual, node.Bool("individual_digits", false));
    step.pattern = OwnRegex(individual ? R"(\p{N})" : R"(\p{N}+)");
  } else if (type == "Punctuation") {
    ASSIGN_OR_RETURN(const JsonNode behavior, node.Get("behavior"));
    ASSIGN_OR_RETURN(step.behavior, BehaviorFromJson(behavior, "Isolated"));
    step.pattern = OwnRegex(R"([!-/:-@\[-`{-~\p{P}])");
  } else {
    return node.Unsupported(absl::StrCat("pre_tokenizer type ", Quoted(type)));
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddByteLevel(const JsonNode& node) {
  Step step;
  ASSIGN_OR_RETURN(const bool add_space, node.Bool("add_prefix_space", true));
  ASSIGN_OR_RETURN(const bool use_regex, node.Bool("use_regex", true));
  step.mark = " ";
  if (add_space) step.prepend = Prepend::kAlways;
  if (use_regex) step.pattern = OwnRegex(kGpt2Words);
  steps_.push_back(std::move(step));
  byte_level_ = true;
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddSplit(const JsonNode& node) {
  Step step;
  ASSIGN_OR_RETURN(const JsonNode pattern, node.Get("pattern"));
  ASSIGN_OR_RETURN(Pattern compiled, PatternFromJson(pattern));
  step.pattern = std::make_shared<const Pattern>(std::move(compiled));
  ASSIGN_OR_RETURN(const JsonNode behavior, node.Get("behavior"));
  ASSIGN_OR_RETURN(step.behavior, BehaviorFromJson(behavior, ""));
  ASSIGN_OR_RETURN(step.invert, node.Bool("invert", false));
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddMetaspace(const JsonNode& node) {
  Step step;
  ASSIGN_OR_RETURN(step.mark, node.String("replacement", "\xe2\x96\x81"));
  ASSIGN_OR_RETURN(const bool add_prefix_space, node.Bool("add_prefix_space", true));
  ASSIGN_OR_RETURN(const std::string scheme,
                   node.String("prepend_scheme", add_prefix_space ? "always" : "never"));
  ASSIGN_OR_RETURN(const bool split, node.Bool("split", true));
  if (step.mark.empty() || DecodeUtf8(step.mark, 0).size != step.mark.size()) {
    return node.Invalid(absl::StrCat("replacement ", Quoted(step.mark), " is not one character"));
  }
  if (scheme == "always") {
    step.prepend = Prepend::kAlways;
  } else if (scheme == "first") {
    step.prepend = Prepend::kFirst;
  } else if (scheme != "never") {
    return node.Unsupported(absl::StrCat("prepend_scheme ", Quoted(scheme)));
  }
  step.mark_spaces = true;
  if (split) {
    step.pattern = std::make_shared<const Pattern>(Pattern::Literal(step.mark));
    step.behavior = Behavior::kMergedWithNext;
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::StatusOr<PreTokenizer::Behavior> PreTokenizer::BehaviorFromJson(const JsonNode& node,
                                                                      const std::string& absent) {
  std::string name = absent;
  if (!node.IsNull() || absent.empty()) {
    ASSIGN_OR_RETURN(name, node.String());
  }
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return node.Unsupported(absl::StrCat("behavior ", Quoted(name)));
}

// The text falls into matches and what lies between them; the behavior says which of those become
// pieces of their own, and which join a neighbour.
absl::StatusOr<std::vector<PreTokenizer::Piece>> PreTokenizer::Cut(const Step& step,
                                                                   std::string_view text) {
  std::vector<Piece> pieces;
  bool last_matched = false;
  const auto add = [&](size_t begin, size_t end, bool in_match) {
    const bool matched = in_match != step.invert;
    const bool first = pieces.empty();
    const bool join =
        !first && ((step.behavior == Behavior::kMergedWithPrevious && matched && !last_matched) ||
                   (step.behavior == Behavior::kMergedWithNext && !matched && last_matched) ||
                   (step.behavior == Behavior::kContiguous && matched == last_matched));
    if (join) {
      pieces.back().end = end;
    } else if (!(step.behavior == Behavior::kRemoved && matched)) {
      pieces.push_back({begin, end});
    }
    last_matched = matched;
  };
  size_t done = 0;
  RETURN_IF_ERROR(step.pattern->ForEachMatch(text, [&](size_t begin, size_t end) {
    if (done < begin) add(done, begin, false);
    add(begin, end, true);
    done = end;
  }));
  if (done < text.size()) add(done, text.size(), false);
  return pieces;
}

absl::Status PreTokenizer::Run(size_t index, std::string_view text, bool at_start,
                               WordFunction word) const {
  if (text.empty()) return absl::OkStatus();
  if (index == steps_.size()) return word(text);
  const Step& step = steps_[index];
  std::string changed;
  if (step.mark_spaces && text.find(' ') != text.npos) {
    changed = absl::StrReplaceAll(absl::string_view(text.data(), text.size()), {{" ", step.mark}});
    text = changed;
  }
  const bool prepend =
      step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && at_start);
  if (prepend && !text.starts_with(step.mark)) {
    changed = step.mark + std::string(text);
    text = changed;
  }
  if (step.pattern == nullptr) return Run(index + 1, text, at_start, word);
  ASSIGN_OR_RETURN(const std::vector<Piece> pieces, Cut(step, text));
  for (const Piece& piece : pieces) {
    RETURN_IF_ERROR(Run(index + 1, text.substr(piece.begin, piece.end - piece.begin),
                        at_start && piece.begin == 0, word));
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::ForEachWord(std::string_view text, bool at_start,
                                       WordFunction word) const {
  return Run(0, text, at_start, word);
}

}  // namespace paceline

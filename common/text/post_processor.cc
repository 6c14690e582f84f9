#include "common/text/post_processor.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace paceline {
namespace {

constexpr size_t kMaxTokens = 1024;  // around a text

absl::Status AppendSpecial(const JsonNode& special_tokens, const JsonNode& item, int32_t vocab_size,
                           std::vector<TokenId>* tokens) {
  ASSIGN_OR_RETURN(const std::string name, item.String("id"));
  ASSIGN_OR_RETURN(const JsonNode entry, special_tokens.Get(name));
  if (entry.IsNull()) return item.Invalid(absl::StrCat(Quoted(name), " is not in special_tokens"));
  ASSIGN_OR_RETURN(const auto ids, entry.Array("ids"));
  for (const JsonNode& node : ids) {
    ASSIGN_OR_RETURN(const int64_t id, node.Int());
    if (id < 0 || id >= vocab_size) {
      return node.Invalid(absl::StrCat("id ", id, " is outside the vocabulary of ", vocab_size));
    }
    tokens->push_back(static_cast<TokenId>(id));
  }
  if (tokens->size() > kMaxTokens) {
    return entry.Invalid(absl::StrCat("more than ", kMaxTokens, " tokens around a text"));
  }
  return absl::OkStatus();
}

absl::Status AddTemplate(const JsonNode& node, int32_t vocab_size, PostProcessor* out) {
  ASSIGN_OR_RETURN(const auto items, node.Array("single"));
  ASSIGN_OR_RETURN(const JsonNode special_tokens, node.Get("special_tokens"));
  PostProcessor around;
  bool text_seen = false;
  for (const JsonNode& item : items) {
    ASSIGN_OR_RETURN(const JsonNode special, item.Get("SpecialToken"));
    if (!special.IsNull()) {
      RETURN_IF_ERROR(AppendSpecial(special_tokens, special, vocab_size,
                                    text_seen ? &around.behind : &around.before));
      continue;
    }
    ASSIGN_OR_RETURN(const JsonNode sequence, item.Get("Sequence"));
    ASSIGN_OR_RETURN(const std::string name, sequence.String("id"));
    if (name != "A" || text_seen) return sequence.Unsupported("a template but of one text A");
    text_seen = true;
  }
  if (!text_seen) return node.Invalid("single has no Sequence A");
  const size_t total =
      out->before.size() + out->behind.size() + around.before.size() + around.behind.size();
  if (total > kMaxTokens) {
    return node.Invalid(absl::StrCat("more than ", kMaxTokens, " tokens around a text"));
  }
  out->before.insert(out->before.begin(), around.before.begin(), around.before.end());
  out->behind.insert(out->behind.end(), around.behind.begin(), around.behind.end());
  return absl::OkStatus();
}

absl::Status Add(const JsonNode& node, int32_t vocab_size, PostProcessor* out) {
  ASSIGN_OR_RETURN(const std::string type, node.String("type"));
  if (type == "ByteLevel") return absl::OkStatus();
  if (type == "TemplateProcessing") return AddTemplate(node, vocab_size, out);
  if (type != "Sequence")
    return node.Unsupported(absl::StrCat("post_processor type ", Quoted(type)));
  ASSIGN_OR_RETURN(const auto children, node.Array("processors"));
  for (const JsonNode& child : children) RETURN_IF_ERROR(Add(child, vocab_size, out));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PostProcessor> PostProcessor::FromJson(const JsonNode& node, int32_t vocab_size) {
  PostProcessor processor;
  if (!node.IsNull()) RETURN_IF_ERROR(Add(node, vocab_size, &processor));
  return processor;
}

}  // namespace paceline

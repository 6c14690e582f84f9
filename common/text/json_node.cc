#include "common/text/json_node.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace paceline {
namespace {

using nlohmann::json;

const json kNull;

// Builds the document from the parser's events; stops at the first thing out of bounds.
class Builder : public nlohmann::json_sax<json> {
 public:
  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t& text) override { return Add(value); }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t& value) override { return Fail("binary value"); }
  bool start_object(size_t) override { return Open(json::object()); }
  bool end_object() override { return Close(); }
  bool start_array(size_t) override { return Open(json::array()); }
  bool end_array() override { return Close(); }

  bool key(string_t& value) override {
    auto [it, added] = stack_.back()->emplace(std::move(value), nullptr);
    if (!added) return Fail("key " + Quoted(it.key()) + " comes twice in an object");
    slot_ = &*it;
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) override {
    return Fail(error.what());
  }

  json document;
  std::string error;

 private:
  json* Place(json value) {
    if (stack_.empty()) {
      document = std::move(value);
      return &document;
    }
    if (stack_.back()->is_object()) {
      *slot_ = std::move(value);
      return slot_;
    }
    stack_.back()->push_back(std::move(value));
    return &stack_.back()->back();
  }
  bool Add(json value) {
    Place(std::move(value));
    return true;
  }
  bool Open(json value) {
    if (stack_.size() == kMaxJsonDepth) {
      return Fail(absl::StrCat("nested deeper than ", kMaxJsonDepth));
    }
    stack_.push_back(Place(std::move(value)));
    return true;
  }
  bool Close() {
    stack_.pop_back();
    return true;
  }
  bool Fail(const std::string& reason) {
    error = reason;
    return false;
  }

  std::vector<json*>
      stack_;             // the open arrays and objects; parents do not grow while a child is open
  json* slot_ = nullptr;  // where the value of the last key goes
};

}  // namespace

std::string Quoted(std::string_view text) {
  constexpr size_t kShown = 60;
  const std::string shown(text.substr(0, kShown));
  return absl::StrCat("\"", absl::Utf8SafeCEscape(shown), text.size() > kShown ? "..." : "", "\"");
}

absl::StatusOr<json> ParseJson(std::string_view text) {
  Builder builder;
  if (!json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(absl::StrCat("not a JSON document: ", builder.error));
  }
  return std::move(builder.document);
}

bool JsonNode::IsNull() const { return value_->is_null(); }

absl::Status JsonNode::Invalid(const std::string& reason) const {
  return absl::InvalidArgumentError(
      absl::StrCat(path_.empty() ? "top level" : path_, ": ", reason));
}

absl::Status JsonNode::Unsupported(const std::string& what) const {
  return absl::UnimplementedError(
      absl::StrCat(path_.empty() ? "top level" : path_, ": ", what, " is not supported"));
}

absl::Status JsonNode::WrongType(const char* expected) const {
  return Invalid(absl::StrCat("expected ", expected, ", found ", value_->type_name()));
}

absl::Status JsonNode::ExpectObject() const {
  return value_->is_object() ? absl::OkStatus() : WrongType("an object");
}

absl::StatusOr<JsonNode> JsonNode::Get(const std::string& key) const {
  RETURN_IF_ERROR(ExpectObject());
  const auto it = value_->find(key);
  return JsonNode(it == value_->end() ? &kNull : &*it,
                  path_.empty() ? key : absl::StrCat(path_, ".", key));
}

absl::StatusOr<std::string> JsonNode::String() const {
  if (!value_->is_string()) return WrongType("a string");
  return value_->get_ref<const std::string&>();
}

absl::StatusOr<bool> JsonNode::Bool() const {
  if (!value_->is_boolean()) return WrongType("true or false");
  return value_->get<bool>();
}

absl::StatusOr<int64_t> JsonNode::Int() const {
  if (!value_->is_number_integer()) return WrongType("an integer");
  if (value_->is_number_unsigned() && value_->get<uint64_t>() > INT64_MAX) {
    return Invalid(absl::StrCat(value_->get<uint64_t>(), " is too great"));
  }
  return value_->get<int64_t>();
}

absl::StatusOr<std::vector<JsonNode>> JsonNode::Array() const {
  if (!value_->is_array()) return WrongType("an array");
  std::vector<JsonNode> nodes;
  for (const json& item : *value_) {
    nodes.emplace_back(&item, absl::StrCat(path_, "[", nodes.size(), "]"));
  }
  return nodes;
}

absl::StatusOr<std::string> JsonNode::String(const std::string& key) const {
  ASSIGN_OR_RETURN(const JsonNode node, Get(key));
  return node.String();
}

absl::StatusOr<std::string> JsonNode::String(const std::string& key,
                                             const std::string& absent) const {
  ASSIGN_OR_RETURN(const JsonNode node, Get(key));
  if (node.IsNull()) return absent;
  return node.String();
}

absl::StatusOr<bool> JsonNode::Bool(const std::string& key, bool absent) const {
  ASSIGN_OR_RETURN(const JsonNode node, Get(key));
  if (node.IsNull()) return absent;
  return node.Bool();
}

absl::StatusOr<int64_t> JsonNode::Int(const std::string& key) const {
  ASSIGN_OR_RETURN(const JsonNode node, Get(key));
  return node.Int();
}

absl::StatusOr<std::vector<JsonNode>> JsonNode::Array(const std::string& key) const {
  ASSIGN_OR_RETURN(const JsonNode node, Get(key));
  return node.Array();
}

}  // namespace paceline

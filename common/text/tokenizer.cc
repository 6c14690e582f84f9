#include "common/text/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/hash.h"
#include "common/status_macros.h"
#include "common/text/added_tokens.h"
#include "common/text/bpe_model.h"
#include "common/text/json_node.h"
#include "common/text/normalizer.h"
#include "common/text/post_processor.h"
#include "common/text/pre_tokenizer.h"
#include "common/text/stream_detokenizer.h"
#include "common/text/token_decoder.h"
#include "common/text/utf8.h"
#include "nlohmann/json.hpp"

namespace paceline {
namespace {

constexpr uintmax_t kMaxFileBytes = uintmax_t{1} << 27;
constexpr size_t kMaxAddedBytes = size_t{1} << 20;  // of all added tokens together

absl::StatusOr<std::string> ReadTokenizerFile(const std::filesystem::path& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(absl::StrCat("cannot read: ", error.message()));
  if (size > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(size, " bytes, the limit is ", kMaxFileBytes));
  }
  std::string bytes(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(bytes.data(), static_cast<std::streamsize>(size))) {
    return absl::UnavailableError("cannot read");
  }
  return bytes;
}

absl::Status In(const std::string& file, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(file, ": ", status.message()));
}

}  // namespace

struct Tokenizer::Parts {
  struct Token {
    std::string name;
    std::string bytes;
    bool added = false;
    bool special = false;
  };
  explicit Parts(BpeModel bpe) : model(std::move(bpe)) {}

  absl::Status ReadAddedTokens(const JsonNode& root);
  absl::Status AddToken(const JsonNode& place, const AddedToken& token);
  absl::Status FillTable(const JsonNode& place);
  absl::Status EncodeText(std::string_view text, const EncodeOptions& options,
                          std::vector<TokenId>* tokens) const;
  absl::Status EncodePiece(std::string_view piece, bool at_start, const EncodeOptions& options,
                           std::vector<TokenId>* tokens) const;
  absl::Status EncodeWords(std::string_view text, bool at_start,
                           std::vector<TokenId>* tokens) const;

  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  BpeModel model;
  TokenDecoder decoder;
  PostProcessor post_processor;
  AddedTokenFinder in_text;        // looked for in the text as it is,
  AddedTokenFinder in_normalized;  // and in the normalized text
  std::vector<Token> tokens;
  absl::flat_hash_map<std::string, TokenId> added_ids;
  std::string fingerprint;
};

absl::Status Tokenizer::Parts::ReadAddedTokens(const JsonNode& root) {
  tokens.resize(model.vocab().size());
  for (size_t id = 0; id < tokens.size(); ++id) tokens[id].name = model.vocab()[id];
  uint64_t hash = model.hash();
  ASSIGN_OR_RETURN(const JsonNode list, root.Get("added_tokens"));
  if (!list.IsNull()) {
    ASSIGN_OR_RETURN(const auto items, list.Array());
    size_t bytes = 0;
    for (const JsonNode& item : items) {
      ASSIGN_OR_RETURN(const AddedToken token, AddedToken::FromJson(item));
      bytes += token.content.size();
      if (bytes > kMaxAddedBytes) {
        return item.Invalid(absl::StrCat("added tokens of more than ", kMaxAddedBytes, " bytes"));
      }
      RETURN_IF_ERROR(AddToken(item, token));
      const int flags = token.special | token.normalized << 1 | token.single_word << 2 |
                        token.lstrip << 3 | token.rstrip << 4;
      hash = HashCombine(hash, HashBytes(token.content, token.id));
      hash = HashCombine(hash, flags);
    }
  }
  fingerprint = absl::StrFormat("%016x", hash);
  return absl::OkStatus();
}

absl::Status Tokenizer::Parts::AddToken(const JsonNode& place, const AddedToken& token) {
  if (const TokenId id = model.IdOf(token.content); id >= 0 && id != token.id) {
    return place.Invalid(absl::StrCat("token ", Quoted(token.content), " has id ", token.id,
                                      ", in the vocabulary ", id));
  }
  if (!added_ids.emplace(token.content, token.id).second) {
    return place.Invalid(absl::StrCat("token ", Quoted(token.content), " comes twice"));
  }
  if (static_cast<size_t>(token.id) >= tokens.size()) tokens.resize(token.id + 1);
  Token& entry = tokens[token.id];
  if (!entry.name.empty() && entry.name != token.content) {
    return place.Invalid(absl::StrCat("id ", token.id, " of ", Quoted(token.content),
                                      " belongs to ", Quoted(entry.name)));
  }
  entry.name = token.content;
  entry.added = true;
  entry.special = token.special;
  if (!token.normalized || normalizer.empty()) {
    (token.normalized ? in_normalized : in_text).Add(token.content, token);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::string normal, normalizer.Apply(token.content));
  in_normalized.Add(normal, token);
  return absl::OkStatus();
}

absl::Status Tokenizer::Parts::FillTable(const JsonNode& place) {
  for (Token& token : tokens) {
    token.bytes = decoder.BytesOf(token.name, false, token.added);
    const size_t most =
        std::max(token.bytes.size(), decoder.BytesOf(token.name, true, token.added).size());
    if (most > TokenDecoder::kMaxTokenBytes) {
      return place.Invalid(absl::StrCat("token ", Quoted(token.name), " stands for more than ",
                                        TokenDecoder::kMaxTokenBytes, " bytes"));
    }
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Parts::EncodeWords(std::string_view text, bool at_start,
                                           std::vector<TokenId>* ids) const {
  return pre_tokenizer.ForEachWord(text, at_start, [&](std::string_view word) -> absl::Status {
    // Escaped bytes are joined to one word with their neighbours: both are symbols to a pattern.
    if (model.byte_level() && NeedsEscape(word)) return model.Encode(UnescapeBytes(word), ids);
    return model.Encode(word, ids);
  });
}

absl::Status Tokenizer::Parts::EncodePiece(std::string_view piece, bool at_start,
                                           const EncodeOptions& options,
                                           std::vector<TokenId>* ids) const {
  std::string normal;
  if (!normalizer.empty()) {
    ASSIGN_OR_RETURN(normal, normalizer.Apply(piece));
    piece = normal;
  }
  size_t done = 0;
  return in_normalized.Split(piece, options.parse_special,
                             [&](std::string_view part, TokenId id) -> absl::Status {
                               const bool first = at_start && done == 0;
                               done += part.size();
                               if (id < 0) return EncodeWords(part, first, ids);
                               ids->push_back(id);
                               return absl::OkStatus();
                             });
}

absl::Status Tokenizer::Parts::EncodeText(std::string_view text, const EncodeOptions& options,
                                          std::vector<TokenId>* ids) const {
  size_t done = 0;
  return in_text.Split(text, options.parse_special,
                       [&](std::string_view piece, TokenId id) -> absl::Status {
                         const bool first = done == 0;
                         done += piece.size();
                         if (id < 0) return EncodePiece(piece, first, options, ids);
                         ids->push_back(id);
                         return absl::OkStatus();
                       });
}

Tokenizer::Tokenizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  std::filesystem::path file(path);
  std::error_code error;
  if (std::filesystem::is_directory(file, error)) file /= "tokenizer.json";
  const auto bytes = ReadTokenizerFile(file);
  if (!bytes.ok()) return In(file.string(), bytes.status());
  return FromJson(*bytes, file.string());
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view json,
                                                               const std::string& name) {
  const auto load = [&]() -> absl::StatusOr<std::unique_ptr<Parts>> {
    ASSIGN_OR_RETURN(const nlohmann::json document, ParseJson(json));
    const JsonNode root(&document, "");
    RETURN_IF_ERROR(root.ExpectObject());
    ASSIGN_OR_RETURN(const JsonNode pre_tokenizer, root.Get("pre_tokenizer"));
    ASSIGN_OR_RETURN(PreTokenizer words, PreTokenizer::FromJson(pre_tokenizer));
    ASSIGN_OR_RETURN(const JsonNode model, root.Get("model"));
    ASSIGN_OR_RETURN(BpeModel bpe, BpeModel::FromJson(model, words.byte_level()));
    auto parts = std::make_unique<Parts>(std::move(bpe));
    parts->pre_tokenizer = std::move(words);
    ASSIGN_OR_RETURN(const JsonNode normalizer, root.Get("normalizer"));
    ASSIGN_OR_RETURN(parts->normalizer, Normalizer::FromJson(normalizer));
    ASSIGN_OR_RETURN(const JsonNode decoder, root.Get("decoder"));
    ASSIGN_OR_RETURN(parts->decoder, TokenDecoder::FromJson(decoder));
    if (parts->decoder.byte_level() != parts->pre_tokenizer.byte_level()) {
      return decoder.Unsupported("ByteLevel in only one of pre_tokenizer and decoder");
    }
    RETURN_IF_ERROR(parts->ReadAddedTokens(root));
    RETURN_IF_ERROR(parts->FillTable(decoder));
    ASSIGN_OR_RETURN(const JsonNode post_processor, root.Get("post_processor"));
    ASSIGN_OR_RETURN(
        parts->post_processor,
        PostProcessor::FromJson(post_processor, static_cast<int32_t>(parts->tokens.size())));
    return parts;
  };
  auto parts = load();
  if (!parts.ok()) return In(name, parts.status());
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(parts).value()));
}

absl::StatusOr<std::vector<TokenId>> Tokenizer::Encode(std::string_view text,
                                                       const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("text of ", text.size(), " bytes, the limit is ", kMaxTextBytes));
  }
  std::string escaped;
  if (NeedsEscape(text)) {
    escaped = EscapeBytes(text);
    text = escaped;
  }
  std::vector<TokenId> tokens;
  const PostProcessor& around = parts_->post_processor;
  if (options.add_special_tokens) tokens = around.before;
  RETURN_IF_ERROR(parts_->EncodeText(text, options, &tokens));
  if (options.add_special_tokens) {
    tokens.insert(tokens.end(), around.behind.begin(), around.behind.end());
  }
  return tokens;
}

std::string Tokenizer::Decode(std::span<const TokenId> tokens, bool skip_special) const {
  StreamDetokenizer stream(this, {.skip_special = skip_special});
  std::string text = stream.Push(tokens);
  return text + stream.Flush();
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(parts_->tokens.size()); }

std::string_view Tokenizer::TokenBytes(TokenId token) const {
  if (token < 0 || token >= vocab_size()) return {};
  return parts_->tokens[token].bytes;
}

std::string_view Tokenizer::TokenName(TokenId token) const {
  if (token < 0 || token >= vocab_size()) return {};
  return parts_->tokens[token].name;
}

TokenId Tokenizer::TokenOf(const std::string& name) const {
  const auto it = parts_->added_ids.find(name);
  return it != parts_->added_ids.end() ? it->second : parts_->model.IdOf(name);
}

bool Tokenizer::IsSpecial(TokenId token) const {
  return token >= 0 && token < vocab_size() && parts_->tokens[token].special;
}

bool Tokenizer::IsAdded(TokenId token) const {
  return token >= 0 && token < vocab_size() && parts_->tokens[token].added;
}

const std::string& Tokenizer::fingerprint() const { return parts_->fingerprint; }

const TokenDecoder& Tokenizer::decoder() const { return parts_->decoder; }

}  // namespace paceline

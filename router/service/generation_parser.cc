#include "router/service/generation_parser.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/types/sampling_params.h"
#include "router/service/random_id.h"

namespace paceline {
namespace {

using Refusal = std::optional<ServingError>;

constexpr char kSampling[] = "generation.sampling.";

// Keeps the first of several refusals; words are made only where one is needed.
class FieldChecker {
 public:
  template <typename T>
  void Require(bool ok, const char* prefix, const char* field, T value, const char* must_be) {
    if (ok || refusal_) return;
    refusal_ = ServingError::InvalidField(absl::StrCat(prefix, field),
                                          absl::StrCat("it is ", value, "; it must be ", must_be));
  }
  void Refuse(bool bad, const std::string& field, const char* description) {
    if (bad && !refusal_) refusal_ = ServingError::InvalidField(field, description);
  }
  void Take(Refusal refusal) {
    if (!refusal_) refusal_ = std::move(refusal);
  }
  bool ok() const { return !refusal_; }
  Refusal refusal() const { return refusal_; }

 private:
  Refusal refusal_;
};

std::span<const int32_t> IdsOf(const google::protobuf::RepeatedField<int32_t>& ids) {
  return {ids.data(), static_cast<size_t>(ids.size())};
}

size_t CountCharacters(const std::string& utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

void CheckIds(const v1::GenerationSpec& spec, FieldChecker* check) {
  constexpr char kPrefix[] = "generation.";
  check->Require(CountCharacters(spec.request_id()) <= kMaxRequestIdCharacters &&
                     spec.request_id().size() <= kMaxIdBytes,
                 kPrefix, "request_id", absl::StrCat(spec.request_id().size(), " bytes long"),
                 "at most 128 characters of at most 256 bytes");
  check->Require(spec.session_id().size() <= kMaxIdBytes, kPrefix, "session_id",
                 absl::StrCat(spec.session_id().size(), " bytes long"), "at most 256 bytes");
  check->Require(spec.cache_salt().size() <= kMaxCacheSaltBytes, kPrefix, "cache_salt",
                 absl::StrCat(spec.cache_salt().size(), " bytes long"), "at most 128 bytes");
  check->Require(std::abs(static_cast<int64_t>(spec.priority())) <= kMaxPriority, kPrefix,
                 "priority", spec.priority(), "in [-100, 100]");
}

void CheckImplemented(const v1::GenerationSpec& spec, FieldChecker* check) {
  check->Refuse(spec.prompt_case() == v1::GenerationSpec::PROMPT_NOT_SET, "generation.prompt",
                "one of text, token_ids and chat is required");
  check->Refuse(spec.has_chat(), "generation.chat",
                "chat templates are not implemented; send the prompt as text or token_ids");
  check->Refuse(spec.has_structured_output(), "generation.structured_output",
                "it is not implemented");
  check->Refuse(spec.prompt_logprobs(), "generation.prompt_logprobs", "it is not implemented");
}

Refusal ParseDraft(const v1::DraftDecoding& spec, GenerationRequest* generation) {
  const std::string field = "generation.decoding.draft.";
  switch (spec.strategy()) {
    case v1::DRAFT_STRATEGY_UNSPECIFIED:
      break;
    case v1::DRAFT_STRATEGY_CHAIN:
      generation->draft_strategy = DraftStrategy::kChain;
      break;
    case v1::DRAFT_STRATEGY_ENUMERATE:
      generation->draft_strategy = DraftStrategy::kEnumerate;
      break;
    case v1::DRAFT_STRATEGY_SYNC:
      generation->draft_strategy = DraftStrategy::kSync;
      break;
    default:
      return ServingError::InvalidField(
          field + "strategy", absl::StrCat(spec.strategy(), " is no strategy that is known"));
  }
  if (!spec.has_draft_length()) return std::nullopt;
  generation->draft_len = spec.draft_length();
  if (spec.draft_length() >= 1 && spec.draft_length() <= kMaxDraftLen) return std::nullopt;
  return ServingError::InvalidField(
      field + "draft_length",
      absl::StrCat("it is ", spec.draft_length(), "; it must be in [1, ", kMaxDraftLen, "]"));
}

Refusal ParseDecoding(const v1::DecodingSpec& spec, GenerationRequest* generation) {
  DecodingMode* mode = &generation->decoding;
  const auto refuse = [](const char* field) {
    return ServingError::InvalidField(absl::StrCat("generation.decoding.", field),
                                      "it is not implemented");
  };
  switch (spec.mode_case()) {
    case v1::DecodingSpec::MODE_NOT_SET:
    case v1::DecodingSpec::kAuto:
      *mode = DecodingMode::kAuto;
      return std::nullopt;
    case v1::DecodingSpec::kPlain:
      *mode = DecodingMode::kPlain;
      return std::nullopt;
    case v1::DecodingSpec::kDraft:
      *mode = DecodingMode::kDraft;
      return ParseDraft(spec.draft(), generation);
    case v1::DecodingSpec::kNgram:
      *mode = DecodingMode::kNgram;
      if (spec.ngram().has_max_ngram()) return refuse("ngram.max_ngram");
      return std::nullopt;
    case v1::DecodingSpec::kLookahead:
      return refuse("lookahead");
    case v1::DecodingSpec::kSelfDraft:
      return refuse("self_draft");
    case v1::DecodingSpec::kTree:
      return refuse("tree");
    case v1::DecodingSpec::kBeam:
      return refuse("beam");
    case v1::DecodingSpec::kCalm:
      return refuse("calm");
    case v1::DecodingSpec::kPatience:
      return refuse("patience");
  }
  return refuse("mode");
}

// Written so that NaN fails every one of them.
void ParseDistribution(const v1::SamplingSpec& spec, SamplingParams* p, FieldChecker* check) {
  if (spec.has_temperature()) p->temperature = spec.temperature();
  if (spec.has_top_p()) p->top_p = spec.top_p();
  if (spec.has_top_k()) p->top_k = spec.top_k();
  if (spec.has_min_p()) p->min_p = spec.min_p();
  if (spec.has_repetition_penalty()) p->repetition_penalty = spec.repetition_penalty();
  if (spec.has_presence_penalty()) p->presence_penalty = spec.presence_penalty();
  if (spec.has_frequency_penalty()) p->frequency_penalty = spec.frequency_penalty();
  check->Require(p->temperature >= 0 && p->temperature <= 100, kSampling, "temperature",
                 p->temperature, "in [0, 100]");
  check->Require(p->top_p > 0 && p->top_p <= 1, kSampling, "top_p", p->top_p, "in (0, 1]");
  check->Require(p->top_k >= 0, kSampling, "top_k", p->top_k, "0 (all) or positive");
  check->Require(p->min_p >= 0 && p->min_p < 1, kSampling, "min_p", p->min_p, "in [0, 1)");
  check->Require(p->repetition_penalty > 0 && p->repetition_penalty <= 100, kSampling,
                 "repetition_penalty", p->repetition_penalty, "in (0, 100]");
  check->Require(std::abs(p->presence_penalty) <= 2, kSampling, "presence_penalty",
                 p->presence_penalty, "in [-2, 2]");
  check->Require(std::abs(p->frequency_penalty) <= 2, kSampling, "frequency_penalty",
                 p->frequency_penalty, "in [-2, 2]");
}

void ParseLogitBias(const v1::SamplingSpec& spec, int32_t vocab_size, SamplingParams* p,
                    FieldChecker* check) {
  check->Require(spec.logit_bias_size() <= kMaxLogitBias, kSampling, "logit_bias",
                 absl::StrCat(spec.logit_bias_size(), " entries"), "at most 1,024 entries");
  if (!check->ok()) return;
  for (const auto& [id, bias] : spec.logit_bias()) {
    check->Take(CheckTokenIds(std::span(&id, 1), vocab_size, "generation.sampling.logit_bias"));
    check->Require(std::abs(bias) <= 100, kSampling, "logit_bias", bias, "in [-100, 100]");
    p->logit_bias.emplace_back(id, bias);
  }
  // A map has no order of its own; the resume token's hash needs one.
  std::sort(p->logit_bias.begin(), p->logit_bias.end());
}

void ParseLength(const v1::SamplingSpec& spec, int32_t vocab_size, SamplingParams* p,
                 FieldChecker* check) {
  if (spec.has_max_tokens()) p->max_tokens = spec.max_tokens();
  if (spec.has_min_tokens()) p->min_tokens = spec.min_tokens();
  check->Require(p->max_tokens >= 1, kSampling, "max_tokens", p->max_tokens, "at least 1");
  check->Require(p->min_tokens >= 0 && p->min_tokens <= p->max_tokens, kSampling, "min_tokens",
                 p->min_tokens, "in [0, max_tokens]");
  check->Require(spec.stop_token_ids_size() <= kMaxStopTokenIds, kSampling, "stop_token_ids",
                 absl::StrCat(spec.stop_token_ids_size(), " ids"), "at most 64 ids");
  check->Take(CheckTokenIds(IdsOf(spec.stop_token_ids()), vocab_size,
                            "generation.sampling.stop_token_ids"));
  p->stop_token_ids.assign(spec.stop_token_ids().begin(), spec.stop_token_ids().end());
  p->ignore_eos = spec.ignore_eos();
}

void ParseLogprobs(const v1::SamplingSpec& spec, SamplingParams* p, FieldChecker* check) {
  const int32_t top = spec.top_logprobs();
  check->Require(top >= 0 && top <= kMaxTopLogprobs, kSampling, "top_logprobs", top, "in [0, 20]");
  check->Refuse(top > 0 && !spec.logprobs(), "generation.sampling.top_logprobs",
                "it needs logprobs");
  p->top_logprobs = spec.logprobs() ? top : -1;
}

void ParseStopStrings(const v1::SamplingSpec& spec, ParsedGeneration* parsed, FieldChecker* check) {
  if (spec.stop_strings_size() == 0) return;
  check->Refuse(parsed->text == nullptr, "generation.sampling.stop_strings",
                "this router has no tokenizer of the model's workers");
  check->Require(spec.stop_strings_size() <= kMaxStopStrings, kSampling, "stop_strings",
                 absl::StrCat(spec.stop_strings_size(), " strings"), "at most 16 strings");
  if (!check->ok()) return;
  for (const std::string& s : spec.stop_strings()) {
    check->Require(!s.empty() && s.size() <= kMaxStopStringBytes, kSampling, "stop_strings",
                   absl::StrCat("one of ", s.size(), " bytes"), "of 1 to 256 bytes each");
  }
  if (!check->ok()) return;
  parsed->stops = std::make_shared<StopStrings>(
      std::vector<std::string>(spec.stop_strings().begin(), spec.stop_strings().end()));
}

void ParseSampling(const v1::SamplingSpec& spec, ParsedGeneration* parsed, FieldChecker* check) {
  GenerationRequest& g = parsed->request.generation;
  const int32_t vocab_size = parsed->model.vocab_size;
  ParseDistribution(spec, &g.sampling, check);
  ParseLogitBias(spec, vocab_size, &g.sampling, check);
  ParseLength(spec, vocab_size, &g.sampling, check);
  ParseLogprobs(spec, &g.sampling, check);
  ParseStopStrings(spec, parsed, check);
  g.sampling.seed = spec.has_seed() ? spec.seed() : RandomBits();
  if (spec.has_sample_count()) g.num_samples = spec.sample_count();
  check->Require(g.num_samples >= 1 && g.num_samples <= kMaxSampleCount, kSampling, "sample_count",
                 g.num_samples, "in [1, 16]");
}

Refusal CheckContext(const ParsedGeneration& parsed) {
  const GenerationRequest& g = parsed.request.generation;
  const int32_t limit = parsed.model.context_length;
  const int64_t needed = static_cast<int64_t>(g.prompt.size()) + g.sampling.max_tokens;
  if (limit == 0 || needed <= limit) return std::nullopt;
  return ServingError::ContextLengthExceeded(limit, needed);
}

}  // namespace

std::vector<std::string> ParsedGeneration::StopStringList() const {
  return stops ? stops->strings() : std::vector<std::string>();
}

Refusal ResolveModel(const std::string& wanted, const ServedModels& served,
                     const ModelCatalog& catalog, const std::string& field, ServedModel* model) {
  if (wanted.size() > kMaxIdBytes) {
    return ServingError::InvalidField(
        field, absl::StrCat("it is ", wanted.size(), " bytes long; it must be at most 256"));
  }
  const std::vector<ServedModel>& models = served.models;
  std::string name = wanted;
  if (name.empty() && models.size() == 1) name = models.front().name;
  if (name.empty() && models.empty() && catalog.Names().size() == 1) name = catalog.Names().front();
  if (name.empty() && models.empty()) return ServingError::NoWorker("");
  if (name.empty()) {
    return ServingError::InvalidField(
        field, absl::StrCat("it is required: this cluster serves ", models.size(), " models"));
  }
  model->name = name;
  const auto found = std::find_if(models.begin(), models.end(),
                                  [&](const ServedModel& m) { return m.name == name; });
  if (found != models.end()) {
    *model = *found;
  } else if (!models.empty() && served.complete && catalog.Find(name) == nullptr) {
    return ServingError::ModelNotFound(name);
  }
  return std::nullopt;
}

Refusal CheckTokenIds(std::span<const int32_t> ids, int32_t vocab_size, const std::string& field) {
  for (const int32_t id : ids) {
    if (id >= 0 && (vocab_size == 0 || id < vocab_size)) continue;
    return ServingError::InvalidField(
        field, vocab_size > 0
                   ? absl::StrCat("it holds the id ", id, "; ids must lie in [0, ", vocab_size, ")")
                   : absl::StrCat("it holds the id ", id, "; ids must not be negative"));
  }
  return std::nullopt;
}

Refusal CheckTokenizer(const ServedModel& model, const ModelText* text, const std::string& field) {
  if (text == nullptr) {
    return ServingError::InvalidField(
        field, absl::StrCat("this router has no tokenizer of the model \"", model.name,
                            "\"; send token ids"));
  }
  if (model.tokenizer_fingerprints.empty() || model.SpeaksTokenizer(text->fingerprint)) {
    return std::nullopt;
  }
  return ServingError::InvalidField(
      field, absl::StrCat("the workers of the model \"", model.name, "\" have another tokenizer (",
                          model.tokenizer_fingerprints.front(), ") than this router (",
                          text->fingerprint, "); send token ids"));
}

Refusal EncodeText(const std::string& text, const ServedModel& model, const ModelText* tokenizer,
                   bool add_special_tokens, const std::string& field,
                   std::vector<TokenId>* tokens) {
  if (auto refusal = CheckTokenizer(model, tokenizer, field)) return refusal;
  auto encoded = tokenizer->tokenizer->Encode(text, {.add_special_tokens = add_special_tokens});
  if (!encoded.ok()) {
    return ServingError::InvalidField(field, std::string(encoded.status().message()));
  }
  *tokens = *std::move(encoded);
  return std::nullopt;
}

Refusal ParseGeneration(const v1::GenerationSpec& spec, const ServedModels& served,
                        const ModelCatalog& catalog, TimePoint deadline, ParsedGeneration* parsed) {
  FieldChecker check;
  CheckIds(spec, &check);
  CheckImplemented(spec, &check);
  if (!check.ok()) return check.refusal();
  if (auto refusal =
          ResolveModel(spec.model(), served, catalog, "generation.model", &parsed->model)) {
    return refusal;
  }
  parsed->request.model = parsed->model.name;
  parsed->text = catalog.Find(parsed->model.name);
  // Ids without text, rather than the wrong text.
  if (!spec.has_text() && CheckTokenizer(parsed->model, parsed->text, "")) parsed->text = nullptr;
  if (parsed->text != nullptr) parsed->request.tokenizer = parsed->text->fingerprint;
  GenerationRequest& g = parsed->request.generation;
  g.request_id = spec.request_id().empty() ? RandomId() : spec.request_id();
  g.session_id = spec.session_id();
  g.cache_salt = spec.cache_salt();
  g.priority = spec.priority();
  g.deadline = deadline;
  ParseSampling(spec.sampling(), parsed, &check);
  check.Take(ParseDecoding(spec.decoding(), &g));
  // Before a long text is tokenized.
  if (spec.has_text()) check.Take(CheckTokenizer(parsed->model, parsed->text, "generation.text"));
  return check.refusal();
}

Refusal FillPrompt(const v1::GenerationSpec& spec, ParsedGeneration* parsed) {
  std::vector<TokenId>& prompt = parsed->request.generation.prompt;
  const bool is_text = spec.prompt_case() == v1::GenerationSpec::kText;
  const std::string field = is_text ? "generation.text" : "generation.token_ids";
  if (is_text) {
    if (auto refusal = EncodeText(spec.text(), parsed->model, parsed->text, true, field, &prompt)) {
      return refusal;
    }
  } else {
    prompt.assign(spec.token_ids().ids().begin(), spec.token_ids().ids().end());
  }
  if (prompt.empty()) return ServingError::InvalidField(field, "it has no tokens");
  if (auto refusal = CheckContext(*parsed)) return refusal;
  return CheckTokenIds(prompt, parsed->model.vocab_size, field);
}

}  // namespace paceline

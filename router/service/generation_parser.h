// A client's GenerationSpec -> a checked request: defaults filled in, ranges checked, what is not
// implemented refused by name. The spec is a stranger's.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/text/stop_matcher.h"
#include "paceline/v1/inference.pb.h"
#include "router/core/request_record.h"
#include "router/core/serving_error.h"
#include "router/service/model_catalog.h"

namespace paceline {

// Of GenerationSpec, beyond what common/types says.
inline constexpr size_t kMaxRequestIdCharacters = 128;
inline constexpr size_t kMaxIdBytes = 256;  // of any id, as it goes to workers
inline constexpr size_t kMaxCacheSaltBytes = 128;
inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 256;
inline constexpr int kMaxSampleCount = 16;
inline constexpr int kMaxPriority = 100;

// A request on its way to the router core.
struct ParsedGeneration {
  ClientRequest request;
  ServedModel model;                         // zero but for its name where no worker has told yet
  const ModelText* text = nullptr;           // null: no tokenizer that fits, no text
  std::shared_ptr<const StopStrings> stops;  // null: none
  std::vector<std::string> StopStringList() const;
};

// Which of the cluster's models a request means. Empty `wanted`: the only one. NO_WORKER while
// nothing is known, INVALID_ARGUMENT where there are several, MODEL_NOT_FOUND where every target
// has another and this router has no tokenizer of it. `field`: what a refusal names.
std::optional<ServingError> ResolveModel(const std::string& wanted, const ServedModels& served,
                                         const ModelCatalog& catalog, const std::string& field,
                                         ServedModel* model);

// All but a prompt of text, which takes time: cheap. request_id and seed are drawn where absent.
std::optional<ServingError> ParseGeneration(const v1::GenerationSpec& spec,
                                            const ServedModels& served, const ModelCatalog& catalog,
                                            TimePoint deadline, ParsedGeneration* parsed);

// The prompt's tokens, and whether they fit. Tokenizes: on a text thread where the text is long.
std::optional<ServingError> FillPrompt(const v1::GenerationSpec& spec, ParsedGeneration* parsed);

// Whether this router may turn text into ids for the model's workers, and back.
std::optional<ServingError> CheckTokenizer(const ServedModel& model, const ModelText* text,
                                           const std::string& field);

// Text to ids for field `field`; INVALID_ARGUMENT, whatever the reason that it cannot be done.
std::optional<ServingError> EncodeText(const std::string& text, const ServedModel& model,
                                       const ModelText* tokenizer, bool add_special_tokens,
                                       const std::string& field, std::vector<TokenId>* tokens);

// Ids lie in [0, vocab_size), or are at least not negative where it is unknown (0).
std::optional<ServingError> CheckTokenIds(std::span<const int32_t> ids, int32_t vocab_size,
                                          const std::string& field);

}  // namespace paceline

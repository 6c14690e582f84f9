// The tokenizers that this router has, by model, and the models that workers serve.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/tokenizer.h"
#include "router/service/cluster_directory.h"

namespace paceline {

struct ModelText {
  std::unique_ptr<const Tokenizer> tokenizer;
  std::string fingerprint;  // of its file, as workers report it
};

// Immutable after loading; may be used by many threads at once.
class ModelCatalog {
 public:
  ModelCatalog() = default;

  // `directories`: model name -> folder with a tokenizer.json. Errors name the folder.
  static absl::StatusOr<ModelCatalog> Load(const std::map<std::string, std::string>& directories);

  void Add(const std::string& model, ModelText text);

  // Null: this router knows no tokenizer of the model and serves it by token ids only.
  const ModelText* Find(const std::string& model) const;
  std::vector<std::string> Names() const;

 private:
  std::map<std::string, ModelText> models_;
};

// What the targets together say of one model. Zero where none has told yet.
struct ServedModel {
  std::string name;
  int32_t context_length = 0;  // the longest of theirs
  int32_t vocab_size = 0;
  int32_t reached_workers = 0;
  int32_t ready_workers = 0;                        // of those
  std::vector<std::string> tokenizer_fingerprints;  // each once, in order of address
  std::vector<std::string> numerics_fingerprints;   // of ready ones, each once

  // Whether `fingerprint` is that of some target, or some target does not tell its own.
  bool SpeaksTokenizer(const std::string& fingerprint) const;
};

struct ServedModels {
  std::vector<ServedModel> models;  // by name; of targets that ever told theirs
  bool complete = true;             // every target has
};
ServedModels FindServedModels(const std::vector<ClusterDirectory::Member>& members);

}  // namespace paceline

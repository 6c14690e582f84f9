#include "router/service/model_catalog.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/model_name.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

void AddOnce(const std::string& value, std::vector<std::string>* to) {
  if (std::find(to->begin(), to->end(), value) == to->end()) to->push_back(value);
}

void AddWorker(const ClusterDirectory::Member& member, ServedModel* model) {
  const worker::v1::WorkerInfo& info = member.report.info();
  model->context_length = std::max(model->context_length, info.max_context());
  model->vocab_size = std::max(model->vocab_size, info.vocab_size());
  // While it loads, a worker tells its model's name only.
  if (info.vocab_size() > 0) {
    AddOnce(info.tokenizer_fingerprint(), &model->tokenizer_fingerprints);
  }
  if (!member.reached) return;
  ++model->reached_workers;
  if (!member.report.ready() || member.report.draining()) return;
  ++model->ready_workers;
  AddOnce(info.numerics_fingerprint(), &model->numerics_fingerprints);
}

}  // namespace

absl::StatusOr<ModelCatalog> ModelCatalog::Load(
    const std::map<std::string, std::string>& directories) {
  ModelCatalog catalog;
  for (const auto& [model, directory] : directories) {
    ModelText text;
    ASSIGN_OR_RETURN(text.fingerprint, TokenizerFingerprint(directory));
    ASSIGN_OR_RETURN(text.tokenizer, Tokenizer::Load(directory));
    catalog.Add(model, std::move(text));
  }
  return catalog;
}

void ModelCatalog::Add(const std::string& model, ModelText text) {
  models_[model] = std::move(text);
}

const ModelText* ModelCatalog::Find(const std::string& model) const {
  auto it = models_.find(model);
  return it == models_.end() ? nullptr : &it->second;
}

std::vector<std::string> ModelCatalog::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, text] : models_) names.push_back(name);
  return names;
}

bool ServedModel::SpeaksTokenizer(const std::string& fingerprint) const {
  return std::any_of(tokenizer_fingerprints.begin(), tokenizer_fingerprints.end(),
                     [&](const std::string& f) { return f.empty() || f == fingerprint; });
}

ServedModels FindServedModels(const std::vector<ClusterDirectory::Member>& members) {
  ServedModels served;
  std::map<std::string, ServedModel> models;
  for (const ClusterDirectory::Member& m : members) {
    if (m.role == "draft") continue;
    const std::string& name = m.report.info().model();
    if (name.empty()) {
      served.complete = false;
      continue;
    }
    ServedModel& model = models[name];
    model.name = name;
    AddWorker(m, &model);
  }
  for (auto& [name, model] : models) served.models.push_back(std::move(model));
  return served;
}

}  // namespace paceline

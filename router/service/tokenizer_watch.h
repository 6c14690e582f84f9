// Tells the operator about workers whose tokenizer is not this router's.
#pragma once

#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "router/service/cluster_directory.h"
#include "router/service/model_catalog.h"

namespace paceline {

// Thread-safe.
class TokenizerWatch {
 public:
  // Logs each worker once for each tokenizer that differs. Returns how many it logged now.
  int Look(const ModelCatalog& catalog, const std::vector<ClusterDirectory::Member>& members);

 private:
  std::mutex mutex_;
  std::set<std::pair<std::string, std::string>> told_;  // address, fingerprint
};

}  // namespace paceline

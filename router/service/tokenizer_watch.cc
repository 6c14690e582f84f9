#include "router/service/tokenizer_watch.h"

#include "common/log.h"

namespace paceline {

int TokenizerWatch::Look(const ModelCatalog& catalog,
                         const std::vector<ClusterDirectory::Member>& members) {
  int count = 0;
  for (const ClusterDirectory::Member& m : members) {
    const worker::v1::WorkerInfo& info = m.report.info();
    if (m.role == "draft" || info.tokenizer_fingerprint().empty()) continue;
    const ModelText* text = catalog.Find(info.model());
    if (text == nullptr || text->fingerprint == info.tokenizer_fingerprint()) continue;
    std::lock_guard lock(mutex_);
    if (!told_.insert({m.address, info.tokenizer_fingerprint()}).second) continue;
    ++count;
    spdlog::warn(
        "worker has another tokenizer and gets no text worker={} model={} theirs={} ours={}",
        m.address, info.model(), info.tokenizer_fingerprint(), text->fingerprint);
  }
  return count;
}

}  // namespace paceline

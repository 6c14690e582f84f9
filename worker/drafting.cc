#include "worker/drafting.h"

#include "common/flags.h"
#include "worker/service/draft_links.h"
#include "worker/spec/draft_speculator.h"

namespace paceline {

Drafting MakeDrafting(const WorkerFlags& flags, const RunnerInfo& info) {
  if (flags.speculation == "off") return {};
  DraftSpeculatorOptions options;
  options.vocab_size = info.vocab_size;
  options.strategy = flags.draft_strategy == "chain"  ? DraftStrategy::kChain
                     : flags.draft_strategy == "sync" ? DraftStrategy::kSync
                                                      : DraftStrategy::kEnumerate;
  auto owned = std::make_unique<DraftSpeculator>(options);
  DraftSpeculator* speculator = owned.get();
  Drafting drafting;
  drafting.speculator = std::move(owned);
  drafting.counters = [speculator]() -> const SpecCounters& { return speculator->counters(); };
  drafting.connect = [speculator, addresses = SplitList(flags.draft)](
                         const draft::v1::Hello& hello,
                         std::function<void(Duration)> round_trip) -> std::shared_ptr<void> {
    return std::make_shared<DraftLinks>(addresses, hello, speculator, std::move(round_trip));
  };
  return drafting;
}

}  // namespace paceline

#include "router/service/worker_report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace paceline {
namespace {

constexpr size_t kMaxNameBytes = 256;
constexpr int64_t kMaxCount = int64_t{1} << 30;  // of anything, so that sums do not overflow

}  // namespace

std::string CheckReport(const worker::v1::WatchStatusResponse& r, const std::string& role) {
  const worker::v1::WorkerInfo& info = r.info();
  if (info.role() != role) {
    return absl::StrCat("the worker calls itself \"",
                        absl::CHexEscape(info.role().substr(0, kMaxNameBytes)), "\", not ", role);
  }
  for (const std::string* name : {&info.model(), &info.model_fingerprint(),
                                  &info.numerics_fingerprint(), &info.tokenizer_fingerprint()}) {
    if (name->size() > kMaxNameBytes) {
      return absl::StrCat("a report with a name of ", name->size(), " bytes");
    }
  }
  for (const int64_t count :
       {int64_t{info.vocab_size()}, int64_t{info.max_context()}, int64_t{info.block_size()},
        int64_t{info.num_blocks()}, int64_t{r.running()}, int64_t{r.waiting()},
        r.queued_prompt_tokens(), int64_t{r.active_blocks()}, int64_t{r.cached_blocks()},
        int64_t{r.free_blocks()}}) {
    if (count < 0 || count > kMaxCount) return absl::StrCat("a report that counts ", count);
  }
  for (const double value : {r.fragmentation(), r.step_seconds(), r.tokens_per_second()}) {
    if (!std::isfinite(value) || value < 0) return absl::StrCat("a report that measures ", value);
  }
  return "";
}

WorkerSnapshot ToSnapshot(const worker::v1::WatchStatusResponse& r) {
  const worker::v1::WorkerInfo& info = r.info();
  WorkerSnapshot s;
  s.model = info.model();
  s.fingerprint = info.numerics_fingerprint();
  s.tokenizer_fingerprint = info.tokenizer_fingerprint();
  s.max_context = info.max_context();
  s.vocab_size = info.vocab_size();
  s.ready = r.ready();
  s.draining = r.draining();
  s.running = r.running();
  s.waiting = r.waiting();
  s.queued_prompt_tokens = r.queued_prompt_tokens();
  s.num_blocks = info.num_blocks();
  s.block_size = info.block_size();
  s.active_blocks = r.active_blocks();
  s.cached_blocks = r.cached_blocks();
  s.free_blocks = r.free_blocks();
  s.tokens_per_second = r.tokens_per_second();
  s.prefix_epoch = r.prefix_epoch();
  if (r.has_prefixes()) {
    s.prefixes =
        std::make_shared<PrefixSummary>(r.prefix_chunks().begin(), r.prefix_chunks().end());
  }
  return s;
}

}  // namespace paceline

#include "router/core/placement.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "common/hash.h"

namespace paceline {
namespace {

int64_t MatchedTokens(const std::vector<uint64_t>& hashes, const PrefixSummary* summary) {
  if (summary == nullptr) return 0;
  int64_t chunks = 0;
  while (chunks < static_cast<int64_t>(hashes.size()) && summary->count(hashes[chunks])) ++chunks;
  return chunks * kPrefixChunk;
}

// Blocks that the request needs beyond its prefix hit, against those that can be had.
bool HasRoom(const PlacementRequest& request, const WorkerSnapshot& s, int64_t matched) {
  if (s.block_size <= 0) return true;
  const int64_t needed = (request.prompt_tokens - matched) / s.block_size + 1;
  return needed <= int64_t{s.free_blocks} + s.cached_blocks;
}

bool SpeaksTokenizer(const WorkerSnapshot& s, const std::string& tokenizer) {
  return tokenizer.empty() || s.tokenizer_fingerprint.empty() ||
         s.tokenizer_fingerprint == tokenizer;
}

bool Eligible(const PlacementRequest& request, const Worker& w, TimePoint now) {
  const WorkerSnapshot& s = w.snapshot;
  return w.Usable() && s.model == request.model && now >= w.not_before &&
         SpeaksTokenizer(s, request.tokenizer) &&
         (s.max_context == 0 || request.total_tokens <= s.max_context);
}

PlacementScore Score(const PlacementRequest& request, const Worker& w,
                     const PlacementOptions& options) {
  const WorkerSnapshot& s = w.snapshot;
  PlacementScore score;
  score.worker = w.id;
  score.matched_tokens =
      std::min(MatchedTokens(request.prefix_hashes, s.prefixes.get()), request.prompt_tokens);
  score.prefill = static_cast<double>(request.prompt_tokens - score.matched_tokens);
  const int32_t sequences = std::max(w.in_flight, s.running + s.waiting + w.sent_since_snapshot);
  score.load = options.tokens_per_sequence * sequences +
               static_cast<double>(s.queued_prompt_tokens + w.sent_prompt_tokens);
  score.other_numerics = !request.fingerprint.empty() && request.fingerprint != s.fingerprint;
  score.avoided =
      std::find(request.avoid.begin(), request.avoid.end(), w.id) != request.avoid.end();
  score.rendezvous = RendezvousWeight(request.tie_break, w.address);
  score.total = score.prefill + score.load;
  if (score.other_numerics) score.total += options.fingerprint_penalty;
  if (!HasRoom(request, s, score.matched_tokens)) score.total += options.kv_penalty;
  return score;
}

// Only eligible workers compete for a session: while its home is away, the next one stands in.
void MarkSessionHome(const PlacementRequest& request, std::span<const Worker> workers,
                     const PlacementOptions& options, std::vector<PlacementScore>* scores) {
  if (request.session_id.empty() || scores->empty()) return;
  const uint64_t key = HashBytes(request.session_id);
  auto weight = [&](const PlacementScore& s) {
    return RendezvousWeight(key, workers[s.worker].address);
  };
  auto home = std::max_element(
      scores->begin(), scores->end(),
      [&](const PlacementScore& a, const PlacementScore& b) { return weight(a) < weight(b); });
  home->session_home = true;
  home->total -= options.session_bonus;
}

}  // namespace

std::string PlacementScore::ToString() const {
  return absl::StrCat("worker=", worker, " total=", total, " prefill=", prefill,
                      " matched=", matched_tokens, " load=", load, session_home ? " home" : "",
                      other_numerics ? " other_numerics" : "", avoided ? " avoided" : "");
}

std::vector<uint64_t> PrefixChunkHashes(std::span<const int32_t> prompt,
                                        const std::string& cache_salt) {
  std::vector<uint64_t> hashes;
  hashes.reserve(prompt.size() / kPrefixChunk);
  uint64_t h = PrefixSeed(cache_salt);
  for (size_t i = 0; i + kPrefixChunk <= prompt.size(); i += kPrefixChunk) {
    h = HashTokens(prompt.subspan(i, kPrefixChunk), h);
    hashes.push_back(h);
  }
  return hashes;
}

uint64_t RendezvousWeight(uint64_t key, const std::string& worker_address) {
  return HashCombine(key, HashBytes(worker_address));
}

std::vector<PlacementScore> RankWorkers(const PlacementRequest& request,
                                        std::span<const Worker> workers, TimePoint now,
                                        const PlacementOptions& options) {
  std::vector<PlacementScore> scores;
  for (const Worker& w : workers) {
    if (Eligible(request, w, now)) scores.push_back(Score(request, w, options));
  }
  MarkSessionHome(request, workers, options, &scores);
  std::sort(scores.begin(), scores.end(), [](const PlacementScore& a, const PlacementScore& b) {
    return std::make_tuple(a.avoided, a.total, ~a.rendezvous, a.worker) <
           std::make_tuple(b.avoided, b.total, ~b.rendezvous, b.worker);
  });
  return scores;
}

}  // namespace paceline

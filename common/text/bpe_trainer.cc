#include "common/text/bpe_trainer.h"

#include <algorithm>
#include <queue>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/text/bpe_model.h"
#include "common/text/byte_alphabet.h"
#include "common/text/pattern.h"
#include "common/text/pre_tokenizer.h"
#include "common/text/utf8.h"
#include "nlohmann/json.hpp"

namespace paceline {
namespace {

using Pair = std::pair<TokenId, TokenId>;

struct Word {
  std::vector<TokenId> tokens;
  int64_t count = 0;
};

// The distinct words of a text in the order of their first places.
absl::StatusOr<std::vector<Word>> CountWords(std::string_view text) {
  const std::string escaped = NeedsEscape(text) ? EscapeBytes(text) : std::string();
  if (!escaped.empty()) text = escaped;
  ASSIGN_OR_RETURN(const Pattern pattern, Pattern::Regex(kGpt2Words));
  std::vector<Word> words;
  absl::flat_hash_map<std::string_view, size_t> index;
  RETURN_IF_ERROR(pattern.ForEachMatch(text, [&](size_t begin, size_t end) {
    const std::string_view word = text.substr(begin, end - begin);
    const auto [it, added] = index.emplace(word, words.size());
    if (added) {
      words.emplace_back();
      for (const char c : UnescapeBytes(word)) {
        words.back().tokens.push_back(1 + static_cast<uint8_t>(c));
      }
    }
    ++words[it->second].count;
  }));
  return words;
}

// Counts of neighbours, kept up to date merge by merge.
class PairCounts {
 public:
  explicit PairCounts(std::vector<Word> words) : words_(std::move(words)) {
    for (size_t w = 0; w < words_.size(); ++w) Count(w, 1);
    PushChanged();
  }

  // The most frequent pair, if one comes twice.
  bool Best(Pair* pair) {
    while (!queue_.empty() && counts_[queue_.top().pair].count != queue_.top().count) queue_.pop();
    if (queue_.empty() || queue_.top().count < 2) return false;
    *pair = queue_.top().pair;
    return true;
  }

  void Merge(Pair pair, TokenId merged) {
    std::vector<size_t> places(counts_[pair].words.begin(), counts_[pair].words.end());
    std::sort(places.begin(), places.end());
    for (const size_t w : places) {
      Count(w, -1);
      Join(pair, merged, &words_[w].tokens);
      Count(w, 1);
    }
    counts_.erase(pair);
    changed_.erase(pair);
    PushChanged();
  }

 private:
  struct Entry {
    int64_t count = 0;
    absl::flat_hash_set<size_t> words;  // that have it, or had it once
  };
  struct Candidate {
    int64_t count;
    Pair pair;
    bool operator<(const Candidate& other) const {  // the greatest is on top
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  void Count(size_t w, int64_t sign) {
    const std::vector<TokenId>& tokens = words_[w].tokens;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      const Pair pair{tokens[i], tokens[i + 1]};
      Entry& entry = counts_[pair];
      entry.count += sign * words_[w].count;
      if (sign > 0) entry.words.insert(w);
      changed_.insert(pair);
    }
  }

  static void Join(Pair pair, TokenId merged, std::vector<TokenId>* tokens) {
    std::vector<TokenId>& t = *tokens;
    size_t kept = 0;
    for (size_t i = 0; i < t.size(); ++i) {
      const bool joins = i + 1 < t.size() && t[i] == pair.first && t[i + 1] == pair.second;
      t[kept++] = joins ? merged : t[i];
      if (joins) ++i;
    }
    t.resize(kept);
  }

  void PushChanged() {
    for (const Pair& pair : changed_) {
      const auto it = counts_.find(pair);
      if (it != counts_.end() && it->second.count > 0) queue_.push({it->second.count, pair});
    }
    changed_.clear();
  }

  std::vector<Word> words_;
  absl::flat_hash_map<Pair, Entry> counts_;
  absl::flat_hash_set<Pair> changed_;
  std::priority_queue<Candidate> queue_;  // stale entries are dropped when they come up
};

}  // namespace

absl::StatusOr<BpeTrainer> BpeTrainer::Train(std::string_view text, int32_t vocab_size) {
  if (vocab_size < kSmallestVocab || vocab_size >= kMaxVocab) {
    return absl::InvalidArgumentError(absl::StrCat(
        "vocabulary of ", vocab_size, " tokens, expected ", kSmallestVocab, " to ", kMaxVocab - 1));
  }
  ASSIGN_OR_RETURN(std::vector<Word> words, CountWords(text));
  PairCounts counts(std::move(words));
  BpeTrainer trained;
  trained.tokens_.emplace_back(kEndOfTextName);
  for (int byte = 0; byte < 256; ++byte) trained.tokens_.emplace_back(1, static_cast<char>(byte));
  Pair pair;
  while (trained.vocab_size() < vocab_size && counts.Best(&pair)) {
    counts.Merge(pair, trained.vocab_size());
    trained.merges_.push_back(pair);
    trained.tokens_.push_back(trained.tokens_[pair.first] + trained.tokens_[pair.second]);
  }
  return trained;
}

std::string BpeTrainer::ToJson() const {
  const auto name = [this](TokenId id) { return ToByteAlphabet(tokens_[id]); };
  nlohmann::ordered_json json;
  json["version"] = "1.0";
  json["truncation"] = nullptr;
  json["padding"] = nullptr;
  json["added_tokens"] = {{{"id", kEndOfText},
                           {"content", kEndOfTextName},
                           {"single_word", false},
                           {"lstrip", false},
                           {"rstrip", false},
                           {"normalized", false},
                           {"special", true}}};
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  json["post_processor"] = nullptr;
  json["decoder"] = json["pre_tokenizer"];
  // Assembled by hand: an ordered_json object takes time quadratic in its keys.
  std::string vocab;
  for (TokenId id = 0; id < vocab_size(); ++id) {
    absl::StrAppend(&vocab, id == 0 ? "" : ",", nlohmann::json(name(id)).dump(), ":", id);
  }
  std::string merges;
  for (const auto& [left, right] : merges_) {
    absl::StrAppend(&merges, merges.empty() ? "" : ",",
                    nlohmann::json(name(left) + " " + name(right)).dump());
  }
  std::string text = json.dump();
  text.pop_back();
  return absl::StrCat(text, R"(,"model":{"type":"BPE","dropout":null,"unk_token":null,)",
                      R"("continuing_subword_prefix":null,"end_of_word_suffix":null,)",
                      R"("fuse_unk":false,"byte_fallback":false,"ignore_merges":false,)",
                      R"("vocab":{)", vocab, R"(},"merges":[)", merges, "]}}\n");
}

}  // namespace paceline

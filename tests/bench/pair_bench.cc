// What models/README.md states of the bundled pair, measured by the CPU backend:
//
//   pair_bench TARGET_FOLDER DRAFT_FOLDER TEXT_FILE [WINDOWS]
//
// Bits per character of both models over the text, in windows of the context's length; how often
// each early exit's greedy token is the last layer's; and how often the draft's token is the
// target's own on the target's text at T = 0, 0.7 and 1 under shared noise, with the share of
// positions at which the next 1 to 8 are all right; and how often an outcome of a verify of three
// drafts is among the 24 that the drafter would draft for. WINDOWS bounds the windows of the first
// two; default: all. TEXT_FILE: documents ended by <|endoftext|>, from tools/train/held_out.py.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "common/check.h"
#include "common/text/tokenizer.h"
#include "kernels/cpu/sampler.h"
#include "worker/draft/outcome_ranking.h"
#include "worker/model/cpu_decoder.h"

namespace paceline {
namespace {

constexpr int32_t kContext = 1024, kBlock = 16;
constexpr int32_t kExits[] = {2, 4, 5, 7};
constexpr int32_t kPrompts = 64, kPromptLength = 64, kLength = 192, kDepth = 8;
constexpr uint64_t kSeed = 1000;

// A model with the KV of one sequence.
class Reader {
 public:
  explicit Reader(const std::string& folder)
      : pool_(static_cast<int>(std::thread::hardware_concurrency())) {
    auto model = LoadCpuModel(folder);
    CHECK(model.ok()) << model.status().ToString();
    model_ = *std::move(model);
    const ModelConfig& c = model_->config;
    kv_ = std::make_unique<KvPoolCpu>(KvPoolCpu::Create({.num_blocks = kContext / kBlock,
                                                         .block_size = kBlock,
                                                         .kv_heads = c.num_kv_heads,
                                                         .head_dim = c.head_dim},
                                                        c.num_layers)
                                          .value());
    decoder_ = std::make_unique<CpuDecoder>(*model_, *kv_, pool_, kContext, 0);
    table_.resize(kContext / kBlock);
    std::iota(table_.begin(), table_.end(), 0);
  }
  int32_t layers() const { return model_->config.num_layers; }
  int32_t vocab() const { return model_->config.vocab_size; }
  kernels::ThreadPool& pool() { return pool_; }

  // Logits [tokens, vocab] behind the first `num_layers` layers, of tokens that follow `context`
  // others read before.
  const std::vector<float>& Read(std::span<const TokenId> tokens, int32_t context,
                                 int32_t num_layers) {
    const auto rows = static_cast<int32_t>(tokens.size());
    DecoderBatch batch;
    batch.spans.push_back({.block_table = table_.data(),
                           .context_len = context,
                           .num_rows = rows,
                           .layer_end = num_layers,
                           .tail_rows = rows});
    batch.tokens.assign(tokens.begin(), tokens.end());
    batch.positions.resize(tokens.size());
    std::iota(batch.positions.begin(), batch.positions.end(), context);
    decoder_->Run(batch);
    std::vector<int32_t> all(tokens.size());
    std::iota(all.begin(), all.end(), 0);
    logits_.resize(tokens.size() * static_cast<size_t>(vocab()));
    decoder_->Head(all, logits_.data());
    return logits_;
  }
  const std::vector<float>& Read(std::span<const TokenId> tokens, int32_t context = 0) {
    return Read(tokens, context, layers());
  }

  // The rule's tokens after each of the rows that Read left; the first is drawn for `position`.
  std::vector<TokenId> Draw(size_t rows, int32_t position, float temperature, uint64_t seed) {
    std::vector<TokenId> tokens;
    for (const auto& best : DrawBest(rows, position, temperature, seed, 1)) {
      tokens.push_back(best.front());
    }
    return tokens;
  }
  // The `count` best by the same score, best first.
  std::vector<std::vector<TokenId>> DrawBest(size_t rows, int32_t position, float temperature,
                                             uint64_t seed, int32_t count) {
    std::vector<kernels::SampleParams> params(rows);
    for (size_t r = 0; r < rows; ++r) {
      params[r].logits = logits_.data() + r * static_cast<size_t>(vocab());
      params[r].vocab_size = vocab();
      params[r].seed = seed;
      params[r].position = static_cast<uint32_t>(position) + static_cast<uint32_t>(r);
      params[r].temperature = temperature;
      params[r].num_candidates = count;
    }
    std::vector<kernels::SampleOutput> outputs(rows);
    CHECK(kernels::Sample(params.data(), static_cast<int64_t>(rows), outputs.data(), pool_) ==
          kernels::CpuResult::kOk);
    std::vector<std::vector<TokenId>> best;
    for (kernels::SampleOutput& output : outputs) best.push_back(std::move(output.candidates));
    return best;
  }

 private:
  kernels::ThreadPool pool_;
  std::shared_ptr<const CpuModel> model_;
  std::unique_ptr<KvPoolCpu> kv_;
  std::unique_ptr<CpuDecoder> decoder_;
  std::vector<int32_t> table_;
  std::vector<float> logits_;
};

struct Text {
  std::vector<TokenId> tokens;
  std::vector<double> characters;  // [tokens] that each adds
};

Text ReadText(const Tokenizer& tokenizer, const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  auto tokens = tokenizer.Encode(bytes);
  CHECK(tokens.ok() && !tokens->empty()) << path << ": " << tokens.status().ToString();
  Text text{.tokens = *std::move(tokens), .characters = {}};
  for (const TokenId token : text.tokens) {
    const std::string_view piece = tokenizer.IsSpecial(token) ? "" : tokenizer.TokenBytes(token);
    text.characters.push_back(static_cast<double>(
        std::ranges::count_if(piece, [](char c) { return (c & 0xc0) != 0x80; })));
  }
  return text;
}

// Nats of `next` under a row of logits.
double Nats(const float* row, int32_t vocab, TokenId next) {
  const double greatest = *std::max_element(row, row + vocab);
  double sum = 0;
  for (int32_t v = 0; v < vocab; ++v) sum += std::exp(row[v] - greatest);
  return greatest + std::log(sum) - row[next];
}

double BitsPerCharacter(Reader& model, const Text& text, int32_t windows) {
  double nats = 0, characters = 0;
  const auto last = static_cast<int64_t>(text.tokens.size()) - 1;
  for (int64_t begin = 0; begin < last && windows-- > 0; begin += kContext) {
    const auto rows = static_cast<size_t>(std::min<int64_t>(kContext, last - begin));
    const float* logits = model.Read(std::span(text.tokens).subspan(begin, rows)).data();
    for (size_t r = 0; r < rows; ++r) {
      const size_t next = static_cast<size_t>(begin) + r + 1;
      nats += Nats(logits + r * model.vocab(), model.vocab(), text.tokens[next]);
      characters += text.characters[next];
    }
  }
  return nats / std::log(2.0) / characters;
}

void PrintExits(Reader& target, const Text& text, int32_t windows) {
  std::printf("exit agreement:");
  for (const int32_t exit : kExits) {
    int64_t equal = 0, total = 0;
    for (int32_t w = 0; w < std::min(windows, 32); ++w) {
      const auto begin = static_cast<size_t>(w) * kContext;
      if (begin + kContext > text.tokens.size()) break;
      const auto window = std::span(text.tokens).subspan(begin, kContext);
      target.Read(window, 0, exit);
      const auto early = target.Draw(kContext, 1, 0, 0);
      target.Read(window);
      const auto final = target.Draw(kContext, 1, 0, 0);
      for (size_t i = 0; i < kContext; ++i) equal += early[i] == final[i];
      total += kContext;
    }
    std::printf(" layer %d %.3f", exit, static_cast<double>(equal) / static_cast<double>(total));
  }
  std::printf("\n");
}

// The prompt and what the target writes behind it.
std::vector<TokenId> Continue(Reader& target, std::span<const TokenId> prompt, float temperature,
                              uint64_t seed) {
  std::vector<TokenId> tokens(prompt.begin(), prompt.end());
  target.Read(prompt.first(prompt.size() - 1));
  for (int32_t i = 0; i < kLength; ++i) {
    const auto position = static_cast<int32_t>(tokens.size());
    target.Read(std::span(tokens).last(1), position - 1);
    tokens.push_back(target.Draw(1, position, temperature, seed)[0]);
  }
  return tokens;
}

void PrintAcceptance(Reader& target, Reader& draft, const Text& text, float temperature) {
  int64_t positions[kDepth] = {}, survived[kDepth] = {};
  for (int32_t p = 0; p < kPrompts; ++p) {
    const auto prompt = std::span(text.tokens).subspan(static_cast<size_t>(p) * 997, kPromptLength);
    const uint64_t seed = kSeed + static_cast<uint64_t>(p);
    const auto tokens = Continue(target, prompt, temperature, seed);
    draft.Read(std::span(tokens).first(tokens.size() - 1));
    const auto drawn = draft.Draw(tokens.size() - 1, 1, temperature, seed);
    for (int32_t i = kPromptLength; i < kPromptLength + kLength; ++i) {
      bool right = true;
      for (int32_t d = 0; d < kDepth && i + d < kPromptLength + kLength; ++d) {
        right =
            right && drawn[static_cast<size_t>(i + d) - 1] == tokens[static_cast<size_t>(i + d)];
        ++positions[d];
        survived[d] += right;
      }
    }
  }
  std::printf("acceptance at T = %.1f:", temperature);
  for (int32_t d = 0; d < kDepth; ++d) {
    std::printf(" %.3f", static_cast<double>(survived[d]) / static_cast<double>(positions[d]));
  }
  std::printf("\n");
}

// Outcomes of verifying kDrafts of the draft's own tokens at each position of the target's text:
// the share that is among the kOutcomes which the drafter would rank first, having learnt from the
// positions before.
void PrintOutcomeHits(Reader& target, Reader& draft, const Text& text, float temperature) {
  constexpr int32_t kDrafts = 3, kOutcomes = 24, kCandidates = 16;
  const std::vector<int32_t> own(kDrafts, 0);
  GuessRanks ranks;
  int64_t hits = 0, total = 0;
  for (int32_t p = 0; p < kPrompts; ++p) {
    const auto prompt = std::span(text.tokens).subspan(static_cast<size_t>(p) * 997, kPromptLength);
    const uint64_t seed = kSeed + static_cast<uint64_t>(p);
    const auto tokens = Continue(target, prompt, temperature, seed);
    draft.Read(std::span(tokens).first(tokens.size() - 1));
    const auto best = draft.DrawBest(tokens.size() - 1, 1, temperature, seed, kCandidates);
    // Of the token at i among the candidates for it; kCandidates: not among them.
    const auto rank = [&](int32_t i) {
      const auto& candidates = best[static_cast<size_t>(i) - 1];
      const auto it = std::ranges::find(candidates, tokens[static_cast<size_t>(i)]);
      return it == candidates.end() ? kCandidates : static_cast<int32_t>(it - candidates.begin());
    };
    Agreement agreement;
    for (int32_t i = kPromptLength; i + kDrafts < kPromptLength + kLength;) {
      const auto outcomes =
          RankOutcomes(own, true, agreement.value(), ranks, kCandidates, kOutcomes);
      int32_t accepted = 0;
      while (accepted < kDrafts && rank(i + accepted) == 0) ++accepted;
      const int32_t next = rank(i + accepted);
      hits += std::ranges::any_of(
          outcomes, [&](const Outcome& o) { return o.accepted == accepted && o.rank == next; });
      ++total;
      for (int32_t d = 0; d <= accepted; ++d) agreement.Observe(rank(i + d) == 0);
      if (next != 0) ranks.Observe(next);
      i += accepted + 1;
    }
  }
  std::printf("outcomes foreseen at T = %.1f, %d drafts, %d rows: %.3f of %ld\n", temperature,
              kDrafts, kOutcomes, static_cast<double>(hits) / static_cast<double>(total), total);
}

void Main(const std::string& target_folder, const std::string& draft_folder, const char* path,
          int32_t windows) {
  const auto tokenizer = Tokenizer::Load(target_folder);
  CHECK(tokenizer.ok()) << tokenizer.status().ToString();
  const Text text = ReadText(**tokenizer, path);
  CHECK_GE(text.tokens.size(), size_t{kPrompts} * 997);
  Reader target(target_folder), draft(draft_folder);
  std::printf("%zu tokens, %.0f characters\n", text.tokens.size(),
              std::accumulate(text.characters.begin(), text.characters.end(), 0.0));
  std::printf("bits per character: target %.4f", BitsPerCharacter(target, text, windows));
  std::printf(", draft %.4f\n", BitsPerCharacter(draft, text, windows));
  PrintExits(target, text, windows);
  for (const float temperature : {0.0f, 0.7f, 1.0f}) {
    PrintAcceptance(target, draft, text, temperature);
    PrintOutcomeHits(target, draft, text, temperature);
  }
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: pair_bench TARGET_FOLDER DRAFT_FOLDER TEXT_FILE [WINDOWS]\n");
    return 2;
  }
  paceline::Main(argv[1], argv[2], argv[3], argc > 4 ? std::atoi(argv[4]) : 1 << 30);
  return 0;
}

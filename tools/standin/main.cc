// Makes the stand-in pair: `standin_models --out DIR [FILE...]` writes DIR/target and DIR/draft in
// HF layout from a built-in text and the given files. The same input gives the same bytes.
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "common/status_macros.h"
#include "common/text/bpe_trainer.h"
#include "common/text/tokenizer.h"
#include "tools/standin/bigram.h"
#include "tools/standin/corpus.h"
#include "tools/standin/standin_model.h"

namespace paceline {
namespace {

constexpr double kEndShare = 2e-4;  // rare enough that 200 tokens usually run to length
constexpr int32_t kTargetLayers = 4;
constexpr int32_t kVocabSize = 1024;

absl::Status WriteModel(const std::string& dir, const ModelConfig& config,
                        const BigramModel& bigrams, const std::string& tokenizer) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return absl::UnavailableError(dir + ": " + error.message());
  RETURN_IF_ERROR(
      WriteTextFile(dir + "/model.safetensors", SafetensorsBytes(StandinTensors(config, bigrams))));
  RETURN_IF_ERROR(WriteTextFile(dir + "/tokenizer.json", tokenizer));
  RETURN_IF_ERROR(WriteTextFile(dir + "/generation_config.json", StandinGenerationJson(config)));
  return WriteTextFile(dir + "/config.json", StandinConfigJson(config));
}

absl::Status MakePair(const std::string& out, const std::vector<std::string>& files) {
  const std::string corpus = ReadCorpus(files);
  ASSIGN_OR_RETURN(const BpeTrainer trained, BpeTrainer::Train(corpus, kVocabSize));
  const std::string tokenizer = trained.ToJson();
  ASSIGN_OR_RETURN(const auto encoder, Tokenizer::FromJson(tokenizer));
  ASSIGN_OR_RETURN(const std::vector<TokenId> tokens, encoder->Encode(corpus));
  const int32_t vocab = trained.vocab_size();
  const TokenId eos = BpeTrainer::kEndOfText;
  const BigramModel bigrams = FitBigrams(tokens, vocab, kStandinRank, eos, kEndShare);
  RETURN_IF_ERROR(
      WriteModel(out + "/target", StandinConfig(vocab, kTargetLayers, eos), bigrams, tokenizer));
  return WriteModel(out + "/draft", StandinConfig(vocab, kStandinDraftLayers, eos), bigrams,
                    tokenizer);
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  std::string out;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--out" && i + 1 < argc) {
      out = argv[++i];
    } else {
      files.push_back(arg);
    }
  }
  if (out.empty()) {
    std::fprintf(stderr, "usage: standin_models --out DIR [FILE...]\n");
    return 2;
  }
  const absl::Status status = paceline::MakePair(out, files);
  if (!status.ok()) {
    std::fprintf(stderr, "standin_models: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

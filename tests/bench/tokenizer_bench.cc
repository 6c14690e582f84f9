// Speed of a tokenizer on one core: text to ids, ids back to text, and the stream of a generation.
//
//   tokenizer_bench TOKENIZER.JSON TEXT_FILE [SECONDS]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "common/clock.h"
#include "common/text/stream_detokenizer.h"
#include "common/text/tokenizer.h"

namespace paceline {
namespace {

// The best of several runs within `seconds`, in bytes per second.
template <typename Run>
double Rate(double bytes, double seconds, Run run) {
  const TimePoint end = SteadyClock::Get().Now() + std::chrono::duration_cast<Duration>(
                                                       std::chrono::duration<double>(seconds));
  double best = 0;
  do {
    const TimePoint begin = SteadyClock::Get().Now();
    run();
    best = std::max(best, bytes / ToSeconds(SteadyClock::Get().Now() - begin));
  } while (SteadyClock::Get().Now() < end);
  return best;
}

int Bench(const char* tokenizer_path, const char* text_path, double seconds) {
  const TimePoint begin = SteadyClock::Get().Now();
  const auto tokenizer = Tokenizer::Load(tokenizer_path);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "error: %s\n", tokenizer.status().ToString().c_str());
    return 1;
  }
  const double load = ToSeconds(SteadyClock::Get().Now() - begin);
  std::ifstream file(text_path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto tokens = (*tokenizer)->Encode(text);
  if (!tokens.ok() || text.empty()) {
    std::fprintf(stderr, "error: %s: %s\n", text_path, tokens.status().ToString().c_str());
    return 1;
  }
  const double bytes = static_cast<double>(text.size());
  const double encode = Rate(bytes, seconds, [&] { (void)(*tokenizer)->Encode(text); });
  const double decode = Rate(bytes, seconds, [&] { (void)(*tokenizer)->Decode(*tokens); });
  const double stream = Rate(bytes, seconds, [&] {
    StreamDetokenizer detokenizer(tokenizer->get());
    for (const TokenId token : *tokens) (void)detokenizer.Push(token);
  });
  std::printf("load %.0f ms, %zu bytes, %.2f bytes per token\n", load * 1e3, text.size(),
              bytes / static_cast<double>(tokens->size()));
  std::printf("encode %.1f MB/s, decode %.1f MB/s, stream %.1f MB/s (%.0f ns per token)\n",
              encode / 1e6, decode / 1e6, stream / 1e6,
              1e9 / stream * bytes / static_cast<double>(tokens->size()));
  return 0;
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::fprintf(stderr, "usage: tokenizer_bench TOKENIZER.JSON TEXT_FILE [SECONDS]\n");
    return 2;
  }
  return paceline::Bench(argv[1], argv[2], argc == 4 ? std::atof(argv[3]) : 1.0);
}

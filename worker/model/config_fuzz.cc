// libFuzzer: any text as config.json, and behind a zero byte as generation_config.json.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "worker/model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace paceline;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t cut = text.find('\0');
  const auto config = ParseModelConfig(
      text.substr(0, cut), cut == text.npos ? std::string_view() : text.substr(cut + 1), "fuzz");
  if (!config.ok()) return 0;
  CHECK_GT(config->vocab_size, 0);
  CHECK_GT(config->head_dim, 0);
  CHECK_EQ(config->num_heads % config->num_kv_heads, 0);
  CHECK_GT(config->num_parameters(), 0);
  for (TokenId id : config->eos_token_ids) CHECK(id >= 0 && id < config->vocab_size);
  return CanonicalText(*config).empty() ? 1 : 0;
}

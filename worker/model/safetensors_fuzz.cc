// libFuzzer: any bytes as a safetensors file. What is accepted must be readable to its last byte.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/check.h"
#include "worker/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace paceline;
  static const std::string name = "fuzz";
  const auto tensors = ParseSafetensors({data, size}, name);
  if (!tensors.ok()) return 0;
  uint64_t sum = 0;
  for (const auto& [tensor, view] : *tensors) {
    for (uint8_t byte : view.bytes) sum += byte;
    if (view.dtype == TensorDtype::kOther) continue;
    const int64_t count = view.num_elements();
    CHECK_LE(count, static_cast<int64_t>(size));
    std::vector<float> values(static_cast<size_t>(count));
    ReadFloat(view, 0, count, values.data());
    std::vector<uint16_t> bits(static_cast<size_t>(count));
    ReadBf16(view, 0, count, bits.data());
  }
  return sum == UINT64_MAX ? 1 : 0;
}

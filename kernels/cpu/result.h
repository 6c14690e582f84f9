// What a CPU kernel returns. Kernels check shapes, never data; anything but kOk is a caller's bug.
#pragma once

#include <cstdint>

namespace paceline::kernels {

enum class [[nodiscard]] CpuResult : uint8_t{
    kOk = 0,
    kBadShape,     // a negative size, a null pointer, a stride below its row
    kUnsupported,  // a size this kernel has no path for (odd head_dim, block size not 16, 32, 64)
};

}  // namespace paceline::kernels

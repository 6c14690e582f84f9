// Instruction sets the kernels are built for. One binary carries all of them and chooses at start.
// Within one ISA a row's bits never depend on its neighbours; between ISAs they may differ (the
// noise excepted), so the ISA's name is part of the numerics fingerprint.
#pragma once

#include <cstdint>

namespace paceline::kernels {

enum class Isa : uint8_t { kPortable = 0, kAvx2 = 1, kAvx512Bf16 = 2 };

// True if this machine and its operating system can run it.
bool IsaSupported(Isa isa);

// The best supported one.
Isa DetectIsa();

// "portable", "avx2", "avx512_bf16".
const char* IsaName(Isa isa);

}  // namespace paceline::kernels

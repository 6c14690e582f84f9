#define PACELINE_ISA 2
#include "kernels/cpu/isa_table.h"

namespace paceline::kernels {

const IsaKernels kAvx512Kernels = isa_avx512::kTable;

}  // namespace paceline::kernels

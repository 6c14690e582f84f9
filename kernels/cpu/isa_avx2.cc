#define PACELINE_ISA 1
#include "kernels/cpu/isa_table.h"

namespace paceline::kernels {

const IsaKernels kAvx2Kernels = isa_avx2::kTable;

}  // namespace paceline::kernels

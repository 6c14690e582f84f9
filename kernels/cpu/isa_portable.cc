#define PACELINE_ISA 0
#include "kernels/cpu/isa_table.h"

namespace paceline::kernels {

const IsaKernels kPortableKernels = isa_portable::kTable;

}  // namespace paceline::kernels

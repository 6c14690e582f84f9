// bfloat16 under the name that the CPU kernels include.
#pragma once

#include "kernels/bf16.h"

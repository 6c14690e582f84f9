// A model's rope settings as the kernels' tables want them.
#pragma once

#include "kernels/cpu/rope.h"
#include "worker/model/config.h"

namespace paceline {

kernels::RopeConfig RopeConfigOf(const ModelConfig& config);

}  // namespace paceline

#include "worker/model/rope_config.h"

namespace paceline {

kernels::RopeConfig RopeConfigOf(const ModelConfig& c) {
  kernels::RopeConfig rope;
  rope.rotary_dim = c.head_dim;
  rope.theta = c.rope.theta;
  switch (c.rope.scaling) {
    case RopeScalingKind::kNone:
      rope.scaling = kernels::RopeScaling::kNone;
      break;
    case RopeScalingKind::kLinear:
      rope.scaling = kernels::RopeScaling::kLinear;
      break;
    case RopeScalingKind::kLlama3:
      rope.scaling = kernels::RopeScaling::kLlama3;
      break;
  }
  rope.factor = c.rope.factor;
  rope.low_freq_factor = c.rope.low_freq_factor;
  rope.high_freq_factor = c.rope.high_freq_factor;
  rope.original_max_position = c.rope.original_max_position;
  return rope;
}

}  // namespace paceline

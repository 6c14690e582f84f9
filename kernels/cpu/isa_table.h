// The table of one instruction set. Included by isa_*.cc only.
#pragma once

#include "kernels/cpu/attention_isa.h"
#include "kernels/cpu/linear_isa.h"
#include "kernels/cpu/logits_isa.h"
#include "kernels/cpu/rows_isa.h"

namespace paceline::kernels::PACELINE_ISA_NAMESPACE {

inline constexpr IsaKernels kTable = {
    .linear = Linear,
    .attention = Attention,
    .combine = Combine,
    .rms_norm = RmsNorm,
    .rope = Rope,
    .swiglu = SwiGlu,
    .add = AddRows,
    .to_bf16 = ToBf16Rows,
    .from_bf16 = FromBf16Rows,
    .clean_logits = CleanLogits,
    .scale_logits = ScaleLogits,
    .exponential = Exponential,
    .sum_exp = SumExp,
    .add_noise = AddNoise,
    .argmax = Argmax,
    .find_greater = FindGreater,
};

}  // namespace paceline::kernels::PACELINE_ISA_NAMESPACE

// From logits to a token by the one rule (kernels/cpu/sampler.h states it). CUDA.
//
// No sort of the whole: thresholds are 64-bit keys (value, then lowest id), which are all distinct,
// so exactly k remain and ties go to the lowest id. Mass for top-p is summed in integers, so no
// order of additions matters; sums of floats have an order of the row's own. Logits of NaN count as
// -infinity. Noise is computed for ids that may win alone: a bound of it, one logarithm, tells.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/bf16.h"

namespace paceline::kernels {

// Ids that a row can return by rank: candidates, or top logprobs.
inline constexpr int32_t kMaxRankedIds = 64;

// What sets one id apart. Bias first, then penalties, then the ban.
struct CudaSampleEdit {
  int32_t id = 0;             // in [0, vocab_size); an id occurs once per row
  float bias = 0;             // added
  int32_t output_count = -1;  // -1: penalties pass; else the times it occurs in the output
  int32_t banned = 0;         // 1: out
};

struct CudaSampleRow {
  uint64_t seed = 0;
  uint32_t sample = 0;
  uint32_t position = 0;
  int32_t logits_row = 0;
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t edit_begin = 0;  // edits [edit_begin, edit_end)
  int32_t edit_end = 0;
  int32_t top_logprobs = -1;   // at most kMaxRankedIds
  int32_t num_candidates = 0;  // at most kMaxRankedIds
};

struct CudaSampleResult {
  int32_t token = -1;  // -1: nothing was left to choose from
  float logprob = 0;   // raw, of token; with top_logprobs >= 0
  int32_t num_top = 0;
  int32_t num_candidates = 0;
  int32_t top_ids[kMaxRankedIds];
  float top_logprobs[kMaxRankedIds];
  int32_t candidates[kMaxRankedIds];
};

// All pointers on the device.
struct CudaSampleParams {
  const float* logits = nullptr;  // [any, vocab_size], 16-byte aligned
  int32_t vocab_size = 0;
  const CudaSampleRow* rows = nullptr;    // [num_rows]
  const CudaSampleEdit* edits = nullptr;  // of all rows
  const uint32_t* allowed = nullptr;      // [num_rows, ceil(vocab_size / 32)] bits, or null: all
  int32_t num_rows = 0;
  float* values = nullptr;              // [num_rows, vocab_size] scratch
  float* scores = nullptr;              // [num_rows, vocab_size] scratch
  void* workspace = nullptr;            // CudaSampleWorkspaceBytes, 16-byte aligned
  CudaSampleResult* results = nullptr;  // [num_rows]
};
int64_t CudaSampleWorkspaceBytes(int32_t num_rows, int32_t vocab_size);
cudaError_t CudaSample(const CudaSampleParams& params, cudaStream_t stream);

}  // namespace paceline::kernels

// What a decoder runs in one step. The same for every backend: host values only.
#pragma once

#include <cstdint>
#include <vector>

namespace paceline {

// A span of a step plan with everything decided: host values only.
struct DecoderSpan {
  const int32_t* block_table = nullptr;  // KV index i: block_table[i / block_size]
  int32_t context_len = 0;
  int32_t row_begin = 0;  // rows [row_begin, row_begin + num_rows) of the batch
  int32_t num_rows = 0;
  const int32_t* parents = nullptr;  // [num_rows], as kernels::AttentionSpan; null = causal
  int32_t layer_begin = 0;
  int32_t layer_end = 0;
  int32_t hidden_in = -1;   // saved-hidden slot to start from, or -1: embed the tokens
  int32_t hidden_out = -1;  // saved-hidden slot to leave the rows in, or -1
  // Rows at the span's end whose output is wanted; the others stop at the last layer's KV.
  // All of them with parents or hidden_out.
  int32_t tail_rows = 0;
};

struct DecoderBatch {
  std::vector<DecoderSpan> spans;
  std::vector<int32_t> tokens;     // [rows]
  std::vector<int32_t> positions;  // [rows]
};

}  // namespace paceline

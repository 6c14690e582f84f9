// The text side of one sample at the router: token ids in, text out, stop strings found. What it
// says depends on the ids alone and not on how they were cut into deltas, so that a failover or a
// resume goes on exactly where the text stopped.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "common/types/sampling_params.h"

namespace paceline {

class SampleText {
 public:
  virtual ~SampleText() = default;

  struct Piece {
    int32_t kept = 0;      // tokens used: all, or up to the one that completed a stop string
    std::string text;      // whole characters; what may begin a stop string is held back
    bool stopped = false;  // a stop string was found; the text ends before it
  };
  virtual Piece Push(std::span<const TokenId> tokens) = 0;

  // What is still held back, when the sample has ended without a stop string.
  virtual std::string Flush() = 0;
};

}  // namespace paceline

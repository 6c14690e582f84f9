// CUDA graphs of whole steps: a step's kernels, captured once per shape and launched by one call
// from then on. A shape that turns up for the first time runs without a graph, which also loads its
// kernels; most shapes of a ramp never come back.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <set>

#include "absl/status/status.h"
#include "worker/model/cuda_decoder_cuda.h"

namespace paceline {

// One thread. The stream outlives it and is idle when it goes.
class StepGraphs {
 public:
  // Padded counts of a step. Equal shapes enqueue equal kernels with equal params, as long as the
  // memory that they know stays.
  struct Shape {
    CudaDecoder::Shape decoder;
    int32_t draws = 0;
    auto operator<=>(const Shape&) const = default;
  };
  // Kept at most; the one that was not used for longest goes.
  static constexpr int32_t kMaxGraphs = 64;

  StepGraphs() = default;
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;
  ~StepGraphs() { Clear(); }

  // Carries out on the stream what `enqueue` enqueues: kernels alone. `memory` changes with the
  // memory that the kernels know; all graphs are dropped then.
  absl::Status Run(const Shape& shape, int64_t memory, const std::function<absl::Status()>& enqueue,
                   cudaStream_t stream);

  // GPU memory that kMaxGraphs graphs of so many layers take at most.
  static int64_t MemoryBytes(int32_t num_layers);

  int64_t captured() const { return captured_; }
  int64_t replayed() const { return replayed_; }  // launches of a graph, its first among them

 private:
  struct Graph {
    Shape shape;
    cudaGraphExec_t exec = nullptr;
  };
  static constexpr size_t kMaxSeen = 4096;

  absl::Status Capture(const Shape& shape, const std::function<absl::Status()>& enqueue,
                       cudaStream_t stream);
  void Clear();

  std::list<Graph> graphs_;  // the one used last in front
  std::map<Shape, std::list<Graph>::iterator> by_shape_;
  std::set<Shape> seen_;  // without a graph
  int64_t memory_ = 0;
  int64_t captured_ = 0, replayed_ = 0;
};

}  // namespace paceline

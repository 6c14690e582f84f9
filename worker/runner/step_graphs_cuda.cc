#include "worker/runner/step_graphs_cuda.h"

#include "common/status_macros.h"

namespace paceline {
namespace {

// Kernels of a layer and of what stands around the layers. 2.8 KB per kernel were measured on an
// H100 (docs/benchmarks/cuda-serving.md).
constexpr int64_t kLayerKernels = 10;
constexpr int64_t kOtherKernels = 16;
constexpr int64_t kKernelBytes = 4096;

}  // namespace

int64_t StepGraphs::MemoryBytes(int32_t num_layers) {
  return kMaxGraphs * (num_layers * kLayerKernels + kOtherKernels) * kKernelBytes;
}

absl::Status StepGraphs::Run(const Shape& shape, int64_t memory,
                             const std::function<absl::Status()>& enqueue, cudaStream_t stream) {
  if (memory != memory_) Clear();
  memory_ = memory;
  const auto found = by_shape_.find(shape);
  if (found != by_shape_.end()) {
    graphs_.splice(graphs_.begin(), graphs_, found->second);
  } else {
    if (seen_.size() >= kMaxSeen) seen_.clear();
    if (seen_.insert(shape).second) return enqueue();
    RETURN_IF_ERROR(Capture(shape, enqueue, stream));
  }
  ++replayed_;
  return CudaStatus(cudaGraphLaunch(graphs_.front().exec, stream), "launch of a step's graph");
}

absl::Status StepGraphs::Capture(const Shape& shape, const std::function<absl::Status()>& enqueue,
                                 cudaStream_t stream) {
  RETURN_IF_ERROR(CudaStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed),
                             "capture of a step"));
  const absl::Status enqueued = enqueue();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  cudaGraphExec_t exec = nullptr;
  const cudaError_t made =
      enqueued.ok() && ended == cudaSuccess ? cudaGraphInstantiate(&exec, graph, 0) : ended;
  if (graph != nullptr) cudaGraphDestroy(graph);
  RETURN_IF_ERROR(enqueued);
  RETURN_IF_ERROR(CudaStatus(made, "graph of a step (--no-cuda-graphs does without)"));
  if (graphs_.size() >= kMaxGraphs) {  // its last launch is done: a step is read before the next
    by_shape_.erase(graphs_.back().shape);
    cudaGraphExecDestroy(graphs_.back().exec);
    graphs_.pop_back();
  }
  graphs_.push_front({shape, exec});
  by_shape_[shape] = graphs_.begin();
  seen_.erase(shape);
  ++captured_;
  return absl::OkStatus();
}

void StepGraphs::Clear() {
  for (const Graph& graph : graphs_) cudaGraphExecDestroy(graph.exec);
  graphs_.clear();
  by_shape_.clear();
  seen_.clear();
}

}  // namespace paceline

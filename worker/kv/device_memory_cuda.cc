#include "worker/kv/device_memory_cuda.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

constexpr int32_t kLeastCapability = 80;

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

cudaError_t AllocateRaw(MemoryKind kind, void** data, int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  return kind == MemoryKind::kDevice ? cudaMalloc(data, size) : cudaMallocHost(data, size);
}

void FreeRaw(MemoryKind kind, void* data) {
  if (data == nullptr) return;
  if (kind == MemoryKind::kDevice) {
    cudaFree(data);
  } else {
    cudaFreeHost(data);
  }
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat(View(what), ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(text);
  return absl::InternalError(text);
}

std::string GibText(int64_t bytes) {
  return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (int64_t{1} << 30));
}

absl::StatusOr<CudaDevice> OpenCudaDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    int version = 0;
    cudaDriverGetVersion(&version);
    if (version == 0) return absl::NotFoundError("no NVIDIA driver on this machine");
    return absl::NotFoundError(absl::StrFormat(
        "the NVIDIA driver supports CUDA %d.%d; this build needs CUDA 13.0: update the driver",
        version / 1000, version % 1000 / 10));
  }
  if (error != cudaSuccess || count == 0) {
    return absl::NotFoundError(absl::StrCat(
        "no GPU", error == cudaSuccess ? "" : absl::StrCat(": ", cudaGetErrorString(error))));
  }
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(0), "GPU 0"));
  CudaDevice device;
  cudaDeviceProp properties = {};
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, 0), "GPU 0"));
  device.name = properties.name;
  int major = 0, minor = 0, processors = 0;
  RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "GPU 0"));
  RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "GPU 0"));
  RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "GPU 0"));
  device.compute_capability = major * 10 + minor;
  device.multiprocessors = processors;
  if (device.compute_capability < kLeastCapability) {
    return absl::UnimplementedError(absl::StrFormat(
        "%s has compute capability %d.%d; at least 8.0 is needed", device.name, major, minor));
  }
  size_t free_bytes = 0, total_bytes = 0;
  RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "GPU 0"));
  device.free_bytes = static_cast<int64_t>(free_bytes);
  device.total_bytes = static_cast<int64_t>(total_bytes);
  return device;
}

// --- Memory ---

template <MemoryKind kind>
CudaMemory<kind>::CudaMemory(CudaMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

template <MemoryKind kind>
CudaMemory<kind>& CudaMemory<kind>::operator=(CudaMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

template <MemoryKind kind>
CudaMemory<kind>::~CudaMemory() {
  FreeRaw(kind, data_);
}

template <MemoryKind kind>
absl::StatusOr<CudaMemory<kind>> CudaMemory<kind>::Allocate(int64_t bytes,
                                                            std::string_view purpose) {
  CudaMemory memory;
  RETURN_IF_ERROR(memory.GrowTo(bytes, purpose));
  return memory;
}

template <MemoryKind kind>
absl::Status CudaMemory<kind>::GrowTo(int64_t bytes, std::string_view purpose) {
  if (bytes <= bytes_) return absl::OkStatus();
  FreeRaw(kind, data_);
  data_ = nullptr;
  bytes_ = 0;
  const cudaError_t error = AllocateRaw(kind, &data_, bytes);
  if (error == cudaSuccess) {
    bytes_ = bytes;
    return absl::OkStatus();
  }
  data_ = nullptr;
  cudaGetLastError();  // a refused allocation is no lasting error
  std::string free;
  size_t free_bytes = 0, total_bytes = 0;
  if (kind == MemoryKind::kDevice && cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess) {
    free = absl::StrCat("; ", GibText(static_cast<int64_t>(free_bytes)), " of GPU memory are free");
  }
  return CudaStatus(error, absl::StrCat(View(purpose), " of ", GibText(bytes), free));
}

template class CudaMemory<MemoryKind::kDevice>;
template class CudaMemory<MemoryKind::kPinned>;

// --- Stream ---

absl::StatusOr<CudaStream> CudaStream::Create() {
  CudaStream stream;
  RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&stream.stream_, cudaStreamNonBlocking),
                             "a CUDA stream"));
  stream.owned_ = true;
  return stream;
}

CudaStream::CudaStream(CudaStream&& other) noexcept
    : stream_(other.stream_), owned_(std::exchange(other.owned_, false)) {}

CudaStream::~CudaStream() {
  if (owned_) cudaStreamDestroy(stream_);
}

absl::Status CudaStream::Synchronize(std::string_view what) const {
  return CudaStatus(cudaStreamSynchronize(stream_), what);
}

}  // namespace paceline

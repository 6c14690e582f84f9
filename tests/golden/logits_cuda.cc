// Logits of a model on the GPU, for gpu_logits.py:
//   cuda_logits MODEL TOKENS CHUNK OUT
// TOKENS: a file of int32 ids. They run in chunks of CHUNK rows, each behind the ones before; OUT
// gets float32 [tokens, vocab_size].
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "worker/model/cuda_decoder_cuda.h"

namespace paceline {
namespace {

absl::StatusOr<std::vector<int32_t>> ReadTokens(const std::string& path, int32_t vocab_size) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  std::vector<int32_t> tokens(bytes.size() / sizeof(int32_t));
  std::copy_n(bytes.data(), tokens.size() * sizeof(int32_t),
              reinterpret_cast<char*>(tokens.data()));
  if (tokens.empty()) return absl::InvalidArgumentError("no tokens in " + path);
  for (int32_t token : tokens) {
    if (token < 0 || token >= vocab_size) return absl::InvalidArgumentError("a token out of range");
  }
  return tokens;
}

absl::Status Run(const std::string& dir, const std::string& tokens_path, int32_t chunk,
                 const std::string& out) {
  constexpr int32_t kBlock = 16;
  RETURN_IF_ERROR(OpenCudaDevice().status());
  ASSIGN_OR_RETURN(const auto model, LoadCudaModel(dir));
  const ModelConfig& config = model->config;
  ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, ReadTokens(tokens_path, config.vocab_size));
  const auto count = static_cast<int32_t>(tokens.size());
  chunk = std::clamp(chunk, 1, count);
  const kernels::CudaKvShape shape{.num_blocks = (count + kBlock - 1) / kBlock,
                                   .block_size = kBlock,
                                   .kv_heads = config.num_kv_heads,
                                   .head_dim = config.head_dim};
  ASSIGN_OR_RETURN(const CudaStream stream, CudaStream::Create());
  ASSIGN_OR_RETURN(KvPoolCuda kv, KvPoolCuda::Create(shape, config.num_layers));
  CudaDecoderOptions options;
  options.max_position = count;
  options.max_rows = chunk;
  ASSIGN_OR_RETURN(const auto decoder, CudaDecoder::Create(*model, kv, stream.get(), options));

  std::vector<int32_t> table, rows;
  for (int32_t b = 0; b < shape.num_blocks; ++b) table.push_back(shape.num_blocks - 1 - b);
  for (int32_t r = 0; r < chunk; ++r) rows.push_back(r);
  const auto vocab = static_cast<size_t>(config.vocab_size);
  std::vector<float> logits(static_cast<size_t>(chunk) * vocab);
  const auto bytes = static_cast<int64_t>(logits.size() * sizeof(float));
  ASSIGN_OR_RETURN(const DeviceMemory d_rows, DeviceMemory::Allocate(4 * chunk, "rows"));
  ASSIGN_OR_RETURN(const DeviceMemory d_logits, DeviceMemory::Allocate(bytes, "logits"));
  RETURN_IF_ERROR(CudaStatus(
      cudaMemcpy(d_rows.as<int32_t>(), rows.data(), rows.size() * 4, cudaMemcpyHostToDevice),
      "rows"));
  RETURN_IF_ERROR(CudaStatus(cudaDeviceSynchronize(), "rows"));
  std::ofstream file(out, std::ios::binary);
  for (int32_t begin = 0; begin < count; begin += chunk) {
    const int32_t n = std::min(chunk, count - begin);
    DecoderBatch batch;
    DecoderSpan& span = batch.spans.emplace_back();
    span.block_table = table.data();
    span.context_len = begin;
    span.num_rows = span.tail_rows = n;
    span.layer_end = config.num_layers;
    for (int32_t r = 0; r < n; ++r) {
      batch.tokens.push_back(tokens[static_cast<size_t>(begin + r)]);
      batch.positions.push_back(begin + r);
    }
    RETURN_IF_ERROR(decoder->Run(batch));
    RETURN_IF_ERROR(decoder->Head(d_rows.as<int32_t>(), n, d_logits.as<float>()));
    RETURN_IF_ERROR(stream.Synchronize("logits"));
    const size_t size = static_cast<size_t>(n) * vocab * sizeof(float);
    RETURN_IF_ERROR(CudaStatus(
        cudaMemcpy(logits.data(), d_logits.as<float>(), size, cudaMemcpyDeviceToHost), "logits"));
    file.write(reinterpret_cast<const char*>(logits.data()), static_cast<std::streamsize>(size));
  }
  file.close();
  return file ? absl::OkStatus() : absl::UnavailableError("cannot write " + out);
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: cuda_logits MODEL TOKENS CHUNK OUT\n");
    return 2;
  }
  const absl::Status status = paceline::Run(argv[1], argv[2], std::atoi(argv[3]), argv[4]);
  if (!status.ok()) std::fprintf(stderr, "error: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

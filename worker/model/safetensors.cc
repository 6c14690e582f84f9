#include "worker/model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cpu/bf16.h"
#include "nlohmann/json.hpp"
#include "worker/model/json_text.h"

namespace paceline {
namespace {

using nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxRank = 16;
constexpr size_t kMaxIndexBytes = size_t{64} << 20;
constexpr size_t kMaxShards = 4096;

struct DtypeEntry {
  const char* name;
  int bytes;
  TensorDtype dtype;
};
constexpr DtypeEntry kDtypes[] = {
    {"F32", 4, TensorDtype::kF32},      {"F16", 2, TensorDtype::kF16},
    {"BF16", 2, TensorDtype::kBf16},    {"F64", 8, TensorDtype::kOther},
    {"I64", 8, TensorDtype::kOther},    {"I32", 4, TensorDtype::kOther},
    {"I16", 2, TensorDtype::kOther},    {"I8", 1, TensorDtype::kOther},
    {"U64", 8, TensorDtype::kOther},    {"U32", 4, TensorDtype::kOther},
    {"U16", 2, TensorDtype::kOther},    {"U8", 1, TensorDtype::kOther},
    {"BOOL", 1, TensorDtype::kOther},   {"F8_E4M3", 1, TensorDtype::kOther},
    {"F8_E5M2", 1, TensorDtype::kOther}};

std::string Shown(const std::string& name) {
  std::string text;
  for (char c : name.substr(0, 120)) text += c >= ' ' && c < 127 ? c : '?';
  return text;
}

absl::Status BadTensor(const std::string& file, const std::string& name, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": tensor ", Shown(name), ": ", why));
}

// A JSON number that is an unsigned integer of at most 63 bits.
bool ReadSize(const json& value, int64_t* out) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned()) {
    if (value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return false;
  } else if (value.get<int64_t>() < 0) {
    return false;
  }
  *out = value.get<int64_t>();
  return true;
}

const DtypeEntry* FindDtype(const std::string& name) {
  for (const DtypeEntry& entry : kDtypes) {
    if (name == entry.name) return &entry;
  }
  return nullptr;
}

absl::StatusOr<TensorView> ParseTensor(const std::string& file, const std::string& name,
                                       const json& entry, std::span<const uint8_t> data) {
  if (!entry.is_object()) return BadTensor(file, name, "its header entry is not an object");
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) return BadTensor(file, name, "lacks a dtype");
  TensorView view;
  view.file = &file;
  view.dtype_name = dtype->get<std::string>();
  const DtypeEntry* known = FindDtype(view.dtype_name);
  if (known == nullptr) {
    return BadTensor(file, name, absl::StrCat("unknown dtype ", Shown(view.dtype_name)));
  }
  view.dtype = known->dtype;

  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array()) return BadTensor(file, name, "lacks a shape");
  if (shape->size() > kMaxRank) {
    return BadTensor(file, name, absl::StrCat(shape->size(), " dimensions, at most ", kMaxRank));
  }
  int64_t bytes = known->bytes;
  bool overflow = false;
  for (const json& dim : *shape) {
    int64_t size = 0;
    if (!ReadSize(dim, &size)) return BadTensor(file, name, "a dimension is not a size");
    view.shape.push_back(size);
    overflow |= __builtin_mul_overflow(bytes, size, &bytes);
  }
  if (overflow) return BadTensor(file, name, "its size overflows 63 bits");

  const auto offsets = entry.find("data_offsets");
  int64_t begin = 0;
  int64_t end = 0;
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !ReadSize((*offsets)[0], &begin) || !ReadSize((*offsets)[1], &end)) {
    return BadTensor(file, name, "data_offsets is not a pair of sizes");
  }
  if (begin > end || end > static_cast<int64_t>(data.size())) {
    return BadTensor(file, name,
                     absl::StrCat("bytes [", begin, ", ", end, ") lie outside the file's ",
                                  data.size(), " bytes of data"));
  }
  if (end - begin != bytes) {
    return BadTensor(file, name,
                     absl::StrCat("shape ", ShapeText(view.shape), " of ", view.dtype_name,
                                  " needs ", bytes, " bytes, data_offsets give ", end - begin));
  }
  view.bytes = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(bytes));
  return view;
}

// The format: tensors cover the data without overlap and without gap.
absl::Status CheckCover(const std::string& file, const std::map<std::string, TensorView>& tensors,
                        std::span<const uint8_t> data) {
  std::vector<std::pair<const uint8_t*, const std::string*>> order;
  for (const auto& [name, view] : tensors) {
    if (!view.bytes.empty()) order.emplace_back(view.bytes.data(), &name);
  }
  std::sort(order.begin(), order.end());
  const uint8_t* next = data.data();
  const std::string* before = nullptr;
  for (const auto& [begin, name] : order) {
    if (begin < next) {
      return BadTensor(file, *name, absl::StrCat("overlaps tensor ", Shown(*before)));
    }
    if (begin > next) {
      return BadTensor(file, *name, absl::StrCat("a gap of ", begin - next, " bytes before it"));
    }
    next = begin + tensors.at(*name).bytes.size();
    before = name;
  }
  const size_t rest = static_cast<size_t>(data.data() + data.size() - next);
  if (rest != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", rest, " bytes behind the last tensor belong to none"));
  }
  return absl::OkStatus();
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t mantissa = half & 0x3ff;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    const float small = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -small : small;
  }
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

int64_t TensorView::num_elements() const {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) absl::StrAppend(&text, i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

absl::StatusOr<std::map<std::string, TensorView>> ParseSafetensors(std::span<const uint8_t> data,
                                                                   const std::string& file) {
  if (data.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", data.size(), " bytes are too few for a safetensors header"));
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= static_cast<uint64_t>(data[i]) << (8 * i);
  if (length > kMaxSafetensorsHeader) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": header of ", length, " bytes, the limit is ", kMaxSafetensorsHeader));
  }
  if (length > data.size() - kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": header of ", length, " bytes, the file has only ", data.size()));
  }
  const std::string_view text(reinterpret_cast<const char*>(data.data()) + kLengthBytes, length);
  ASSIGN_OR_RETURN(const json header, ParseJsonObject(text, file + ": header"));
  if (header.size() > kMaxTensors) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": ", header.size(), " tensors, at most ", kMaxTensors));
  }
  const std::span<const uint8_t> body = data.subspan(kLengthBytes + length);
  std::map<std::string, TensorView> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(TensorView view, ParseTensor(file, name, entry, body));
    tensors.emplace(name, std::move(view));
  }
  RETURN_IF_ERROR(CheckCover(file, tensors, body));
  return tensors;
}

class ModelTensors::MappedFile {
 public:
  explicit MappedFile(std::string path) : path_(std::move(path)) {}
  ~MappedFile() {
    if (data_ != nullptr) munmap(data_, size_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  absl::Status Map() {
    const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return absl::NotFoundError(absl::StrCat(path_, ": ", std::strerror(errno)));
    struct stat st {};
    const bool regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    if (!regular) {
      close(fd);
      return absl::InvalidArgumentError(absl::StrCat(path_, ": not a regular file"));
    }
    size_ = static_cast<size_t>(st.st_size);
    void* mapped = size_ == 0 ? nullptr : mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    const int error = errno;
    close(fd);
    if (mapped == MAP_FAILED) {
      return absl::UnavailableError(absl::StrCat(path_, ": mmap: ", std::strerror(error)));
    }
    data_ = mapped;
    return absl::OkStatus();
  }

  std::span<const uint8_t> bytes() const { return {static_cast<const uint8_t*>(data_), size_}; }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

ModelTensors::ModelTensors() = default;
ModelTensors::ModelTensors(ModelTensors&&) noexcept = default;
ModelTensors& ModelTensors::operator=(ModelTensors&&) noexcept = default;
ModelTensors::~ModelTensors() = default;

// `wanted`: tensor -> shard by the index; every tensor of this shard must be in it and back.
absl::Status ModelTensors::AddFile(const std::string& path,
                                   const std::map<std::string, std::string>* wanted,
                                   const std::string& shard) {
  auto& file = files_.emplace_back(std::make_unique<MappedFile>(path));
  RETURN_IF_ERROR(file->Map());
  ASSIGN_OR_RETURN(auto parsed, ParseSafetensors(file->bytes(), file->path()));
  for (auto& [name, view] : parsed) {
    if (wanted != nullptr) {
      const auto it = wanted->find(name);
      if (it == wanted->end() || it->second != shard) {
        return BadTensor(path, name, "the index does not place it in this shard");
      }
    }
    view.file = &file->path();
    tensors_.emplace(name, std::move(view));
  }
  return absl::OkStatus();
}

absl::Status ModelTensors::OpenShards(const std::string& dir, const std::string& index_path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(index_path, kMaxIndexBytes));
  ASSIGN_OR_RETURN(const json index, ParseJsonObject(text, index_path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": lacks a weight_map"));
  }
  std::map<std::string, std::string> wanted;
  std::vector<std::string> shards;
  for (const auto& [name, value] : map->items()) {
    const std::string shard = value.is_string() ? value.get<std::string>() : "";
    if (shard.empty() || shard.find('/') != std::string::npos || shard.front() == '.' ||
        shard.find('\0') != std::string::npos) {
      return BadTensor(index_path, name, "its shard is not the name of a file in the same folder");
    }
    wanted.emplace(name, shard);
    shards.push_back(shard);
  }
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  if (shards.size() > kMaxShards) {
    return absl::InvalidArgumentError(
        absl::StrCat(index_path, ": ", shards.size(), " shards, at most ", kMaxShards));
  }
  for (const std::string& shard : shards) {
    RETURN_IF_ERROR(AddFile(absl::StrCat(dir, "/", shard), &wanted, shard));
  }
  for (const auto& [name, shard] : wanted) {
    if (Find(name) == nullptr) {
      return BadTensor(index_path, name, absl::StrCat("missing from its shard ", Shown(shard)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelTensors> ModelTensors::Open(const std::string& dir) {
  ModelTensors tensors;
  const std::string index = dir + "/model.safetensors.index.json";
  if (access(index.c_str(), F_OK) == 0) {
    RETURN_IF_ERROR(tensors.OpenShards(dir, index));
  } else {
    RETURN_IF_ERROR(tensors.AddFile(dir + "/model.safetensors", nullptr, ""));
  }
  return tensors;
}

const TensorView* ModelTensors::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

void ReadFloat(const TensorView& tensor, int64_t begin, int64_t count, float* out) {
  const uint8_t* bytes = tensor.bytes.data();
  if (tensor.dtype == TensorDtype::kF32) {
    std::memcpy(out, bytes + begin * 4, static_cast<size_t>(count) * 4);
    return;
  }
  CHECK(tensor.dtype == TensorDtype::kF16 || tensor.dtype == TensorDtype::kBf16);
  const bool half = tensor.dtype == TensorDtype::kF16;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, bytes + (begin + i) * 2, 2);
    out[i] = half ? HalfToFloat(bits) : kernels::ToFloat({bits});
  }
}

void ReadBf16(const TensorView& tensor, int64_t begin, int64_t count, uint16_t* out) {
  if (tensor.dtype == TensorDtype::kBf16) {
    std::memcpy(out, tensor.bytes.data() + begin * 2, static_cast<size_t>(count) * 2);
    return;
  }
  float chunk[512];
  for (int64_t done = 0; done < count; done += 512) {
    const int64_t n = std::min<int64_t>(512, count - done);
    ReadFloat(tensor, begin + done, n, chunk);
    for (int64_t i = 0; i < n; ++i) out[done + i] = kernels::ToBf16(chunk[i]).bits;
  }
}

}  // namespace paceline

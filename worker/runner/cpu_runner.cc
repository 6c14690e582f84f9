#include "worker/runner/cpu_runner.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

// Grows with every change of a CPU kernel that changes bits.
constexpr int kCpuKernelBuild = 1;
constexpr size_t kMaxInFlight = 2;
// Rows whose logits are held at once.
constexpr size_t kHeadGroup = 64;

absl::Status OutOfRange(const char* option, int64_t value, const std::string& limit) {
  return absl::InvalidArgumentError(
      absl::StrCat("CPU runner: ", option, " is ", value, "; it must be ", limit));
}

int32_t NumThreads(const CpuRunnerOptions& options) {
  if (options.threads > 0) return options.threads;
  return std::max(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
}

absl::Status CheckOptions(const ModelConfig& config, const CpuRunnerOptions& o) {
  if (o.threads < 0 || o.threads > 1024) return OutOfRange("threads", o.threads, "in [0, 1024]");
  if (o.block_size != 16 && o.block_size != 32 && o.block_size != 64) {
    return OutOfRange("block_size", o.block_size, "16, 32 or 64");
  }
  if (o.max_slots < 1 || o.max_slots > 65536) {
    return OutOfRange("max_slots", o.max_slots, "in [1, 65536]");
  }
  if (o.num_blocks < 0) return OutOfRange("num_blocks", o.num_blocks, "at least 0");
  if (o.max_hidden_slots < 0) {
    return OutOfRange("max_hidden_slots", o.max_hidden_slots, "at least 0");
  }
  if (o.max_context < 0 || o.max_context > config.max_context) {
    return OutOfRange("max_context", o.max_context,
                      absl::StrCat("in [0, ", config.max_context, "], the model's"));
  }
  if (o.synthetic_acceptance < 0 || (o.synthetic_acceptance > 0 && config.vocab_size < 128)) {
    return OutOfRange("synthetic_acceptance", static_cast<int64_t>(o.synthetic_acceptance),
                      "at least 0, with a vocabulary of at least 128");
  }
  if (o.isa.has_value() && !kernels::IsaSupported(*o.isa)) {
    return absl::InvalidArgumentError(
        absl::StrCat("CPU runner: this machine lacks ", kernels::IsaName(*o.isa)));
  }
  return absl::OkStatus();
}

absl::StatusOr<kernels::KvShape> PoolShape(const ModelConfig& config, const CpuRunnerOptions& o) {
  kernels::KvShape shape;
  shape.block_size = o.block_size;
  shape.kv_heads = config.num_kv_heads;
  shape.head_dim = config.head_dim;
  const int64_t block = KvPoolCpu::BlockBytes(shape, config.num_layers);
  const int64_t blocks = o.num_blocks > 0 ? o.num_blocks : o.kv_bytes / block;
  if (blocks < 1) {
    return OutOfRange("kv_bytes", o.kv_bytes, absl::StrCat("at least one block, ", block));
  }
  shape.num_blocks = static_cast<int32_t>(std::min<int64_t>(blocks, int64_t{1} << 24));
  return shape;
}

RunnerInfo InfoOf(const CpuModel& model, const CpuRunnerOptions& o, int32_t num_blocks) {
  RunnerInfo info;
  info.num_layers = model.config.num_layers;
  info.vocab_size = model.config.vocab_size;
  info.max_context = o.max_context > 0 ? o.max_context : model.config.max_context;
  info.num_blocks = num_blocks;
  info.block_size = o.block_size;
  info.max_slots = o.max_slots;
  info.eos_token_ids = model.config.eos_token_ids;
  info.model_fingerprint = model.fingerprint;
  info.numerics_fingerprint = CpuNumericsFingerprint(o.isa.value_or(kernels::DetectIsa()));
  if (o.synthetic_acceptance > 0) info.numerics_fingerprint += "-synthetic";
  return info;
}

}  // namespace

std::string CpuNumericsFingerprint(kernels::Isa isa) {
  return absl::StrCat("cpu-", kernels::IsaName(isa), "-bf16-kvbf16-tp1-s", kSamplerVersion, "-k",
                      kCpuKernelBuild);
}

absl::StatusOr<std::unique_ptr<CpuRunner>> CpuRunner::Create(std::shared_ptr<const CpuModel> model,
                                                             CpuRunnerOptions options) {
  RETURN_IF_ERROR(CheckOptions(model->config, options));
  ASSIGN_OR_RETURN(const kernels::KvShape shape, PoolShape(model->config, options));
  ASSIGN_OR_RETURN(KvPoolCpu kv, KvPoolCpu::Create(shape, model->config.num_layers));
  RunnerInfo info = InfoOf(*model, options, shape.num_blocks);
  return std::unique_ptr<CpuRunner>(
      new CpuRunner(std::move(model), std::move(options), std::move(kv), std::move(info)));
}

CpuRunner::CpuRunner(std::shared_ptr<const CpuModel> model, CpuRunnerOptions options, KvPoolCpu kv,
                     RunnerInfo info)
    : model_(std::move(model)),
      options_(std::move(options)),
      host_("CPU runner", std::move(info), options_.max_hidden_slots),
      pool_(NumThreads(options_), options_.isa.value_or(kernels::DetectIsa())),
      kv_(std::move(kv)),
      decoder_(*model_, kv_, pool_, host_.max_position(), options_.max_hidden_slots) {
  if (options_.synthetic_acceptance > 0) {
    synthetic_.emplace(host_.info().vocab_size, host_.info().eos_token_ids,
                       options_.synthetic_acceptance);
  }
}

// --- A step ---

absl::Status CpuRunner::Launch(const StepPlan& plan) {
  if (plans_.size() >= kMaxInFlight) {
    return absl::InternalError("CPU runner: a third plan in flight");
  }
  RETURN_IF_ERROR(host_.Check(plan));
  plans_.push_back(plan);
  return absl::OkStatus();
}

absl::StatusOr<StepResult> CpuRunner::Wait() {
  if (plans_.empty()) return absl::InternalError("CPU runner: Wait without Launch");
  const StepPlan plan = std::move(plans_.front());
  plans_.pop_front();
  return Run(plan);
}

absl::StatusOr<StepResult> CpuRunner::Run(const StepPlan& plan) {
  RETURN_IF_ERROR(host_.Begin(plan));
  moves_.Clear();
  host_.BlockCopies(&moves_);
  kv_.Copy(moves_.copies, pool_);
  RETURN_IF_ERROR(
      host_.FillBatch([this](int32_t slot) { return decoder_.saved_rows(slot); }, &batch_));
  if (!batch_.tokens.empty()) decoder_.Run(batch_);
  DrawTokens();
  moves_.Clear();
  StepResult result = host_.Finish(outputs_, &moves_);
  kv_.Copy(moves_.copies, pool_);
  return result;
}

// --- Sampling ---

void CpuRunner::DrawTokens() {
  outputs_.assign(host_.draws().size(), {});
  for (size_t begin = 0; begin < outputs_.size();) {
    const size_t end = std::min(begin + kHeadGroup, outputs_.size());
    DrawSome(begin, end);
    begin = end;
  }
}

void CpuRunner::DrawSome(size_t begin, size_t end) {
  const std::vector<HostState::Draw>& draws = host_.draws();
  const auto vocab = static_cast<size_t>(info().vocab_size);
  head_rows_.clear();
  for (size_t d = begin; d < end; ++d) {
    const int32_t row = draws[d].row;  // parallel samples share one
    if (head_rows_.empty() || head_rows_.back() != row) head_rows_.push_back(row);
  }
  if (logits_.size() < head_rows_.size() * vocab) logits_.resize(head_rows_.size() * vocab);
  decoder_.Head(head_rows_, logits_.data());

  params_.clear();
  if (paths_.size() < end - begin) paths_.resize(end - begin);
  size_t at = 0;
  for (size_t d = begin; d < end; ++d) {
    while (head_rows_[at] != draws[d].row) ++at;
    params_.push_back(host_.ParamsOf(draws[d], &paths_[d - begin]));
    params_.back().logits = logits_.data() + at * vocab;
    if (options_.logits_probe) {
      options_.logits_probe(host_.SlotOf(draws[d]), static_cast<int32_t>(params_.back().position),
                            {params_.back().logits, vocab});
    }
  }
  CHECK(kernels::Sample(params_.data(), static_cast<int64_t>(params_.size()),
                        outputs_.data() + begin, pool_) == kernels::CpuResult::kOk);
  if (!synthetic_.has_value()) return;
  for (size_t i = 0; i < params_.size(); ++i) synthetic_->Replace(params_[i], &outputs_[begin + i]);
}

}  // namespace paceline

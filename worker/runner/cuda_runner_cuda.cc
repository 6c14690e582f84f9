#include "worker/runner/cuda_runner_cuda.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

using kernels::CudaSampleResult;

// Grows with every change of a CUDA kernel that changes bits.
constexpr int kCudaKernelBuild = 3;
constexpr size_t kMaxInFlight = 2;
constexpr int32_t kHeadGroup = 64;                 // rows whose logits are held at once
constexpr int64_t kMostBlocks = int64_t{1} << 24;  // of the KV pool: more are never in use
// Left free on the GPU, for the driver's own needs and growth.
constexpr int64_t kLeastMargin = int64_t{64} << 20;

absl::Status OutOfRange(const char* option, int64_t value, const std::string& limit) {
  return absl::InvalidArgumentError(
      absl::StrCat("CUDA runner: ", option, " is ", value, "; it must be ", limit));
}

absl::Status CheckOptions(const ModelConfig& config, const CudaRunnerOptions& o) {
  if (o.block_size != 16 && o.block_size != 32 && o.block_size != 64) {
    return OutOfRange("block_size", o.block_size, "16, 32 or 64");
  }
  if (o.max_slots < 1 || o.max_slots > 65535) {
    return OutOfRange("max_slots", o.max_slots, "in [1, 65535]");
  }
  if (o.num_blocks < 0) return OutOfRange("num_blocks", o.num_blocks, "at least 0");
  if (o.kv_bytes < 0) return OutOfRange("kv_bytes", o.kv_bytes, "at least 0");
  if (o.max_batch_rows < 1) return OutOfRange("max_batch_rows", o.max_batch_rows, "at least 1");
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
  return absl::OkStatus();
}

CudaDecoderOptions DecoderOptions(const CudaRunnerOptions& o, int32_t max_context) {
  CudaDecoderOptions options;
  options.max_position = max_context + kPositionSlack;
  options.num_hidden_slots = o.max_hidden_slots;
  options.max_rows = o.max_batch_rows;
  options.partial_bytes = o.partial_bytes;
  return options;
}

int64_t SamplerBytes(const ModelConfig& config) {
  return int64_t{3} * kHeadGroup * config.vocab_size * static_cast<int64_t>(sizeof(float)) +
         kernels::CudaSampleWorkspaceBytes(kHeadGroup, config.vocab_size);
}

struct MemoryPlan {
  int64_t weights = 0, workspace = 0, graphs = 0, kv = 0, free = 0;
  int32_t num_blocks = 0;
};

// Blocks of the KV pool: as asked, or what is free behind weights, workspace and graphs.
absl::StatusOr<MemoryPlan> PlanMemory(const CudaModel& model, const CudaRunnerOptions& o,
                                      int32_t max_context, kernels::CudaKvShape shape) {
  size_t free_bytes = 0, total_bytes = 0;
  RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "GPU memory"));
  const auto total = static_cast<int64_t>(total_bytes);
  MemoryPlan plan;
  plan.free = static_cast<int64_t>(free_bytes);
  plan.weights = model.weights.memory.bytes();
  plan.workspace = CudaDecoder::WorkspaceBytes(model.config, DecoderOptions(o, max_context)) +
                   SamplerBytes(model.config);
  if (o.graphs) plan.graphs = StepGraphs::MemoryBytes(model.config.num_layers);
  const int64_t block = KvPoolCuda::BlockBytes(shape, model.config.num_layers);
  const int64_t taken = plan.workspace + plan.graphs;
  const int64_t room = plan.free - taken - std::max(kLeastMargin, total / 50);
  int64_t blocks = o.num_blocks;
  if (blocks == 0) blocks = (o.kv_bytes > 0 ? o.kv_bytes : std::max<int64_t>(room, 0)) / block;
  if (blocks < 1 && o.kv_bytes > 0) {
    return OutOfRange("kv_bytes", o.kv_bytes, absl::StrCat("at least one block, ", block));
  }
  if (blocks < 1 || blocks * block > room) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "too little GPU memory: beside the weights (", GibText(plan.weights), ") ",
        GibText(plan.free), " of ", GibText(total), " are free; the workspace takes ",
        GibText(plan.workspace), ", CUDA graphs ", GibText(plan.graphs), ", the KV pool ",
        GibText(std::max<int64_t>(blocks, 1) * block),
        ": lower --kv-bytes, --kv-blocks, --max-batch-tokens or --max-context, go without graphs "
        "(--no-cuda-graphs), or take a smaller model"));
  }
  blocks = std::min(blocks, kMostBlocks);
  plan.num_blocks = static_cast<int32_t>(blocks);
  plan.kv = blocks * block;
  plan.free -= taken + plan.kv;
  return plan;
}

std::string TextOf(const MemoryPlan& plan, const CudaDevice& device, int32_t block_size,
                   int32_t max_context) {
  const int64_t fits = std::min<int64_t>(int64_t{plan.num_blocks} * block_size, max_context);
  return absl::StrCat("gpu=\"", device.name, "\" weights=\"", GibText(plan.weights),
                      "\" workspace=\"", GibText(plan.workspace), "\" graphs=\"",
                      GibText(plan.graphs), "\" kv=\"", GibText(plan.kv), "\" free=\"",
                      GibText(plan.free), "\" longest_context=", fits,
                      " flags=\"--kv-bytes --max-batch-tokens --max-context --cuda-graphs\"");
}

}  // namespace

std::string CudaNumericsFingerprint(int32_t compute_capability) {
  return absl::StrCat("cuda-sm", compute_capability, "-bf16-kvbf16-tp1-s", kSamplerVersion, "-k",
                      kCudaKernelBuild);
}

absl::StatusOr<std::unique_ptr<CudaRunner>> CudaRunner::Create(
    std::shared_ptr<const CudaModel> model, const CudaDevice& device, CudaRunnerOptions options) {
  const ModelConfig& config = model->config;
  RETURN_IF_ERROR(CheckOptions(config, options));
  const int32_t max_context = options.max_context > 0 ? options.max_context : config.max_context;
  kernels::CudaKvShape shape;
  shape.block_size = options.block_size;
  shape.kv_heads = config.num_kv_heads;
  shape.head_dim = config.head_dim;
  ASSIGN_OR_RETURN(const MemoryPlan memory, PlanMemory(*model, options, max_context, shape));
  shape.num_blocks = memory.num_blocks;
  RunnerInfo info;
  info.num_layers = config.num_layers;
  info.vocab_size = config.vocab_size;
  info.max_context = max_context;
  info.num_blocks = memory.num_blocks;
  info.block_size = options.block_size;
  info.max_slots = options.max_slots;
  info.eos_token_ids = config.eos_token_ids;
  info.model_fingerprint = model->fingerprint;
  info.numerics_fingerprint = CudaNumericsFingerprint(device.compute_capability);
  info.runs_beside = true;
  if (options.synthetic_acceptance > 0) info.numerics_fingerprint += "-synthetic";

  ASSIGN_OR_RETURN(CudaStream stream, CudaStream::Create());
  ASSIGN_OR_RETURN(KvPoolCuda kv, KvPoolCuda::Create(shape, config.num_layers));
  std::unique_ptr<CudaRunner> runner(new CudaRunner(
      std::move(model), std::move(options), std::move(info), std::move(stream), std::move(kv)));
  ASSIGN_OR_RETURN(runner->decoder_,
                   CudaDecoder::Create(*runner->model_, runner->kv_, runner->stream_.get(),
                                       DecoderOptions(runner->options_, max_context)));
  RETURN_IF_ERROR(runner->AllocateSampler());
  runner->memory_text_ = TextOf(memory, device, shape.block_size, max_context);
  return runner;
}

CudaRunner::CudaRunner(std::shared_ptr<const CudaModel> model, CudaRunnerOptions options,
                       RunnerInfo info, CudaStream stream, KvPoolCuda kv)
    : model_(std::move(model)),
      options_(std::move(options)),
      host_("CUDA runner", std::move(info), options_.max_hidden_slots),
      stream_(std::move(stream)),
      kv_(std::move(kv)),
      edit_of_(static_cast<size_t>(host_.info().vocab_size), -1) {
  if (options_.synthetic_acceptance > 0) {
    synthetic_.emplace(host_.info().vocab_size, host_.info().eos_token_ids,
                       options_.synthetic_acceptance);
  }
}

// The stream must be idle before the memory that it uses goes.
CudaRunner::~CudaRunner() { cudaStreamSynchronize(stream_.get()); }

absl::Status CudaRunner::AllocateSampler() {
  const int32_t vocab = model_->config.vocab_size;
  const int64_t bytes = int64_t{kHeadGroup} * vocab * static_cast<int64_t>(sizeof(float));
  for (DeviceMemory* memory : {&logits_, &values_, &scores_}) {
    RETURN_IF_ERROR(memory->GrowTo(bytes, "the sampler's workspace"));
  }
  RETURN_IF_ERROR(sampler_workspace_.GrowTo(kernels::CudaSampleWorkspaceBytes(kHeadGroup, vocab),
                                            "the sampler's workspace"));
  const int64_t drawn = int64_t{options_.max_batch_rows} * int64_t{sizeof(CudaSampleResult)};
  RETURN_IF_ERROR(drawn_.GrowTo(drawn, "the sampler's results"));
  return drawn_host_.GrowTo(drawn, "pinned memory for the sampler's results");
}

// --- A step ---

absl::Status CudaRunner::Launch(const StepPlan& plan) {
  if (results_.size() + (in_flight_ ? 1 : 0) >= kMaxInFlight) {
    return absl::InternalError("CUDA runner: a third plan in flight");
  }
  RETURN_IF_ERROR(host_.Check(plan));
  RETURN_IF_ERROR(Complete());
  plan_ = plan;
  RETURN_IF_ERROR(host_.Begin(plan_));
  RETURN_IF_ERROR(Enqueue());
  in_flight_ = true;
  return absl::OkStatus();
}

absl::StatusOr<StepResult> CudaRunner::Wait() {
  if (results_.empty()) {
    if (!in_flight_) return absl::InternalError("CUDA runner: Wait without Launch");
    RETURN_IF_ERROR(Complete());
  }
  StepResult result = std::move(results_.front());
  results_.pop_front();
  return result;
}

absl::Status CudaRunner::Enqueue() {
  moves_.Clear();
  host_.BlockCopies(&moves_);
  RETURN_IF_ERROR(CopySlots(moves_, &copy_staging_));
  RETURN_IF_ERROR(
      host_.FillBatch([this](int32_t slot) { return decoder_->saved_rows(slot); }, &batch_));
  if (!batch_.tokens.empty()) RETURN_IF_ERROR(decoder_->Prepare(batch_, options_.graphs));
  RETURN_IF_ERROR(PrepareDraws());
  RETURN_IF_ERROR(RunKernels());
  if (params_.empty()) return absl::OkStatus();
  return CudaStatus(cudaMemcpyAsync(drawn_host_.as<uint8_t>(), drawn_.as<uint8_t>(),
                                    params_.size() * sizeof(CudaSampleResult),
                                    cudaMemcpyDeviceToHost, stream_.get()),
                    "read-back of tokens");
}

absl::Status CudaRunner::RunKernels() {
  if (!graph_shape_.has_value()) return EnqueueKernels();
  // Everything that a graph's kernels know and that may be replaced by something larger.
  const int64_t memory = decoder_->bytes() + draw_staging_.bytes() + drawn_.bytes();
  RETURN_IF_ERROR(graphs_.Run(
      *graph_shape_, memory, [this] { return EnqueueKernels(); }, stream_.get()));
  return options_.logits_probe ? Probe(0, params_.size()) : absl::OkStatus();
}

// All kernels of a step, on data that lies on the device.
absl::Status CudaRunner::EnqueueKernels() {
  if (!batch_.tokens.empty()) RETURN_IF_ERROR(decoder_->Enqueue());
  for (size_t g = 0; g + 1 < group_begin_.size(); ++g) {
    RETURN_IF_ERROR(EnqueueGroup(g));
    if (options_.logits_probe && !graph_shape_.has_value()) {
      RETURN_IF_ERROR(Probe(group_begin_[g], group_begin_[g + 1]));
    }
  }
  return absl::OkStatus();
}

absl::Status CudaRunner::CopySlots(const HostState::KvMoves& moves, StagingCuda* staging) {
  if (moves.copies.empty()) return absl::OkStatus();
  std::vector<kernels::CudaKvSlotCopy> copies;
  copies.reserve(moves.copies.size());
  for (const kernels::KvSlotCopy& move : moves.copies) {
    copies.push_back({.src = move.src, .dst = move.dst, .count = move.count});
  }
  staging->Clear();
  const StagingCuda::Place copies_at = staging->Add(copies);
  const StagingCuda::Place groups_at = staging->Add(moves.group_begin);
  RETURN_IF_ERROR(staging->Upload(stream_.get()));
  return kv_.Copy(staging->At<kernels::CudaKvSlotCopy>(copies_at), staging->At<int32_t>(groups_at),
                  static_cast<int32_t>(moves.group_begin.size()) - 1, stream_.get());
}

// --- Sampling ---

absl::Status CudaRunner::PrepareDraws() {
  RETURN_IF_ERROR(StageDraws());
  graph_shape_.reset();
  if (decoder_->shape().has_value() && !batch_.tokens.empty() && PadDraws()) {
    graph_shape_ = {*decoder_->shape(), static_cast<int32_t>(sample_rows_.size())};
  }
  draw_staging_.Clear();
  if (sample_rows_.empty()) return absl::OkStatus();
  const auto bytes = static_cast<int64_t>(sample_rows_.size() * sizeof(CudaSampleResult));
  RETURN_IF_ERROR(drawn_.GrowTo(bytes, "the sampler's results"));
  RETURN_IF_ERROR(drawn_host_.GrowTo(bytes, "pinned memory for the sampler's results"));
  head_rows_at_ = draw_staging_.Add(head_rows_);
  sample_rows_at_ = draw_staging_.Add(sample_rows_);
  edits_at_ = draw_staging_.Add(edits_);  // last: their number is no part of a shape
  return draw_staging_.Upload(stream_.get());
}

// To a count of CountBucket, greedy draws of the first row; false where draws share rows or a probe
// would miss some.
bool CudaRunner::PadDraws() {
  if (sample_rows_.empty() || head_rows_.size() != sample_rows_.size()) return false;
  if (options_.logits_probe && sample_rows_.size() > kHeadGroup) return false;
  const auto count = static_cast<size_t>(CountBucket(static_cast<int32_t>(sample_rows_.size())));
  sample_rows_.resize(count, {.temperature = 0});
  head_rows_.resize(count, head_rows_.front());
  group_begin_.clear();
  for (size_t begin = 0; begin < count; begin += kHeadGroup) group_begin_.push_back(begin);
  group_begin_.push_back(count);
  group_rows_.assign(group_begin_.begin(), group_begin_.end());
  return true;
}

// Draws in groups that share the logits' memory; parallel samples share a row.
absl::Status CudaRunner::StageDraws() {
  params_.clear();
  sample_rows_.clear();
  edits_.clear();
  head_rows_.clear();
  group_begin_.assign(1, 0);
  group_rows_.assign(1, 0);
  for (const HostState::Draw& draw : host_.draws()) {
    const bool fresh = static_cast<int32_t>(head_rows_.size()) == group_rows_.back() ||
                       head_rows_.back() != draw.row;
    const size_t in_group = sample_rows_.size() - group_begin_.back();
    if (in_group == kHeadGroup) {
      group_begin_.push_back(sample_rows_.size());
      group_rows_.push_back(static_cast<int32_t>(head_rows_.size()));
      head_rows_.push_back(draw.row);
    } else if (fresh) {
      head_rows_.push_back(draw.row);
    }
    AddDraw(draw, static_cast<int32_t>(head_rows_.size()) - 1 - group_rows_.back());
    if (const kernels::SampleParams& p = params_.back();
        p.num_candidates > kernels::kMaxRankedIds || p.top_logprobs > kernels::kMaxRankedIds) {
      return host_.Fault(
          absl::StrCat("more than ", kernels::kMaxRankedIds, " candidates or logprobs of a row"));
    }
  }
  group_begin_.push_back(sample_rows_.size());
  group_rows_.push_back(static_cast<int32_t>(head_rows_.size()));
  return absl::OkStatus();
}

void CudaRunner::AddDraw(const HostState::Draw& draw, int32_t logits_row) {
  const kernels::SampleParams& p = params_.emplace_back(host_.ParamsOf(draw, &path_));
  const auto edit_begin = static_cast<int32_t>(edits_.size());
  AddEdits(p);
  sample_rows_.push_back({.seed = p.seed,
                          .sample = p.sample,
                          .position = p.position,
                          .logits_row = logits_row,
                          .temperature = p.temperature,
                          .top_k = p.top_k,
                          .top_p = p.top_p,
                          .min_p = p.min_p,
                          .repetition_penalty = p.repetition_penalty,
                          .presence_penalty = p.presence_penalty,
                          .frequency_penalty = p.frequency_penalty,
                          .edit_begin = edit_begin,
                          .edit_end = static_cast<int32_t>(edits_.size()),
                          .top_logprobs = p.top_logprobs,
                          .num_candidates = p.num_candidates});
}

// Bias, history and bans by id. The path counts as output.
void CudaRunner::AddEdits(const kernels::SampleParams& p) {
  const size_t begin = edits_.size();
  const auto edit = [&](int32_t id) -> kernels::CudaSampleEdit* {
    if (id < 0 || id >= p.vocab_size) return nullptr;
    int32_t& at = edit_of_[static_cast<size_t>(id)];
    if (at < 0) {
      at = static_cast<int32_t>(edits_.size());
      edits_.push_back({.id = id});
    }
    return &edits_[static_cast<size_t>(at)];
  };
  const auto count = [&](int32_t id, bool output) {
    kernels::CudaSampleEdit* e = edit(id);
    if (e != nullptr) e->output_count = std::max(e->output_count, 0) + (output ? 1 : 0);
  };
  for (int32_t i = 0; i < p.num_logit_bias; ++i) {
    kernels::CudaSampleEdit* e = edit(p.logit_bias[i].first);
    if (e != nullptr) e->bias += p.logit_bias[i].second;
  }
  if (p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f) {
    for (int32_t i = 0; i < p.history_len; ++i) count(p.history[i], i >= p.prompt_len);
    for (int32_t i = 0; i < p.path_len; ++i) count(p.path[i], true);
  }
  for (int32_t i = 0; i < p.num_banned; ++i) {
    kernels::CudaSampleEdit* e = edit(p.banned[i]);
    if (e != nullptr) e->banned = 1;
  }
  for (size_t e = begin; e < edits_.size(); ++e) edit_of_[static_cast<size_t>(edits_[e].id)] = -1;
}

absl::Status CudaRunner::EnqueueGroup(size_t group) {
  const size_t begin = group_begin_[group], end = group_begin_[group + 1];
  if (begin == end) return absl::OkStatus();
  RETURN_IF_ERROR(decoder_->Head(draw_staging_.At<int32_t>(head_rows_at_) + group_rows_[group],
                                 group_rows_[group + 1] - group_rows_[group], logits_.as<float>()));
  kernels::CudaSampleParams p;
  p.logits = logits_.as<float>();
  p.vocab_size = host_.info().vocab_size;
  p.rows = draw_staging_.At<kernels::CudaSampleRow>(sample_rows_at_) + begin;
  p.edits = draw_staging_.At<kernels::CudaSampleEdit>(edits_at_);
  p.num_rows = static_cast<int32_t>(end - begin);
  p.values = values_.as<float>();
  p.scores = scores_.as<float>();
  p.workspace = sampler_workspace_.as<uint8_t>();
  p.results = drawn_.as<CudaSampleResult>() + begin;
  return CudaStatus(kernels::CudaSample(p, stream_.get()), "Sample");
}

absl::Status CudaRunner::Probe(size_t begin, size_t end) {
  RETURN_IF_ERROR(stream_.Synchronize("logits for a test"));
  const auto vocab = static_cast<size_t>(host_.info().vocab_size);
  std::vector<float> logits(vocab);
  for (size_t d = begin; d < end; ++d) {
    RETURN_IF_ERROR(CudaStatus(
        cudaMemcpy(logits.data(),
                   logits_.as<float>() + static_cast<size_t>(sample_rows_[d].logits_row) * vocab,
                   vocab * sizeof(float), cudaMemcpyDeviceToHost),
        "logits for a test"));
    options_.logits_probe(host_.SlotOf(host_.draws()[d]), static_cast<int32_t>(params_[d].position),
                          logits);
  }
  return absl::OkStatus();
}

// --- Read-back ---

absl::Status CudaRunner::Complete() {
  if (!in_flight_) return absl::OkStatus();
  in_flight_ = false;
  RETURN_IF_ERROR(stream_.Synchronize("a step"));
  const CudaSampleResult* drawn = drawn_host_.as<CudaSampleResult>();
  outputs_.assign(params_.size(), {});
  for (size_t d = 0; d < outputs_.size(); ++d) {
    kernels::SampleOutput& output = outputs_[d];
    output.token = drawn[d].token;
    output.logprob = drawn[d].logprob;
    for (int32_t i = 0; i < drawn[d].num_top; ++i) {
      output.top_logprobs.emplace_back(drawn[d].top_ids[i], drawn[d].top_logprobs[i]);
    }
    output.candidates.assign(drawn[d].candidates, drawn[d].candidates + drawn[d].num_candidates);
    if (synthetic_.has_value()) synthetic_->Replace(params_[d], &output);
  }
  moves_.Clear();
  results_.push_back(host_.Finish(outputs_, &moves_));
  return CopySlots(moves_, &move_staging_);
}

}  // namespace paceline

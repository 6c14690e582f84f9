// paceline-worker: flags -> wiring, signals. Binds its ports first, then loads; serves when loaded.

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/flags.h"
#include "common/model_name.h"
#include "worker/worker_process.h"

namespace paceline {
namespace {

void AddFlags(WorkerFlags* f, Flags* flags) {
  flags->AddChoice("role", &f->role, {"target", "draft", "shard"}, "what this worker does");
  flags->Add("model", &f->model, "HF directory of the model");
  flags->AddChoice("load-format", &f->load_format, {"safetensors", "dummy"},
                   "the model's weights; dummy: random ones of the shape in its config.json");
  flags->Add("model-name", &f->model_name, "name that requests use; default: the directory's name");
  flags->Add("listen", &f->listen, "host:port of gRPC; port 0 = a free one");
  flags->Add("metrics-listen", &f->metrics_listen, "host:port of /metrics, /livez and /readyz");
  flags->Add("draft", &f->draft, "draft workers, host:port[,host:port]; names are resolved again");
  flags->AddChoice("device", &f->device, {"auto", "cpu", "cuda"}, "where the model runs");
  flags->Add("threads", &f->threads, "compute threads; 0 = all cores");
  flags->Add("block-size", &f->block_size, "tokens per KV block: 16, 32 or 64");
  flags->Add("kv-blocks", &f->kv_blocks, "blocks of the KV pool; 0 = as many as --kv-bytes hold");
  flags->Add("kv-bytes", &f->kv_bytes,
             "bytes of the KV pool; 0 = 256 MiB on a CPU, what is free on a GPU");
  flags->Add("max-batch-tokens", &f->max_batch_tokens, "rows of one step at most");
  flags->Add("prefill-chunk", &f->prefill_chunk, "prompt rows per sequence and step at most");
  flags->Add("max-waiting", &f->max_waiting, "queued requests at most");
  flags->Add("max-sequences", &f->max_sequences, "sequences that run at once at most");
  flags->Add("max-context", &f->max_context, "tokens of prompt and output; 0 = the model's");
  flags->Add("max-drafts", &f->max_drafts, "draft tokens per sequence and step at most");
  flags->AddChoice("speculation", &f->speculation, {"auto", "always", "off"},
                   "for requests that leave it to the worker");
  flags->AddChoice("draft-strategy", &f->draft_strategy, {"chain", "enumerate", "sync"},
                   "how draft workers are used; sync is for comparison");
  flags->AddChoice("launch-ahead", &f->launch_ahead, {"on", "off"},
                   "launch a step before the last one is read");
  flags->Add("synthetic-acceptance", &f->synthetic_acceptance,
             "for benchmarks: tokens follow from seed and position, and drafts hit this often");
  flags->Add("cuda-graphs", &f->cuda_graphs, "launch a decode step's kernels as one graph");
  flags->Add("prefix-cache", &f->prefix_cache, "share KV blocks of equal prefixes");
  flags->Add("drain-timeout", &f->drain_timeout, "seconds that SIGTERM waits for requests");
  flags->Add("log-level", &f->log_level, "trace, debug, info, warn, error or off");
}

absl::Status CheckFlags(WorkerFlags* f, const std::vector<std::string>& positional) {
  if (!positional.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument ", positional[0]));
  }
  if (f->model.empty()) return absl::InvalidArgumentError("--model is missing");
  if (f->drain_timeout < 0) return absl::InvalidArgumentError("--drain-timeout is negative");
  if (f->synthetic_acceptance < 0 || f->synthetic_acceptance > 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--synthetic-acceptance is ", f->synthetic_acceptance, "; it must be in [0, 1]"));
  }
  if (f->model_name.empty()) f->model_name = ModelName(f->model);
  return absl::OkStatus();
}

// What this build cannot do, by name.
absl::Status CheckSupported(const WorkerFlags& f) {
  if (f.role == "shard") {
    return absl::UnimplementedError("--role=shard: tensor parallelism is not implemented");
  }
#ifndef PACELINE_CUDA
  if (f.device == "cuda") {
    return absl::UnimplementedError("--device=cuda: this build has no CUDA backend");
  }
#endif
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // what matters is said by us, in one sentence
  WorkerFlags f;
  Flags flags("paceline-worker: a model replica (target) or a draft model, served over gRPC");
  AddFlags(&f, &flags);
  const absl::Status usage = CheckFlags(&f, flags.ParseOrExit(argc, argv));
  return RunProcess(usage, f.role, f.log_level, [&](ProcessEnd* end) {
    if (absl::Status status = CheckSupported(f); !status.ok()) return status;
    return f.role == "draft" ? RunDraft(f, end) : RunTarget(f, end);
  });
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) { return paceline::Main(argc, argv); }

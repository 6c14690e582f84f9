// paceline-router: flags, then the process.

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/flags.h"
#include "router/router_process.h"

namespace paceline {
namespace {

void AddFlags(RouterFlags* f, Flags* flags) {
  flags->Add("listen", &f->listen, "host:port of gRPC; port 0 = a free one");
  flags->Add("metrics-listen", &f->metrics_listen, "host:port of /metrics, /livez and /readyz");
  flags->Add("cluster-listen", &f->cluster_listen,
             "host:port of ClusterService alone; default: --listen");
  flags->Add("workers", &f->workers, "target workers, host:port[,host:port]");
  flags->Add("drafts", &f->drafts, "draft workers, for their status, host:port[,host:port]");
  flags->Add("model", &f->model, "HF directories whose tokenizers are used, [NAME=]DIR[,...]");
  flags->Add("resume-key-file", &f->resume_key_file,
             "32 hexadecimal digits, shared by all replicas; default: drawn at the start");
  flags->Add("max-in-flight", &f->max_in_flight, "requests at workers at most");
  flags->Add("max-queue", &f->max_queue, "requests that wait for a worker at most");
  flags->Add("queue-timeout", &f->queue_timeout, "seconds that a request waits for a full worker");
  flags->Add("failover-timeout", &f->failover_timeout,
             "seconds that a request waits where there is no worker");
  flags->Add("silence-timeout", &f->silence_timeout,
             "seconds without a word until a worker's requests go elsewhere");
  flags->Add("max-attempts", &f->max_attempts,
             "workers that may fail a request in a row, without a token");
  flags->Add("max-replay-tokens", &f->max_replay_tokens,
             "prompt and output that a failover may compute again at most");
  flags->Add("max-outbox-tokens", &f->max_outbox_tokens,
             "tokens that a client may leave unread at most");
  flags->Add("text-threads", &f->text_threads, "threads that tokenize long prompts");
  flags->Add("callback-threads", &f->callback_threads,
             "threads that read and write all streams; more cost a switch of threads per token");
  flags->Add("max-text-queue", &f->max_text_queue, "long prompts that wait for them at most");
  flags->Add("debug-errors", &f->debug_errors, "internal causes in errors to clients");
  flags->Add("drain-timeout", &f->drain_timeout, "seconds that SIGTERM waits for requests");
  flags->Add("log-level", &f->log_level, "trace, debug, info, warn, error or off");
}

int Main(int argc, char** argv) {
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // what matters is said by us, in one sentence
  RouterFlags f;
  Flags flags("paceline-router: the public API, before target workers");
  AddFlags(&f, &flags);
  const auto positional = flags.ParseOrExit(argc, argv);
  absl::Status usage = CheckFlags(f);
  if (!positional.empty()) {
    usage = absl::InvalidArgumentError(absl::StrCat("unexpected argument ", positional[0]));
  }
  return RunProcess(usage, "router", f.log_level,
                    [&](ProcessEnd* end) { return RunRouter(f, end); });
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) { return paceline::Main(argc, argv); }

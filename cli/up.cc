#include "cli/up.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/child_process.h"
#include "common/flags.h"
#include "common/status_macros.h"

namespace paceline {
namespace {

struct UpOptions {
  std::string model, draft, device = "auto", log_level = "warn", speculation = "auto",
                            draft_strategy = "enumerate";
  int32_t targets = 1, drafts = 1, port = 0, threads = 0, kv_blocks = 0;
  std::string launch_ahead = "off";
  double synthetic_acceptance = 0;
};

// One started worker: what `up` prints of it.
struct Member {
  std::string role, address, metrics;
  ChildProcess process;
};

volatile sig_atomic_t g_signals = 0;
void OnSignal(int) { g_signals = g_signals + 1; }

std::filesystem::path BinaryFolder() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
}

// Where models lie: beside an installed bin/, or in the repository.
absl::StatusOr<std::string> DefaultModel(const std::string& name) {
  const std::filesystem::path bin = BinaryFolder();
  std::vector<std::string> tried;
  for (const auto& base : {bin / ".." / "models", std::filesystem::path(PACELINE_SOURCE_MODELS)}) {
    const auto folder = (base / name).lexically_normal();
    if (std::filesystem::exists(folder / "config.json")) return folder.string();
    tried.push_back(folder.string());
  }
  return absl::NotFoundError(absl::StrCat("no bundled ", name, " model (looked in ",
                                          absl::StrJoin(tried, ", "), "); name one with --",
                                          name == "target" ? "model" : "draft"));
}

// The cores divided among the processes that compute: one for each draft worker, which runs beside
// the targets, and the rest among the targets.
int32_t ThreadsPerTarget(const UpOptions& options) {
  if (options.threads > 0) return options.threads;
  const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
  return std::max(1, (cores - options.drafts) / options.targets);
}

std::vector<std::string> WorkerCommand(const UpOptions& options, const std::string& role,
                                       const std::string& model) {
  std::vector<std::string> argv = {(BinaryFolder() / "paceline-worker").string(),
                                   absl::StrCat("--role=", role),
                                   absl::StrCat("--model=", model),
                                   "--listen=127.0.0.1:0",
                                   "--metrics-listen=127.0.0.1:0",
                                   absl::StrCat("--device=", options.device),
                                   absl::StrCat("--log-level=", options.log_level)};
  const bool target = role == "target";
  argv.push_back(absl::StrCat("--threads=", target ? ThreadsPerTarget(options) : 1));
  if (options.kv_blocks > 0) argv.push_back(absl::StrCat("--kv-blocks=", options.kv_blocks));
  if (target) {
    argv.push_back(absl::StrCat("--speculation=", options.speculation));
    argv.push_back(absl::StrCat("--launch-ahead=", options.launch_ahead));
    argv.push_back(absl::StrCat("--draft-strategy=", options.draft_strategy));
  }
  if (options.synthetic_acceptance > 0) {
    argv.push_back(absl::StrCat("--synthetic-acceptance=", options.synthetic_acceptance));
  }
  return argv;
}

absl::Status AwaitMember(Member* member) {
  const Duration limit = std::chrono::seconds(120);
  ASSIGN_OR_RETURN(
      member->address,
      member->process.WaitForLine(
          member->role == "router" ? "router listening on " : "worker listening on ", limit));
  ASSIGN_OR_RETURN(member->metrics, member->process.WaitForLine("metrics listening on ", limit));
  return absl::OkStatus();
}

std::string Addresses(const std::vector<Member>& members, const std::string& role) {
  std::vector<std::string> addresses;
  for (const Member& m : members) {
    if (m.role == role) addresses.push_back(m.address);
  }
  return absl::StrJoin(addresses, ",");
}

absl::Status StartWorkers(const UpOptions& options, const std::string& role,
                          const std::string& model, int32_t count, std::vector<std::string> extra,
                          std::vector<Member>* members) {
  const size_t first = members->size();
  for (int32_t i = 0; i < count; ++i) {
    std::vector<std::string> argv = WorkerCommand(options, role, model);
    argv.insert(argv.end(), extra.begin(), extra.end());
    ASSIGN_OR_RETURN(ChildProcess process, ChildProcess::Start(std::move(argv)));
    members->push_back({role, "", "", std::move(process)});
  }
  for (size_t i = first; i < members->size(); ++i) RETURN_IF_ERROR(AwaitMember(&(*members)[i]));
  return absl::OkStatus();
}

absl::Status StartRouter(const UpOptions& options, std::vector<Member>* members) {
  ASSIGN_OR_RETURN(ChildProcess process,
                   ChildProcess::Start({(BinaryFolder() / "paceline-router").string(),
                                        absl::StrCat("--listen=127.0.0.1:", options.port),
                                        "--metrics-listen=127.0.0.1:0",
                                        absl::StrCat("--workers=", Addresses(*members, "target")),
                                        absl::StrCat("--drafts=", Addresses(*members, "draft")),
                                        absl::StrCat("--model=", options.model),
                                        absl::StrCat("--log-level=", options.log_level)}));
  members->push_back({"router", "", "", std::move(process)});
  return AwaitMember(&members->back());
}

absl::Status StartCluster(const UpOptions& options, std::vector<Member>* members) {
  RETURN_IF_ERROR(StartWorkers(options, "draft", options.draft, options.drafts, {}, members));
  std::vector<std::string> extra;
  if (options.drafts > 0) extra.push_back(absl::StrCat("--draft=", Addresses(*members, "draft")));
  RETURN_IF_ERROR(StartWorkers(options, "target", options.model, options.targets, extra, members));
  return StartRouter(options, members);
}

void PrintCluster(const std::vector<Member>& members) {
  std::printf("router listening on %s\n", members.back().address.c_str());
  for (const Member& m : members) {
    std::printf("%s address=%s metrics=%s pid=%d\n", m.role.c_str(), m.address.c_str(),
                m.metrics.c_str(), m.process.pid());
  }
  std::fflush(stdout);
}

// Router first, so that it hands over nothing; then targets, then drafts. A second Ctrl-C kills.
void EndCluster(std::vector<Member>* members) {
  for (auto it = members->rbegin(); it != members->rend(); ++it) {
    it->process.Signal(SIGTERM);
    const sig_atomic_t seen = g_signals;
    for (int i = 0; i < 600 && g_signals == seen; ++i) {
      if (it->process.Join(std::chrono::milliseconds(100))) break;
    }
    if (!it->process.Ended()) it->process.Signal(SIGKILL);
    it->process.Join(std::chrono::seconds(5));
  }
}

// A dead worker is the cluster's to survive; a dead router is the end.
int Supervise(std::vector<Member>* members) {
  std::vector<bool> reported(members->size(), false);
  while (g_signals == 0) {
    for (size_t i = 0; i < members->size(); ++i) {
      Member& m = (*members)[i];
      if (reported[i] || !m.process.Ended()) continue;
      reported[i] = true;
      std::fprintf(stderr, "%s %s (pid %d) ended\n", m.role.c_str(), m.address.c_str(),
                   m.process.pid());
      if (m.role == "router") return kExitFailure;
    }
    usleep(50 * 1000);
  }
  return 0;
}

absl::Status ParseUp(int argc, const char* const* argv, UpOptions* options) {
  Flags flags("paceline up: starts a router, targets and draft workers on this machine");
  flags.Add("model", &options->model, "HF directory of the target model; default: the bundled one");
  flags.Add("draft", &options->draft, "HF directory of the draft model; default: the bundled one");
  flags.Add("targets", &options->targets, "target workers");
  flags.Add("drafts", &options->drafts, "draft workers");
  flags.AddChoice("device", &options->device, {"auto", "cpu", "cuda"}, "where the models run");
  flags.Add("port", &options->port, "the router's port; 0 = a free one");
  flags.Add("threads", &options->threads,
            "compute threads per target; 0 = the cores but one per draft worker, divided");
  flags.Add("kv-blocks", &options->kv_blocks, "KV blocks per worker; 0 = the worker's default");
  flags.AddChoice("speculation", &options->speculation, {"auto", "always", "off"},
                  "the targets' default");
  flags.AddChoice("draft-strategy", &options->draft_strategy, {"chain", "enumerate", "sync"},
                  "how targets use draft workers");
  flags.Add("synthetic-acceptance", &options->synthetic_acceptance,
            "for benchmarks: tokens follow from seed and position, and drafts hit this often");
  flags.AddChoice("launch-ahead", &options->launch_ahead, {"on", "off"},
                  "targets launch a step before the last is read");
  flags.Add("log-level", &options->log_level, "log level of all processes");
  const auto positional = flags.ParseOrExit(argc, argv);
  if (!positional.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument ", positional[0]));
  }
  if (options->targets < 1) return absl::InvalidArgumentError("--targets must be at least 1");
  if (options->port < 0 || options->port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("--port is ", options->port, "; it must be in [0, 65535]"));
  }
  if (options->drafts < 0) return absl::InvalidArgumentError("--drafts must not be negative");
  return absl::OkStatus();
}

}  // namespace

int RunUp(int argc, const char* const* argv) {
  UpOptions options;
  if (absl::Status status = ParseUp(argc, argv, &options); !status.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
    return kExitUsage;
  }
  struct sigaction action {};
  action.sa_handler = OnSignal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);

  std::vector<Member> members;
  members.reserve(options.targets + options.drafts + 1);
  const absl::Status started = [&]() -> absl::Status {
    if (options.model.empty()) {
      ASSIGN_OR_RETURN(options.model, DefaultModel("target"));
    }
    if (options.draft.empty() && options.drafts > 0) {
      ASSIGN_OR_RETURN(options.draft, DefaultModel("draft"));
    }
    return StartCluster(options, &members);
  }();
  if (!started.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(started.message()).c_str());
    EndCluster(&members);
    return kExitFailure;
  }
  PrintCluster(members);
  const int status = Supervise(&members);
  EndCluster(&members);
  return status;
}

}  // namespace paceline

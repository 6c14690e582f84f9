// The command line: picks the command, which parses its own flags.
#include <cstdio>
#include <cstring>

#include "cli/bench/bench.h"
#include "cli/cluster_commands.h"
#include "cli/generate.h"
#include "cli/up.h"
#include "common/flags.h"

namespace {

struct Command {
  const char* name;
  int (*run)(int, const char* const*);
  const char* what;
};

constexpr Command kCommands[] = {
    {"up", paceline::RunUp, "start a whole cluster on this machine"},
    {"generate", paceline::RunGenerate, "send one prompt to a router"},
    {"bench", paceline::RunBench, "measure a cluster under load"},
    {"status", paceline::RunStatus, "show a router's workers"},
    {"drain", paceline::RunDrain, "let a worker finish and take no more"},
};

void PrintUsage(std::FILE* out) {
  std::fprintf(out, "usage: paceline COMMAND [flags]; paceline COMMAND --help lists them\n");
  for (const Command& c : kCommands) std::fprintf(out, "  %-10s %s\n", c.name, c.what);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    PrintUsage(stderr);
    return paceline::kExitUsage;
  }
  for (const Command& c : kCommands) {
    if (std::strcmp(argv[1], c.name) == 0) return c.run(argc - 1, argv + 1);
  }
  const bool help = std::strcmp(argv[1], "--help") == 0 || std::strcmp(argv[1], "help") == 0;
  if (!help) std::fprintf(stderr, "error: unknown command %s\n", argv[1]);
  PrintUsage(help ? stdout : stderr);
  return help ? 0 : paceline::kExitUsage;
}

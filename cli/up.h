// `paceline up`: a whole cluster on this machine, as child processes that end with it.
#pragma once

namespace paceline {

int RunUp(int argc, const char* const* argv);

}  // namespace paceline

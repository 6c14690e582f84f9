// `paceline status` and `paceline drain`: what an operator asks of a running cluster.
#pragma once

namespace paceline {

int RunStatus(int argc, const char* const* argv);
int RunDrain(int argc, const char* const* argv);

}  // namespace paceline

// `paceline generate`: one prompt to a router, its text to standard output as it comes, or with
// --json one object per sample and line.
#pragma once

namespace paceline {

int RunGenerate(int argc, const char* const* argv);

}  // namespace paceline

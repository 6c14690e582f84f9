// `paceline bench`: measures a cluster under load, or the modes of speculation side by side on the
// same requests. Exit status 1 where a request failed (unless --allow-errors) or where modes gave
// different tokens.
#pragma once

namespace paceline {

int RunBench(int argc, const char* const* argv);

}  // namespace paceline

#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test that needs no GPU: checks, Release tests,
# end-to-end tests, then the sanitizer phases. One command, about 20 minutes on 2 cores.
#   tests/run.sh            everything
#   tests/run.sh --quick    checks and Release tests only
# BUILD_ROOT (default: build) holds the build folders; PACELINE_JOBS the number of compile jobs.
set -eu
cd "$(dirname "$0")/.."
root=${BUILD_ROOT:-build}
jobs=${PACELINE_JOBS:-$(nproc)}
quick=${1:-}

phase() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

phase "packages"
deploy/packages.sh --tests

phase "checks"
python3 tools/checks/layers.py
tools/checks/format.sh
tools/checks/proto.sh

phase "Release build"
cmake -S . -B "$root/release" -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build "$root/release" -j "$jobs"

phase "Release tests"
ctest --test-dir "$root/release" --output-on-failure -j 2 --no-tests=error

if [ "$quick" = --quick ]; then exit 0; fi

# Everything free of gRPC. Labels choose the programs: the long equality matrices run in Release only.
for kind in asan tsan; do
  case $kind in
    asan) sanitize=address,undefined ;;
    tsan) sanitize=thread ;;
  esac
  phase "$kind build"
  cmake -S . -B "$root/$kind" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPACELINE_BUILD_SERVICES=OFF \
    -DPACELINE_SANITIZE=$sanitize >/dev/null
  cmake --build "$root/$kind" -j "$jobs" --target "paceline_${kind}_tests"
  phase "$kind tests"
  PACELINE_SANITIZED=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
    ctest --test-dir "$root/$kind" --output-on-failure -j 2 -L "^$kind\$" --no-tests=error
done
phase "done"

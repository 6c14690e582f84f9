#!/usr/bin/env bash
# From a clean clone on Debian 12 to streamed text: installs what is missing, builds, starts a router, a
# target and a draft worker, streams a completion, prints tokens/s and acceptance, shuts down.
#   deploy/quickstart.sh ["a prompt"]
# BUILD_ROOT (default: build) holds the build folder.
set -eu
cd "$(dirname "$0")/.."
prompt=${1:-Once upon a time}
build=${BUILD_ROOT:-build}/release

deploy/packages.sh
echo "building (minutes the first time) ..." >&2
out=$(mktemp)
trap 'rm -f "$out"' EXIT
{
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release &&
    cmake --build "$build" -j "$(nproc)" --target paceline paceline-router paceline-worker
} >"$out" 2>&1 || { cat "$out" >&2; echo "error: the build failed" >&2; exit 1; }

"$build/bin/paceline" up >"$out" &
cluster=$!
stop() {
  kill -INT "$cluster" 2>/dev/null || true
  wait "$cluster" 2>/dev/null || true
  rm -f "$out"
}
trap stop EXIT
for _ in $(seq 600); do
  grep -q 'pid=' "$out" && [ "$(grep -c 'pid=' "$out")" -ge 3 ] && break
  kill -0 "$cluster" 2>/dev/null || { echo "error: the cluster did not start" >&2; exit 1; }
  sleep 0.1
done
cat "$out"
router=$(sed -n 's/^router listening on //p' "$out" | head -n 1)
echo
# Drafting is forced, so that its acceptance shows; by default it is used where it pays.
"$build/bin/paceline" generate --router "$router" --prompt "$prompt" --max-tokens 120 --seed 7 \
  --speculation always --stats

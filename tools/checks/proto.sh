#!/usr/bin/env bash
# Lints the protos with buf (npm @bufbuild/buf, kept under .cache). Says so and goes on where npm is absent.
set -eu
cd "$(dirname "$0")/../.."
buf=.cache/buf/node_modules/.bin/buf
if [ ! -x "$buf" ]; then
  command -v npm >/dev/null || { echo "proto: skipped, npm not found"; exit 0; }
  mkdir -p .cache/buf
  npm install --prefix .cache/buf --save-exact --no-fund --no-audit --loglevel=error @bufbuild/buf@1.75.0 \
    || { echo "proto: skipped, @bufbuild/buf could not be installed"; exit 0; }
fi
"$buf" lint proto
echo "proto: $(find proto -name '*.proto' | wc -l) files, no findings"

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
# google.rpc comes from Debian's package, as in the build; it is imported, not linted.
rpc=${GOOGLE_RPC_PROTOS:-/usr/share/gocode/src/github.com/gogo/googleapis}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/google/google/rpc"
cp "$rpc"/google/rpc/{status,error_details}.proto "$work/google/google/rpc/"
cp -r proto "$work/proto"
sed 's|- paceline/|- proto/paceline/|; s/- path: \./- path: proto\n  - path: google\n    lint:\n      ignore: [google]/' proto/buf.yaml >"$work/buf.yaml"
rm "$work/proto/buf.yaml"
(cd "$work" && "$OLDPWD/$buf" lint)
echo "proto: $(find proto -name '*.proto' | wc -l) files, no findings"

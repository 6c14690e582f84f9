#!/usr/bin/env bash
# Checks (or with --fix mends) the format of every C++ and proto source.
set -eu
cd "$(dirname "$0")/../.."
mode=${1:-}
mapfile -t files < <(git ls-files '*.h' '*.cc' '*.cu' '*.cuh')
if [ "$mode" = --fix ]; then
  clang-format -i "${files[@]}"
else
  clang-format --dry-run -Werror "${files[@]}"
  echo "format: ${#files[@]} files, all formatted"
fi

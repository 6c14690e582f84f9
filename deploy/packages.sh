#!/usr/bin/env bash
# Installs on Debian 12 what a build needs and is missing (about 150 MB). Does nothing, and needs no
# root, when all of it is there.
set -eu
packages=(g++ cmake ninja-build ccache git ca-certificates pkg-config
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev
  prometheus-cpp-dev libgtest-dev libgmock-dev libpcre2-dev libutf8proc-dev
  nlohmann-json3-dev libspdlog-dev golang-github-gogo-googleapis-dev libssl-dev python3)
if [ "${1:-}" = --tests ]; then
  packages+=(python3-grpcio python3-protobuf clang-format prometheus)
fi
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing: ${missing[*]}" >&2
sudo=
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "error: not root and no sudo; install by hand: ${missing[*]}" >&2; exit 1; }
  sudo=sudo
fi
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

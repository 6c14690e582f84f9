#!/usr/bin/env bash
# The served product on GPUs: router, a target on the first GPU and a draft worker on the second (on the first too,
# where there is one), plain decoding against each way of drafting, every token compared.
#   cmake -S . -B build/serving -G Ninja -DCMAKE_BUILD_TYPE=Release -DPACELINE_CUDA=ON -DPACELINE_BUILD_TESTS=OFF
#   ninja -C build/serving paceline paceline-router paceline-worker
#   tests/gpu_serving.sh build/serving            the bundled pair, and Llama-3-8B's layers with random weights
#   tests/gpu_serving.sh build/serving FOLDER     also the time to load tests/bench/random_llama.py FOLDER --weights
# TREE may be a copy elsewhere: TREE/bin, and TREE/lib with the libraries. Each run ends within two minutes.
set -u
tree=${1:?usage: tests/gpu_serving.sh TREE [FOLDER]}
weights=${2:-}
root=$(cd "$(dirname "$0")/.." && pwd)
export LD_LIBRARY_PATH=$tree/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
logs=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$logs"' EXIT
second=$(($(nvidia-smi -L | wc -l) > 1 ? 1 : 0))
printf 'date: %s\n' "$(date -u +%F)"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader

# address NAME FIELD: where a process listens, once it does.
address() {
  for _ in $(seq 1200); do
    grep -q "^$2 listening on " "$logs/$1" 2>/dev/null && break
    sleep 0.05
  done
  sed -n "s/^$2 listening on //p" "$logs/$1" | head -n 1
}

# start_target MODEL FLAG...: waits until it serves; sets `target`.
start_target() {
  local model=$1 began
  shift
  began=$(date +%s%N)
  CUDA_VISIBLE_DEVICES=0 "$tree/bin/paceline-worker" --role=target --model="$model" --device=cuda --threads=2 "$@" \
    >"$logs/target" 2>&1 &
  target=$(address target worker)
  until grep -q ' ready model=' "$logs/target" || ! kill -0 $! 2>/dev/null; do sleep 0.01; done
  printf '\n%s: ready after %d ms\n' "$(basename "$model")" $((($(date +%s%N) - began) / 1000000))
  grep -o 'memory gpu=.*' "$logs/target"
}

# serve MODEL FORMAT FLAG...: a cluster of one target and one draft worker; sets `router`.
serve() {
  local model=$1 format=$2 draft
  shift 2
  CUDA_VISIBLE_DEVICES=$second "$tree/bin/paceline-worker" --role=draft --model="$root/models/draft" --device=cuda \
    --kv-blocks=8192 --threads=1 "$@" >"$logs/draft" 2>&1 &
  draft=$(address draft worker)
  start_target "$model" --load-format="$format" --draft="$draft" "$@"
  "$tree/bin/paceline-router" --workers="$target,$draft" --model="$model" --listen=127.0.0.1:0 >"$logs/router" 2>&1 &
  router=$(address router router)
  sleep 1
}

stop() {
  kill -INT $(jobs -p)
  wait
}

compare() {
  timeout 120 "$tree/bin/paceline" bench --router "$router" --ignore-eos --rounds 1 --compare plain,sync,chain,enumerate "$@"
}

printf '%s\n' "Once upon a time" "It was a dark and stormy night" "The old man looked at the sea and" \
  "There was once a little girl who" "My dear sister," "Tom and Lily went to the" "The captain ordered" \
  "When she opened the door," "At last the letter came." "The house stood on" >"$logs/prompts"
serve "$root/models/target" safetensors
for temperature in 0 1; do
  for concurrency in 1 16; do
    compare --prompts "$logs/prompts" --requests $((concurrency * 4 + 12)) --concurrency $concurrency --max-tokens 128 \
      --temperature $temperature
  done
done
stop
python3 "$root/tests/bench/random_llama.py" "$logs/llama"
serve "$logs/llama" dummy --synthetic-acceptance=0.7
for concurrency in 1 16 64; do
  compare --prompt-tokens 960 --requests $((concurrency < 4 ? 4 : concurrency)) --concurrency $concurrency --max-tokens 96
done
stop
if [ -n "$weights" ]; then
  cat "$weights"/*.safetensors >/dev/null
  echo "from the page cache"
  start_target "$weights"
  stop
  if sync && echo 3 2>/dev/null >/proc/sys/vm/drop_caches; then
    echo "from the disk"
    start_target "$weights"
    stop
  else
    echo "from the disk: not measured, the page cache cannot be dropped here"
  fi
fi

#!/usr/bin/env bash
# Runs the GPU tests, then the benchmarks, on the GPU of this machine. The programs come from a tree that
# was built elsewhere and needs nothing here but the driver:
#   cmake -S . -B build/cuda -G Ninja -DPACELINE_CUDA=ON -DPACELINE_BUILD_SERVICES=OFF
#   ninja -C build/cuda paceline_gpu_programs
#   cmake --install build/cuda --component gpu --strip --prefix build/gpu
#   tests/gpu.sh build/gpu            tests, then benchmarks if all of them passed
#   tests/gpu.sh build/gpu --tests    tests alone
# GPU_TEST_SECONDS and GPU_BENCH_SECONDS bound each program (default 120 and 180).
set -u
tree=${1:?usage: tests/gpu.sh TREE [--tests]}
only=${2:-}
test_seconds=${GPU_TEST_SECONDS:-120}
bench_seconds=${GPU_BENCH_SECONDS:-180}
# Libraries of the tree need each other, and only the programs carry a path to them.
export LD_LIBRARY_PATH=$tree/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

printf 'date: %s\ncommand: tests/gpu.sh %s\n' "$(date -u +%F)" "$*"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"

# sanitized PROGRAM TOOL FILTER: small shapes under compute-sanitizer, where the machine has it.
sanitized() {
  command -v compute-sanitizer >/dev/null || { echo "skipped: no compute-sanitizer"; return 0; }
  timeout "$test_seconds" compute-sanitizer --tool "$2" --error-exitcode 9 \
    "$tree/bin/$1" --gtest_brief=1 --gtest_filter="$3" >"$log" 2>&1
  case $? in
    0) printf '| %-28s | passed |\n' "$2 $1" ;;
    9) printf '| %-28s | FAILED |\n' "$2 $1"; failed=1; tail -n 40 "$log" ;;
    124) printf '| %-28s | timeout |\n' "$2 $1" ;;
    *) printf '| %-28s | skipped: the tool ended with an error |\n' "$2 $1"; tail -n 3 "$log" ;;
  esac
}

failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
printf '\ntests\n| program | outcome |\n|---|---|\n'
for program in cuda_kernels_test cuda_decoder_test cuda_runner_test cuda_determinism_test; do
  timeout "$test_seconds" "$tree/bin/$program" --gtest_brief=1 >"$log" 2>&1
  code=$?
  summary=$(grep -E '^\[  (PASSED|SKIPPED|FAILED)' "$log" | head -n 3 | tr '\n' ' ')
  printf '| %-18s | exit %s %s|\n' "$program" "$code" "$summary"
  if [ "$code" -ne 0 ]; then
    failed=1
    tail -n 60 "$log"
  fi
done

printf '\ncompute-sanitizer\n| tool and program | outcome |\n|---|---|\n'
sanitized cuda_kernels_test memcheck 'CudaRows.*:CudaLinear.Refuses*:CudaLinear.Hoppers*:CudaSampler.*:CudaAttention.Windows'
sanitized cuda_kernels_test racecheck 'CudaRows.*:CudaLinear.ARows*:CudaAttention.Windows:CudaSampler.Exactly*:CudaSampler.Masks*'
sanitized cuda_kernels_test synccheck 'CudaRows.*:CudaLinear.ARows*:CudaLinear.Hoppers*:CudaAttention.Windows:CudaSampler.*'

if [ "$only" != --tests ]; then
  if [ "$failed" -ne 0 ]; then
    printf '\nbenchmarks: not run, tests failed\n'
  else
    printf '\nbenchmarks\n'
    timeout "$bench_seconds" "$tree/bin/cuda_kernels_bench" || failed=1
    printf '\nengine\n'
    timeout "$bench_seconds" "$tree/bin/cuda_engine_bench" || failed=1
    printf '\nlogits\n'
    timeout "$bench_seconds" python3 "$(dirname "$0")/golden/gpu_logits.py" "$tree/bin/cuda_logits" || failed=1
    printf '\npeers\n'
    timeout "$bench_seconds" python3 "$(dirname "$0")/bench/gpu_peers.py"
  fi
fi
exit "$failed"

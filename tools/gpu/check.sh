#!/usr/bin/env bash
# Runs the staged CUDA tests on a machine with a GPU, and prints a short table: tests, then what they measured.
# `cargo xtask gpu-stage` makes the folder this lies in. Full logs and results.json go to $OUT, or beside this script.
#
#   check.sh [quick | large | all]    quick: the tests; large: those that need 24 GiB of device memory; default all
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
what=${1:-all}
out=${OUT:-$here}
mkdir -p "$out"

# NVRTC and cuBLASLt lie in Python's wheels or in the toolkit; both are offered to the loader.
wheels=$(python3 - <<'PYTHON' 2>/dev/null
import glob, os, site, sys
roots = list(sys.path) + site.getsitepackages()
found = {os.path.dirname(p) for r in roots for n in ("libnvrtc.so*", "libcublasLt.so*")
         for p in glob.glob(os.path.join(r, "nvidia", "*", "lib", n))}
print(":".join(sorted(found)))
PYTHON
)
export LD_LIBRARY_PATH="${wheels:+$wheels:}/usr/local/cuda/lib64:/usr/local/nvidia/lib64:${LD_LIBRARY_PATH:-}"
export HEADINFER_CUDA=required HEADINFER_NVRTC=required RUST_BACKTRACE=1
export TMPDIR=${TMPDIR:-/tmp}

nvidia-smi --query-gpu=name,driver_version,memory.total,memory.free --format=csv,noheader 2>/dev/null
echo "libraries: $LD_LIBRARY_PATH"

# run NAME ARGUMENTS...: one run of the test binary, its log kept.
failed=0
run() {
  local name=$1 begun=$SECONDS status=0
  shift
  "$here/cuda-tests" "$@" --nocapture >"$out/$name.log" 2>&1 || status=$?
  echo "== $name: exit $status, $((SECONDS - begun)) s: $(grep '^test result' "$out/$name.log" | tail -1)"
  if ((status != 0)); then
    failed=1
    grep -A2 "panicked at" "$out/$name.log" | grep -v "^stack\|^--" | cut -c1-700 | head -30
  fi
}

# One thread: tests share the device, and their memory and times are measured.
case $what in
  quick | all)
    run kernels kernels --test-threads 1
    run ops ops --test-threads 1
    run models models --test-threads 1
    run placement placement --test-threads 1
    ;;
esac
case $what in
  large | all)
    run rates large::rates --ignored --test-threads 1
    run offsets large::offsets --ignored --test-threads 1
    run llama large::llama --ignored --test-threads 1
    ;;
esac
# A test's output follows its name on the line, so neither stands at the start of one.
cat "$out"/*.log | grep -o "measure: .*"
cat "$out"/*.log | awk '
  match($0, /^test [a-z0-9_:]+ \.\.\./) { split($0, word, " "); state[word[2]] = "ok" }
  /^    [a-z0-9_]+::[a-z0-9_:]+$/ { state[$1] = "FAILED" }
  / \.\.\. ignored/ { delete state[$2] }
  END {
    printf "{\"tests\": {"
    for (name in state) { printf "%s\"%s\": \"%s\"", n++ ? ", " : "", name, state[name] }
    print "}}"
  }' >"$out/results.json"
exit $failed

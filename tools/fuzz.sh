#!/usr/bin/env bash
# Runs the fuzz targets, two at a time, on the pinned stable toolchain. A target that finds something fails, and its
# input stays in target/fuzz/found.
#
#   tools/fuzz.sh                       every target, VIREO_FUZZ_SECONDS each (default 15)
#   tools/fuzz.sh images domain_xml     these
#   VIREO_FUZZ_SECONDS=3600 tools/fuzz.sh
#   tools/fuzz.sh --merge               take what was learnt into the committed corpus, minimised
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${VIREO_FUZZ_SECONDS:-15}
jobs=${JOBS:-2}
built=target/fuzz/build/release
corpus=target/fuzz/corpus   # what runs learn; the committed one is only read
found=target/fuzz/found

targets=$(sed -n 's:^path = "fuzz_targets/\(.*\)\.rs"$:\1:p' fuzz/Cargo.toml | tr '\n' ' ')
RUSTC_WRAPPER=$PWD/tools/fuzz-rustc.sh FUZZ_TARGETS=$targets \
  cargo build --locked --release -j"$jobs" --manifest-path fuzz/Cargo.toml --target-dir target/fuzz/build

options() { # TARGET
  case $1 in
    *_plans | ledger | markers | *_xml) echo -max_len=65536 ;;
    images) echo -max_len=40960 ;;
    *) echo -max_len=4096 ;;
  esac
  [ ! -e "fuzz/dictionaries/$1" ] || echo "-dict=fuzz/dictionaries/$1"
}

if [ "${1:-}" = --merge ]; then
  for target in $targets; do
    mkdir -p "$corpus/$target" "fuzz/corpus/$target"
    rm -rf "$corpus/$target.new" && mkdir -p "$corpus/$target.new"
    # shellcheck disable=SC2046
    "$built/$target" -merge=1 $(options "$target") "$corpus/$target.new" "fuzz/corpus/$target" "$corpus/$target" 2>&1 | tail -n 1
    rm -rf "fuzz/corpus/$target" && mv "$corpus/$target.new" "fuzz/corpus/$target"
  done
  exit 0
fi

run() { # TARGET
  local target=$1 log=target/fuzz/$1.log status=0
  mkdir -p "$corpus/$target" "$found" "fuzz/corpus/$target"
  # shellcheck disable=SC2046
  "$built/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=1 \
    -artifact_prefix="$found/$target-" $(options "$target") "$corpus/$target" "fuzz/corpus/$target" > "$log" 2>&1 || status=$?
  local runs kept
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  kept=$(find "fuzz/corpus/$target" -type f | wc -l)
  printf '%-18s %12s executions, %5s from the committed corpus\n' "$target" "${runs:-0}" "$kept"
  if [ "$status" -ne 0 ] || [ "${runs:-0}" -eq 0 ]; then
    echo "test fuzz $target ... FAILED (exit $status), see $log and $found"
    grep -aE -m 5 'panicked|assertion|ERROR|SUMMARY' -A 2 "$log" || tail -n 5 "$log"
    return 1
  fi
}

[ $# -eq 0 ] || targets=$*
failed=0 passed=0 running=()
reap() {
  if wait "${running[0]}"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
  running=("${running[@]:1}")
}
for target in $targets; do
  [ -x "$built/$target" ] || { echo "there is no target $target in fuzz/Cargo.toml"; exit 2; }
  run "$target" &
  running+=($!)
  [ "${#running[@]}" -lt 2 ] || reap
done
while [ "${#running[@]}" -gt 0 ]; do reap; done
echo "test result: fuzz. $passed passed; $failed failed; $seconds s each"
[ "$failed" -eq 0 ]

#!/usr/bin/env bash
# Runs every suite, each with its own log under target/test-logs, and ends with their result lines.
# Arguments name suites to run; none means all.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=$PWD/target/test-logs
rm -rf "$logs"
mkdir -p "$logs"
export VIREO_SKIP_LOG=$logs/skipped
: > "$VIREO_SKIP_LOG"
export VIREO_STANDALONE_BIN=$PWD/target/tools/vireo-standalone
export CARGO_TERM_COLOR=never RUST_BACKTRACE=0
jobs=${JOBS:-2}
wanted=("$@")
results=()
failed=0

suite() { # NAME WHAT COMMAND...
  local name=$1 what=$2 started=$SECONDS status=0
  shift 2
  if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" $name "* ]]; then return 0; fi
  printf '== %s: %s\n' "$name" "$what"
  "$@" > "$logs/$name.log" 2>&1 || status=$?
  local counted
  counted=$(count "$logs/$name.log")
  if [ "$status" -eq 0 ]; then
    results+=("ok      $name ($((SECONDS - started)) s)${counted:+: $counted}")
  else
    failed=$((failed + 1))
    results+=("FAILED  $name ($((SECONDS - started)) s)${counted:+: $counted}, see target/test-logs/$name.log")
    tail -n 60 "$logs/$name.log"
  fi
}

# "N passed, N failed" of a cargo or go log; empty for checks that count nothing.
count() {
  awk '
    /^test result:/ { passed += $4; failed += $6; any = 1 }
    /^--- PASS|^    --- PASS/ { passed++; any = 1 }
    /^--- FAIL|^    --- FAIL/ { failed++; any = 1 }
    END { if (any) printf "%d passed, %d failed", passed, failed }' "$1"
}

cargo_test() { cargo test --locked --release -j"$jobs" "$@"; }

api_tests=(--test schema_api --test identity_api --test kubectl_api --test writes_api --test orders_api --test compatibility_api)

lab_tests() {
  cargo_test -p lab -- --test-threads=1 &&
    cargo_test -p system-tests --test lab_lifecycle -- --test-threads=1 lab_a_first_vm lab_a_guests_reboot lab_acts lab_edits lab_hardware
}

lab_more_tests() {
  cargo_test -p system-tests --test lab_lifecycle --test lab_outlive --test lab_disks --test lab_bad_input --test lab_debian -- --test-threads=1 lab_
}

# A suite that runs only when it is named: too long for every run. It counts as skipped, by name.
by_hand() { # NAME WHAT COMMAND
  if [[ " ${wanted[*]} " == *" $1 "* ]]; then
    suite "$@"
  elif [ ${#wanted[@]} -eq 0 ]; then
    echo "suite $1: $2; run it with \`tools/test.sh $1\`" >> "$VIREO_SKIP_LOG"
  fi
}

suite fmt "formatting" cargo fmt --all --check
suite clippy "lints, warnings denied" cargo clippy --locked --release -j"$jobs" --workspace --all-targets -- -D warnings
suite xtask "generated files, bounds, purity, sizes" cargo xtask check
suite chart "chart lint" target/tools/helm lint --strict charts/vireo
suite unit "decisions, goldens, parsers, executors" cargo_test --workspace --exclude system-tests --exclude lab
suite standalone "the API server, for real" standalone/go.sh test -vet=off -count=1 -timeout 900s -v ./...
suite sim "both planners under faults, in simulated histories" cargo_test -p system-tests --lib --test sim
suite api "against the real API server" cargo_test -p system-tests "${api_tests[@]}"
suite lab "hosts in namespaces, guest images, real guests" lab_tests
by_hand lab-more "the rest of the lab's tests with real guests, about half an hour" lab_more_tests
# The lab's tests share one lab and leave it up for the next binary.
if [ -d target/lab-test ]; then target/release/vireo-lab --state target/lab-test down > "$logs/lab-down.log" 2>&1 || printf 'the lab of the tests did not go down: see target/test-logs/lab-down.log\n'; fi

echo
if [ -s "$VIREO_SKIP_LOG" ]; then
  echo "skipped:"
  sort -u "$VIREO_SKIP_LOG" | sed 's/^/  /'
fi
printf '%s\n' "${results[@]}"
total=$(cat "$logs"/*.log 2>/dev/null | awk '/^test result:/ { p += $4; f += $6 } /^ *--- PASS/ { p++ } /^ *--- FAIL/ { f++ } END { printf "%d passed, %d failed", p, f }')
echo "$total, $(sort -u "$VIREO_SKIP_LOG" | wc -l) skipped"
[ "$failed" -eq 0 ]

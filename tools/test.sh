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
mkdir "$logs/results"
order=0

chosen() { [ ${#wanted[@]} -eq 0 ] || [[ " ${wanted[*]} " == *" $1 "* ]]; }

# Runs one suite with its own log. Its result line is kept under its place in this script, so that suites that ran side
# by side are still listed in one order.
suite() { # NAME WHAT COMMAND...
  local name=$1 what=$2 started=$SECONDS status=0 result counted
  shift 2
  order=$((order + 1))
  result=$logs/results/$lane$(printf '%02d' "$order")
  chosen "$name" || return 0
  printf '== %s: %s\n' "$name" "$what"
  "$@" > "$logs/$name.log" 2>&1 || status=$?
  counted=$(count "$logs/$name.log")
  if [ "$status" -eq 0 ]; then
    echo "ok      $name ($((SECONDS - started)) s)${counted:+: $counted}" > "$result"
  else
    echo "FAILED  $name ($((SECONDS - started)) s)${counted:+: $counted}, see target/test-logs/$name.log" > "$result"
    { echo "== $name failed:"; tail -n 60 "$logs/$name.log"; }
  fi
}

# "N passed, N failed" of cargo and go logs; nothing for checks that count nothing.
count() { # FILE...
  cat "$@" | awk '
    /^test result:/ { passed += $4; failed += $6; any = 1 }
    /^ *--- PASS/ { passed++; any = 1 }
    /^ *--- FAIL/ { failed++; any = 1 }
    END { if (any) printf "%d passed, %d failed", passed, failed }'
}

# Always for the whole workspace: a smaller selection has dependencies with fewer features, and compiles them again.
cargo_test() { cargo test --locked --release -j"$jobs" --workspace "$@"; }

# Every library's own tests and every test file of the parts; those of `tests/` and `lab/` are suites of their own.
unit_tests() {
  local file tests=()
  for file in {crds,fail-points,controller,controller/plan,node-daemon,node-daemon/plan,xtask}/tests/*.rs; do
    [ -e "$file" ] && tests+=(--test "$(basename "$file" .rs)")
  done
  cargo_test --no-fail-fast --lib --bin xtask "${tests[@]}"
}

system_tests() { # TEST... [-- FILTER...]
  local tests=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do tests+=(--test "$1"); shift; done
  cargo_test "${tests[@]}" "$@"
}

lab_guests_tests() { # TEST...
  system_tests lab_guests -- --test-threads=3 "$@"
}

# What every run shows of real guests; `lab-guests` shows all.
brief=(lifecycle::lab_a_first_vm lifecycle::lab_a_guests_reboot lifecycle::lab_acts lifecycle::lab_edits lifecycle::lab_hardware
  lifecycle::lab_drift lifecycle::lab_halting outlive::lab_guests_outlive)

# A suite that runs only when it is named: too long for every run. It counts as skipped, by name.
by_hand() { # NAME WHAT COMMAND
  if [[ " ${wanted[*]} " == *" $1 "* ]]; then
    suite "$@"
  elif [ ${#wanted[@]} -eq 0 ]; then
    echo "suite $1: $2; run it with \`tools/test.sh $1\`" >> "$VIREO_SKIP_LOG"
  fi
}

# Everything is compiled first, so that the lanes below do not wait for each other's builds.
lane=1
suite fmt "formatting" cargo fmt --all --check
suite clippy "lints, warnings denied" cargo clippy --locked --release -j"$jobs" --workspace --all-targets -- -D warnings
suite build "every test, compiled" cargo_test --no-run
suite xtask "generated files, bounds, purity, sizes" target/release/xtask check
suite chart "chart lint" target/tools/helm lint --strict charts/vireo

trap 'trap - INT TERM; kill 0' INT TERM
# Three lanes side by side: guests, servers, and what computes more than it waits.
guests() {
  lane=4
  suite lab "hosts in namespaces, guest images" cargo_test --bin vireo-lab --test bare -- --test-threads=1
  suite lab-brief "the life of real guests on the lab's hosts, in brief" lab_guests_tests "${brief[@]}"
  by_hand lab-guests "all tests with real guests, about half an hour" lab_guests_tests
  by_hand install "install-single on a Debian with systemd, a VM, a reboot, uninstall-single" tools/test-install.sh
  # The tests share one lab and leave it up for the next binary.
  if [ -d target/lab-test ]; then target/release/vireo-lab --state target/lab-test down > "$logs/lab-down.log" 2>&1 || echo "the lab of the tests did not go down: see target/test-logs/lab-down.log"; fi
}
servers() {
  lane=3
  suite standalone "the API server, for real" standalone/go.sh test -vet=off -count=1 -timeout 900s -v ./...
  suite api "against the real API server" system_tests schema_api identity_api kubectl_api writes_api orders_api compatibility_api
}
decisions() {
  lane=2
  suite unit "decisions, goldens, parsers, executors" unit_tests
  suite sim "both planners under faults, in simulated histories" cargo_test --test histories -- --nocapture
  suite model "both planners in every history of a small fleet" cargo_test --test explore -- --nocapture
  suite faulty-api "parts on an API server that delays, refuses, forgets and stalls" system_tests faulty_api -- --nocapture
  suite fleet-api "50 hosts and 300 VMs: writes, silence, nothing left" system_tests fleet_api -- --nocapture
  by_hand fail-points "both parts killed before and after each thing they do, on a machine with nothing else to do" \
    system_tests failpoints_api -- --nocapture
  by_hand mutations "model and simulation notice each guard taken away; compiles both planners anew, some minutes" \
    cargo_test --features simulation/mutations,system-model/mutations --test mutations -- --nocapture
  by_hand fuzz "every reader of what others wrote, with random input, 15 s each" tools/fuzz.sh
}
decisions & servers & guests &
wait

echo
if [ -s "$VIREO_SKIP_LOG" ]; then
  echo "skipped:"
  sort -u "$VIREO_SKIP_LOG" | sed 's/^/  /'
fi
cat "$logs"/results/*
echo "$(count "$logs"/*.log), $(sort -u "$VIREO_SKIP_LOG" | wc -l) skipped"
! grep -q ^FAILED "$logs"/results/*

#!/bin/sh
# Stands before rustc when the fuzz targets are built (RUSTC_WRAPPER): adds counters to the crates that are fuzzed, and to
# nothing else. They are what `cargo fuzz` sets, but for the address sanitizer: it needs an unstable toolchain, and no
# crate here that is fuzzed has unsafe code of ours.
counters="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares"
previous=
for argument in "$@"; do
  if [ "$previous" = --crate-name ]; then
    case $argument in
    # shellcheck disable=SC2086
    vireo_crds | node_plan | controller_plan | roxmltree) exec "$@" $counters ;;
    esac
    case " $FUZZ_TARGETS vireo_fuzz " in
    # shellcheck disable=SC2086
    *" $argument "*) exec "$@" $counters ;;
    esac
    break
  fi
  previous=$argument
done
exec "$@"

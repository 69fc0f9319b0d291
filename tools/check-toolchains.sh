#!/usr/bin/env bash
# Says in one line what the build lacks; silent if all is there.
set -euo pipefail
rust_needed=1.95
go_needed=1.26
missing=()
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }
if ! command -v cargo >/dev/null; then
  missing+=("Rust $rust_needed (rustup.rs)")
else
  rust=$(cd "$(dirname "$0")/.." && cargo --version | awk '{print $2}')
  at_least "$rust_needed" "$rust" || missing+=("Rust $rust_needed (found $rust)")
fi
if ! command -v go >/dev/null; then
  missing+=("Go $go_needed (go.dev)")
else
  go=$(go env GOVERSION | sed 's/^go//')
  at_least "$go_needed" "$go" || missing+=("Go $go_needed (found $go)")
fi
[ "$(uname -s)" = Linux ] || missing+=("Linux")
[ "$(id -u)" = 0 ] || missing+=("root (namespaces, libvirt and packages need it)")
if [ ${#missing[@]} -gt 0 ]; then
  printf -v list '%s, ' "${missing[@]}"
  echo "make: missing: ${list%, }" >&2
  exit 1
fi

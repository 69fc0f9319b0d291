#!/usr/bin/env bash
# Builds the container images of controller and node daemon with whichever builder is there.
set -euo pipefail
cd "$(dirname "$0")/.."
for builder in podman docker buildah; do
  if command -v "$builder" >/dev/null; then
    version=$(awk -F'"' '/^version/ {print $2; exit}' Cargo.toml)
    for target in controller node; do
      "$builder" build --file Containerfile --target "$target" --tag "vireo-$target:$version" .
    done
    exit 0
  fi
done
echo "make image: missing: podman, docker or buildah" >&2
exit 1

#!/bin/sh
# Runs go with the flags that build.sh builds with: with others Go would compile all of Kubernetes a second time.
#   ./go.sh test -vet=off ./...     (vet is apart: for its sake Go analyses all of Kubernetes, minutes the first time)
#   ./go.sh vet ./...
set -eu
cd "$(dirname "$0")"
export CGO_ENABLED=0 GOFLAGS="-buildvcs=false -trimpath -p=${BUILD_JOBS:-2} ${GOFLAGS:-}"
exec go "$@"

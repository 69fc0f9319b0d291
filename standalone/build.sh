#!/bin/sh
# Builds the standalone control plane: build.sh OUT
# OUT is the binary; a link named kubectl is made beside it. Go's own cache makes a second run cheap.
set -eu
out=${1:?usage: build.sh OUT}
mkdir -p "$(dirname "$out")"
out=$(cd "$(dirname "$out")" && pwd)/$(basename "$out")
cd "$(dirname "$0")"

# Upstream compiles placeholders in; kubectl and the API's version checks need the real version.
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
rest=${version#v}
major=${rest%%.*}
minor=${rest#*.}
minor=${minor%%.*}
flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags="$flags -X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor"
    flags="$flags -X $package.gitTreeState=clean"
done

./go.sh build -ldflags "$flags" -o "$out" .
ln -sfn "$(basename "$out")" "$(dirname "$out")/kubectl"

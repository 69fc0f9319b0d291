#!/usr/bin/env bash
# Brings up a lab of three hosts, a network, two domains and a first VM, and shows that its guest booted.
set -euo pipefail
cd "$(dirname "$0")/.."
lab=target/release/vireo-lab
export KUBECONFIG=$PWD/target/lab/kubeconfig
kubectl=target/tools/kubectl

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

step "1/4 an API server, a controller and three hosts"
"$lab" up --hosts 3

step "2/4 a network, storage, and an image to boot from"
"$kubectl" apply -f examples/infrastructure/network-nat.yaml -f examples/quickstart/storage.yaml
"$kubectl" wait --for=condition=Ready network/nat storagedomain/shared storagedomain/local --timeout=60s
"$lab" exec host1 -- target/release/vireo-node import target/images/tiny.qcow2 --domain shared --if-missing

step "3/4 a first VM: kubectl apply -f examples/first-vm.yaml"
"$kubectl" apply -f examples/first-vm.yaml
"$kubectl" wait --for=condition=Ready vvm/web-1 --timeout=120s
# The address is the guest's own doing, a few seconds after its kernel runs.
"$kubectl" wait --for=jsonpath='{.status.summary.ip}' vvm/web-1 --timeout=120s
"$kubectl" get vhost,vnet,vsd,vdisk,vvm

step "4/4 what its serial console printed"
"$lab" console default/web-1 --log | grep -a -m 3 -E 'login:|address:'

cat <<'EOT'

It runs. Try:
  export KUBECONFIG=target/lab/kubeconfig PATH=$PWD/target/tools:$PATH
  kubectl get vvm -o wide
  kubectl describe vvm web-1
  kubectl edit vvm web-1
  target/release/vireo-lab console default/web-1     # leave with Ctrl-]
  make down                                          # removes all of it
EOT

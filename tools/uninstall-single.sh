#!/usr/bin/env bash
# Undoes install-single. Guests are stopped; their disks under /srv/vireo stay unless PURGE=1.
set -euo pipefail
step() { printf '== %s\n' "$*"; }
[ "$(id -u)" = 0 ] || { echo "uninstall-single: run as root" >&2; exit 1; }
export KUBECONFIG=/var/lib/vireo-standalone/admin.kubeconfig
kubectl=/usr/local/share/vireo/kubectl

if [ -x "$kubectl" ] && systemctl -q is-active vireo-standalone.service vireo-node.service; then
  step "stopping guests (each gets its grace period)"
  "$kubectl" get virtualmachines -A -o jsonpath='{range .items[*]}{.metadata.namespace} {.metadata.name}{"\n"}{end}' |
    while read -r namespace name; do
      "$kubectl" -n "$namespace" patch virtualmachine "$name" --type=merge -p '{"spec":{"runStrategy":"Halted"}}' >/dev/null
    done
  "$kubectl" wait --for=jsonpath='{.status.state}'=Stopped virtualmachines --all --all-namespaces --timeout=300s 2>/dev/null || true
fi

step "units"
for unit in vireo-node.service vireo-controller-token.timer vireo-controller.service vireo-standalone.service; do
  systemctl disable --now "$unit" 2>/dev/null || true
done
rm -f /etc/systemd/system/vireo-{node,controller,controller-token,standalone}.service /etc/systemd/system/vireo-controller-token.timer
systemctl daemon-reload
systemctl unmask sleep.target suspend.target hibernate.target hybrid-sleep.target >/dev/null 2>&1 || true

step "binaries and state"
[ "$(readlink /usr/local/bin/kubectl 2>/dev/null)" = /usr/local/share/vireo/kubectl ] && rm -f /usr/local/bin/kubectl
for hook in /etc/libvirt/hooks/qemu /etc/libvirt/hooks/qemu.d/vireo; do
  if grep -qs vireo "$hook"; then rm -f "$hook"; fi
done
rm -f /usr/local/bin/vireo-{node,controller,standalone}
rm -rf /usr/local/share/vireo /etc/vireo /etc/vireo-controller /run/vireo /var/lib/vireo /var/lib/vireo-standalone
if [ "${PURGE:-0}" = 1 ]; then
  rm -rf /srv/vireo
  echo "removed, guests' disks included"
else
  echo "removed; guests' disks are kept in /srv/vireo (PURGE=1 removes them)"
fi

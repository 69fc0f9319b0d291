#!/usr/bin/env bash
# Undoes install-single. Guests are stopped; their disks are kept under /srv/vireo unless PURGE=1.
set -euo pipefail
step() { printf '== %s\n' "$*"; }
die() { echo "uninstall-single: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "run as root"
export KUBECONFIG=/var/lib/vireo-standalone/admin.kubeconfig KUBECACHEDIR=/run/vireo-install
share=/usr/local/share/vireo
kubectl=$share/kubectl

within() { # SECONDS COMMAND...: whether it succeeds in time
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.5
  done
}

# Running domains that are ours, by the element every one of them carries.
guests() {
  command -v virsh >/dev/null || return 0
  virsh -q list --uuid 2>/dev/null | while read -r uuid; do
    if [ -n "$uuid" ] && virsh -q dumpxml "$uuid" 2>/dev/null | grep -q 'vireo\.dev/'; then echo "$uuid"; fi
  done
}
no_guests() { [ -z "$(guests)" ]; }
networks() { virsh -q net-list --name 2>/dev/null | grep -E '^vireo-[0-9a-f-]{36}$' || true; }
bridges() { ip -o link | sed -n 's/^[0-9]*: \([^:@]*\)[:@].*alias vireo .*/\1/p'; }
no_networks() { [ -z "$(networks)$(bridges)" ]; }

if [ -x "$kubectl" ] && systemctl -q is-active vireo-standalone.service && systemctl -q is-active vireo-node.service; then
  step "stopping guests (each gets its grace period)"
  "$kubectl" get virtualmachines -A -o jsonpath='{range .items[*]}{.metadata.namespace} {.metadata.name}{"\n"}{end}' |
    while read -r namespace name; do
      "$kubectl" -n "$namespace" patch virtualmachine "$name" --type=merge -p '{"spec":{"runStrategy":"Halted"}}' >/dev/null
    done
  within 300 no_guests || true
fi
no_guests || die "these guests still run; stop them first (virsh shutdown, or virsh destroy), then run this again:
$(guests)"

if [ -x "$kubectl" ] && systemctl -q is-active vireo-standalone.service && systemctl -q is-active vireo-node.service; then
  step "networks"
  "$kubectl" delete networks.vireo.dev --all --timeout=60s >/dev/null || true
  within 30 no_networks || true
fi

step "units"
for unit in vireo-node.service vireo-controller-token.timer vireo-controller.service vireo-standalone.service; do
  systemctl disable --now "$unit" 2>/dev/null || true
done
rm -f /etc/systemd/system/vireo-{node,controller,controller-token,standalone}.service /etc/systemd/system/vireo-controller-token.timer
systemctl daemon-reload

# What the node daemon did not live to remove.
for network in $(networks); do virsh -q net-destroy "$network" || true; done
for bridge in $(bridges); do ip link delete "$bridge" || true; done

step "binaries and state"
for hook in /etc/libvirt/hooks/qemu /etc/libvirt/hooks/qemu.d/vireo; do
  if grep -qs '^# Written by vireo-node join' "$hook"; then rm -f "$hook"; fi
done
rmdir /etc/libvirt/hooks/qemu.d 2>/dev/null || true
# What install-single changed is put back.
if [ -e $share/undo ]; then sh $share/undo >/dev/null 2>&1 || true; fi
[ "$(readlink /usr/local/bin/kubectl 2>/dev/null)" != $share/kubectl ] || rm -f /usr/local/bin/kubectl
rm -f /usr/local/bin/vireo-{node,controller,standalone} /etc/default/vireo-standalone
rm -rf $share /etc/vireo /etc/vireo-controller /run/vireo /run/vireo-install /var/lib/vireo /var/lib/vireo-standalone
if [ "${PURGE:-0}" = 1 ]; then
  rm -rf /srv/vireo
  echo "removed, guests' disks included"
elif [ -d /srv/vireo/local ]; then
  # Marked as the domain of an installation that is no more: a later one makes its own and can import from here.
  kept=/srv/vireo/kept-$(date +%Y%m%d-%H%M%S)
  mv /srv/vireo/local "$kept"
  echo "removed; guests' disks are kept in $kept (PURGE=1 removes them; after a new install-single,"
  echo "vireo-node import $kept/volumes/DISK.qcow2 --domain local takes one over)"
else
  echo "removed"
fi

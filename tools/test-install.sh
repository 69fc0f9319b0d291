#!/usr/bin/env bash
# Proves install-single and uninstall-single on a real Debian with a real systemd: a container of systemd-nspawn in its
# own namespaces, without a network. Nothing of this machine is touched but target/install-test.
#
#   tools/test-install.sh            everything, then clean up
#   tools/test-install.sh --keep     leave the container up at the end, for looking around
set -euo pipefail
cd "$(dirname "$0")/.."
repo=$PWD
state=$repo/target/install-test
name=single
keep=no
[ "${1:-}" != --keep ] || keep=yes

say() { printf '== %s\n' "$*"; }
die() { echo "test-install: $*" >&2; exit 1; }
skip() { echo "install: $*" | tee -a "${VIREO_SKIP_LOG:-/dev/null}"; exit 0; }

[ "$(id -u)" = 0 ] || skip "needs root to boot a container"
for tool in systemd-nspawn mmdebstrap nsenter; do
  command -v "$tool" >/dev/null || skip "$tool is missing (Debian packages systemd-container and mmdebstrap)"
done
for file in target/release/vireo-controller target/release/vireo-node target/tools/vireo-standalone target/tools/helm target/images/tiny.qcow2; do
  [ -e "$file" ] || die "$file is missing: run 'make tools build images'"
done

# --- a Debian to install on ----------------------------------------------------------------------------------------

# What somebody has who installed Debian and libvirt; QEMU and libvirt from backports, as tools/install-deps.sh does it.
packages=systemd,systemd-sysv,dbus,udev,iproute2,iputils-ping,procps,kmod,ca-certificates,openssl,dnsmasq-base,nftables,ovmf
packages+=,libvirt-clients,libvirt-daemon-config-nwfilter,libvirt-daemon-driver-qemu,libvirt-daemon-system
packages+=,qemu-system-x86,qemu-utils,swtpm,swtpm-tools
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
root_image=$state/rootfs-$(printf '%s %s' "$codename" "$packages" | sha256sum | cut -c1-12)

build_root() {
  [ ! -d "$root_image" ] || return 0
  say "installing a Debian to test on (about two minutes, once; log: $state/rootfs.log)"
  rm -rf "$state"/rootfs-*
  apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' > "$state/sources.list"
  apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian Backports' >> "$state/sources.list"
  [ -s "$state/sources.list" ] || skip "apt has no Debian sources here"
  printf 'Package: src:libvirt src:qemu src:seabios\nPin: release n=%s-backports\nPin-Priority: 990\n' "$codename" > "$state/pin"
  mmdebstrap --mode=root --variant=minbase --include="$packages" --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --setup-hook="mkdir -p \"\$1/etc/apt/preferences.d\"; cp '$state/pin' \"\$1/etc/apt/preferences.d/backports\"" \
    "$codename" "$root_image.new" "$state/sources.list" > "$state/rootfs.log" 2>&1 || { tail -n 5 "$state/rootfs.log"; skip "no Debian could be installed to test on, see $state/rootfs.log"; }
  mv "$root_image.new" "$root_image"
}

# --- the container -------------------------------------------------------------------------------------------------

nspawn=
cleanup() {
  if [ -n "$nspawn" ] && kill -0 "$nspawn" 2>/dev/null; then
    kill -TERM "$nspawn" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$nspawn" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$nspawn" 2>/dev/null || true
    wait "$nspawn" 2>/dev/null || true
  fi
  nspawn=
  rmdir "/run/systemd/nspawn/propagate/vireo-$name" /run/systemd/nspawn/propagate /run/systemd/nspawn/locks /run/systemd/nspawn 2>/dev/null || true
  if mountpoint -q "$state/root"; then umount "$state/root" || umount -l "$state/root"; fi
  rm -rf "$state/upper" "$state/work"
}

# The first process of the container: nspawn's only child.
init() { pgrep -P "$nspawn" | head -n 1; }

inside() { # COMMAND...: in the container, with the repository at /opt/vireo
  local pid
  pid=$(init)
  [ -n "$pid" ] || return 125
  nsenter --target "$pid" --all --wdns=/opt/vireo -- /usr/bin/env -i HOME=/root LANG=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    KUBECONFIG=/var/lib/vireo-standalone/admin.kubeconfig KUBECACHEDIR=/tmp/kubectl "$@"
}

await() { # SECONDS WHAT COMMAND...: until it succeeds
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      explain
      die "not in time: $what"
    fi
    sleep 0.3
  done
}

explain() {
  inside systemctl --failed --no-pager 2>/dev/null || true
  inside journalctl -b --no-pager -n 40 -u vireo-standalone -u vireo-controller -u vireo-node 2>/dev/null || true
  inside kubectl get vhost,vnet,vsd,vdisk,vvm -A -o wide 2>/dev/null || true
}

ended() { ! kill -0 "$nspawn" 2>/dev/null; }
booted() { [ "$(inside systemctl is-system-running 2>/dev/null)" = running ]; }

boot() {
  # The hierarchy of cgroups and the machine's capabilities are what a real Debian 12 has.
  SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_LOG_LEVEL=err systemd-nspawn --quiet --register=no --keep-unit \
    --private-network --capability=all --directory="$state/root" --machine="vireo-$name" \
    --bind-ro="$repo:/opt/vireo" --console=pipe --boot < /dev/null > "$state/boot.log" 2>&1 &
  nspawn=$!
  local deadline=$((SECONDS + 180))
  until booted; do
    if ! kill -0 "$nspawn" 2>/dev/null || [ "$SECONDS" -ge "$deadline" ]; then
      inside systemctl --failed --no-pager || true
      tail -n 5 "$state/boot.log"
      cleanup
      skip "a container cannot boot here, see $state/boot.log"
    fi
    sleep 0.3
  done
}

# --- what is looked at ---------------------------------------------------------------------------------------------

# Everything an installation could leave: files by name (not logs, caches and what systemd itself keeps), units, rules,
# interfaces, mounts, processes.
inventory() {
  inside sh -c '
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp -o -path /opt/vireo -o -path /srv/vireo \
      -o -path /var/log -o -path /var/cache -o -path /var/lib/systemd -o -path /var/lib/private \) -prune -o -print
    ls -d /run/vireo* /run/libvirt/qemu/*.xml /run/libvirt/network/*.xml 2>/dev/null
    systemctl list-unit-files --no-legend --no-pager | awk "{print \"unit\", \$1, \$2}"
    # libvirt keeps its empty chains.
    nft list ruleset | grep -E "10[.]88[.]|vn[0-9a-f]{12}"
    ip -o link | awk "{print \"link\", \$2}"
    ip netns | sed "s/^/netns /"
    ps -e -o comm= | grep -E "qemu|dnsmasq|swtpm|vireo" | sed "s/^/process /"
    true' | grep -vx /var/lib/libvirt/dnsmasq | LC_ALL=C sort
}

vm_state() { inside kubectl get vvm web-1 -o "jsonpath={.status.state}"; }
vm_runs() { [ "$(vm_state)" = Running ]; }
vm_address() { inside kubectl get vvm web-1 -o 'jsonpath={.status.summary.ip}' | grep -qE '^10\.88\.0\.'; }
console_shows() { inside vireo-node console default/web-1 --log | grep -aq "$1"; }
qemu_pid() { inside pgrep -f 'guest=default.web-1' | head -n 1; }
disks() { inside find /srv/vireo -type f -name '*.qcow2' -printf '%f %s\n' | LC_ALL=C sort; }

same_inventory() { # WHEN
  inventory > "$state/after"
  diff "$state/before" "$state/after" > "$state/left" || { cat "$state/left"; die "$1: this is left (<: removed, >: added)"; }
}

mkdir -p "$state/root"
trap cleanup EXIT
trap 'exit 130' INT TERM
build_root
rm -rf "$state/upper" "$state/work"
mkdir -p "$state/upper" "$state/work"
mount -t overlay overlay -o "lowerdir=$root_image,upperdir=$state/upper,workdir=$state/work" "$state/root"
: > "$state/root/etc/machine-id"
echo "$name" > "$state/root/etc/hostname"
mkdir -p "$state/root/opt/vireo"

started=$SECONDS
say "a Debian boots"
boot
inventory > "$state/before"

say "install-single"
inside tools/install-single.sh || { explain; die "install-single failed"; }
inside systemctl is-active vireo-standalone vireo-controller vireo-node >/dev/null || { explain; die "a unit is not active"; }

say "the first VM of the examples"
inside vireo-node import target/images/tiny.qcow2 --domain local
sed 's/storageDomain: shared/storageDomain: local/' examples/first-vm.yaml > "$state/root/root/first-vm.yaml"
inside kubectl apply -f /root/first-vm.yaml
await 300 "the VM is Ready" inside kubectl wait --for=condition=Ready vvm/web-1 --timeout=1s
await 300 "its guest has an address" vm_address
await 120 "its console booted" console_shows 'login: boot 1'
inside kubectl get vhost,vnet,vsd,vdisk,vvm
pid=$(qemu_pid)

say "install-single again: an upgrade"
inside tools/install-single.sh > "$state/again.log" 2>&1 || { cat "$state/again.log"; die "the second install-single failed"; }
[ "$(qemu_pid)" = "$pid" ] || die "the guest did not live through the upgrade"

say "reboot"
inside systemctl poweroff || true
await 180 "the machine is down" ended
boot
await 300 "the VM is Running again" vm_runs
await 300 "its guest booted a second time" console_shows 'login: boot 2'
await 180 "and has its address" vm_address

say "uninstall-single"
disks > "$state/disks"
[ -s "$state/disks" ] || die "there are no disks to keep"
inside tools/uninstall-single.sh
rm -f "$state/root/root/first-vm.yaml"
same_inventory "after uninstall-single"
disks | diff "$state/disks" - || die "uninstall-single did not keep the guests' disks"

say "uninstall-single with PURGE=1"
inside env PURGE=1 tools/uninstall-single.sh
inside test ! -e /srv/vireo || die "/srv/vireo is still there"
same_inventory "after PURGE=1"

if [ "$keep" = yes ]; then
  echo "the container is up; enter it with: nsenter -t $(init) -a; end it with Ctrl-C"
  wait "$nspawn"
fi
say "ok in $((SECONDS - started)) s"
echo "test result: ok. 1 passed; 0 failed"

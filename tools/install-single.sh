#!/usr/bin/env bash
# Turns this machine into a one-host installation: API server, controller and node daemon as systemd units, the host
# joined, a cluster, a local domain and a NAT network. Running it again upgrades the binaries and changes nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
die() { echo "install-single: $*" >&2; exit 1; }
step() { printf '== %s\n' "$*"; }

[ "$(id -u)" = 0 ] || die "run as root"
[ -d /run/systemd/system ] || die "this machine was not booted with systemd; try 'make quickstart' instead"
host=$(hostname -s | tr '[:upper:]' '[:lower:]')
[[ $host =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || die "the host name '$host' is no valid Host name: use letters, digits and '-'"
data=/var/lib/vireo-standalone
export KUBECONFIG=$data/admin.kubeconfig
# Caches of kubectl and helm go where the next boot forgets them.
export KUBECACHEDIR=/run/vireo-install HELM_CACHE_HOME=/run/vireo-install HELM_CONFIG_HOME=/run/vireo-install HELM_DATA_HOME=/run/vireo-install

step "binaries to /usr/local/bin"
for binary in target/release/vireo-controller target/release/vireo-node target/tools/vireo-standalone; do
  [ -x "$binary" ] || die "$binary is missing: run 'make tools build'"
  install -m 0755 "$binary" "/usr/local/bin/.$(basename "$binary").new"
  mv "/usr/local/bin/.$(basename "$binary").new" "/usr/local/bin/$(basename "$binary")"
done
install -d -m 0755 /usr/local/share/vireo
rm -rf /usr/local/share/vireo/chart && cp -r charts/vireo /usr/local/share/vireo/chart
ln -sfn /usr/local/bin/vireo-standalone /usr/local/share/vireo/kubectl
kubectl=/usr/local/share/vireo/kubectl
command -v kubectl >/dev/null || ln -s /usr/local/share/vireo/kubectl /usr/local/bin/kubectl

# What was different before, as commands for uninstall-single.
undo=/usr/local/share/vireo/undo
remember() { printf '%s\n' "$*" >> "$undo"; }
is_enabled() { [ "$(systemctl is-enabled "$1" 2>/dev/null)" = enabled ]; }

step "libvirt"
if is_enabled libvirt-guests.service; then
  remember systemctl enable libvirt-guests.service
  systemctl disable --now libvirt-guests.service >/dev/null 2>&1
fi
for target in sleep suspend hibernate hybrid-sleep; do
  if [ "$(systemctl is-enabled $target.target 2>/dev/null)" != masked ]; then
    remember systemctl unmask $target.target
    systemctl mask $target.target >/dev/null 2>&1
  fi
done
if systemctl cat libvirtd.socket >/dev/null 2>&1; then
  libvirt=libvirtd sockets=(libvirtd.socket)
elif systemctl cat virtqemud.socket >/dev/null 2>&1; then
  libvirt=virtqemud sockets=(virtqemud.socket virtnetworkd.socket)
else
  die "there is no libvirt: run 'make deps'"
fi
# A machine that rebooted is known by its UUID. Where the firmware has none, libvirt makes up one at each start.
if [ ! -s /sys/class/dmi/id/product_uuid ] && ! grep -qsE '^ *host_uuid' /etc/libvirt/$libvirt.conf; then
  remember "sed -i '/^host_uuid = .* # by install-single$/d' /etc/libvirt/$libvirt.conf"
  printf 'host_uuid = "%s" # by install-single\n' "$(cat /proc/sys/kernel/random/uuid)" >> /etc/libvirt/$libvirt.conf
  systemctl try-restart $libvirt.service
fi
for socket in "${sockets[@]}"; do
  is_enabled "$socket" || remember systemctl disable "$socket"
  systemctl enable --now "$socket" >/dev/null 2>&1 || die "$socket cannot be enabled: see 'journalctl -u $socket'"
done

step "API server"
install -m 0644 standalone/vireo-standalone.service /etc/systemd/system/vireo-standalone.service
systemctl daemon-reload
systemctl enable vireo-standalone.service >/dev/null 2>&1
systemctl restart vireo-standalone.service

step "kinds, roles and admission policies"
target/tools/helm upgrade --install vireo charts/vireo --namespace vireo-system --create-namespace \
  --set controller.enabled=false --wait >/dev/null
vireo-standalone init --data-dir "$data"

step "controller"
install -d -m 0700 /etc/vireo-controller
cat > /usr/local/share/vireo/renew-controller-token <<'SCRIPT'
#!/bin/sh
# Writes a fresh token of the controller's ServiceAccount; a timer does so daily.
set -eu
export KUBECONFIG=/var/lib/vireo-standalone/admin.kubeconfig
umask 077
/usr/local/share/vireo/kubectl create token vireo-controller --namespace vireo-system --duration 72h > /etc/vireo-controller/.token
mv /etc/vireo-controller/.token /etc/vireo-controller/token
SCRIPT
chmod 0755 /usr/local/share/vireo/renew-controller-token
/usr/local/share/vireo/renew-controller-token
server=$("$kubectl" config view --raw -o jsonpath='{.clusters[0].cluster.server}')
"$kubectl" config view --raw -o jsonpath='{.clusters[0].cluster.certificate-authority-data}' | base64 -d > /etc/vireo-controller/ca.crt
cat > /etc/vireo-controller/kubeconfig <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: local, cluster: {server: "$server", certificate-authority: /etc/vireo-controller/ca.crt}}]
users: [{name: controller, user: {tokenFile: /etc/vireo-controller/token}}]
contexts: [{name: controller, context: {cluster: local, user: controller}}]
current-context: controller
CONFIG
cat > /etc/systemd/system/vireo-controller.service <<'UNIT'
[Unit]
Description=Vireo controller
After=vireo-standalone.service
Wants=vireo-standalone.service

[Service]
ExecStartPre=/usr/local/share/vireo/renew-controller-token
ExecStart=/usr/local/bin/vireo-controller run --kubeconfig /etc/vireo-controller/kubeconfig --http 127.0.0.1:9471
Restart=always
RestartSec=2

[Install]
WantedBy=multi-user.target
UNIT
cat > /etc/systemd/system/vireo-controller-token.service <<'UNIT'
[Unit]
Description=Renew the token of the Vireo controller

[Service]
Type=oneshot
ExecStart=/usr/local/share/vireo/renew-controller-token
UNIT
cat > /etc/systemd/system/vireo-controller-token.timer <<'UNIT'
[Unit]
Description=Renew the token of the Vireo controller daily

[Timer]
OnUnitActiveSec=1d
OnBootSec=10min

[Install]
WantedBy=timers.target
UNIT
systemctl daemon-reload
systemctl enable vireo-controller.service >/dev/null 2>&1
systemctl restart vireo-controller.service
systemctl enable --now vireo-controller-token.timer >/dev/null 2>&1

step "this host: $host"
"$kubectl" get host "$host" >/dev/null 2>&1 || "$kubectl" apply -f - >/dev/null <<MANIFEST
apiVersion: vireo.dev/v1alpha1
kind: Host
metadata: {name: $host}
spec: {cluster: default, address: 127.0.0.1}
MANIFEST
if systemctl -q is-enabled vireo-node.service 2>/dev/null; then
  systemctl restart vireo-node.service
else
  "$kubectl" wait --for=create "serviceaccount/host-$host" --namespace vireo-hosts --timeout=60s >/dev/null
  token=$(mktemp)
  trap 'rm -f "$token"' EXIT
  "$kubectl" create token "host-$host" --namespace vireo-hosts --duration 15m > "$token"
  vireo-node join "$server" --host "$host" --token "$token" --ca-file /etc/vireo-controller/ca.crt
fi

step "a local domain and a NAT network"
install -d -m 0711 /srv/vireo/local
"$kubectl" apply -f - <<'MANIFEST'
apiVersion: vireo.dev/v1alpha1
kind: StorageDomain
metadata: {name: local}
spec: {directory: {path: /srv/vireo/local}}
---
apiVersion: vireo.dev/v1alpha1
kind: Network
metadata: {name: nat}
spec: {nat: {cidr: 10.88.0.0/24, dhcp: {}}}
MANIFEST
"$kubectl" wait --for=condition=Ready "host/$host" storagedomain/local network/nat --timeout=120s

cat <<EOT

This machine runs VMs now.
  export KUBECONFIG=$data/admin.kubeconfig
  vireo-node import IMAGE.qcow2 --domain local
  kubectl apply -f examples/first-vm.yaml      # with storageDomain: local
  make uninstall-single                        # undoes it; guests' disks are kept
EOT

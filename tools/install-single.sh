#!/usr/bin/env bash
# Turns this machine into a one-host installation: API server, controller and node daemon as systemd units, the host
# joined, a cluster, a local domain and a NAT network. Running it again upgrades the binaries and changes nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
die() { echo "install-single: $*" >&2; exit 1; }
step() { printf '== %s\n' "$*"; }

[ -d /run/systemd/system ] || die "this machine was not booted with systemd; try 'make quickstart' instead"
host=$(hostname -s | tr '[:upper:]' '[:lower:]')
[[ $host =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || die "the host name '$host' is no valid Host name: use letters, digits and '-'"
data=/var/lib/vireo-standalone
export KUBECONFIG=$data/admin.kubeconfig

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

step "libvirt"
systemctl disable --now libvirt-guests.service 2>/dev/null || true
systemctl mask sleep.target suspend.target hibernate.target hybrid-sleep.target >/dev/null 2>&1
systemctl enable --now libvirtd.socket >/dev/null 2>&1 || systemctl enable --now virtqemud.socket virtnetworkd.socket >/dev/null 2>&1 \
  || die "neither libvirtd.socket nor virtqemud.socket can be enabled"

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
if [ -e /etc/vireo/node.yaml ]; then
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

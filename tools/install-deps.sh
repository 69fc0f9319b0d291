#!/bin/sh
# Installs what a fresh Debian 12 machine lacks to build Vireo and to run its
# lab, its tests and its benchmarks. Run as root; quick when nothing is missing.
#
#   tools/install-deps.sh            install
#   tools/install-deps.sh --check    only say what is missing (exit 1)
#
# libvirt and QEMU come from this release's backports, found at the mirror the
# machine already uses. No system libvirtd is started or enabled by this, and
# libvirt's default network is not left to start by itself: the lab runs its
# own libvirtd in namespaces, and what the machine had before stays as it was.
set -eu

# Packages from backports, by source package; everything else stays stable.
BACKPORTED="src:libvirt src:qemu src:seabios"

# To build, to run hosts, to build guests and media, to check.
PACKAGES="
ca-certificates curl gcc git jq libc6-dev make openssl pkg-config xz-utils zstd
dnsmasq-base iproute2 iputils-ping kmod libvirt-clients libvirt-daemon-config-nwfilter
libvirt-daemon-driver-qemu libvirt-daemon-system libvirt-dev nftables ovmf procps
qemu-system-x86 qemu-utils swtpm swtpm-tools util-linux
openssh-client g++ systemd-container
binutils cpio dosfstools e2fsprogs fdisk mmdebstrap mtools
genisoimage libxml2-utils socat xorriso
"

say() { printf 'install-deps: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]
}

missing_packages() {
    for p in $PACKAGES; do installed "$p" || printf '%s ' "$p"; done
}

# True where the installed QEMU and libvirt are older than what is tested here.
outdated() {
    for p in libvirt-daemon-system:11 qemu-system-x86:1:10; do
        name=${p%%:*} want=${p#*:}
        have=$(dpkg-query -W -f '${Version}' "$name" 2>/dev/null || true)
        [ -n "$have" ] && dpkg --compare-versions "$have" lt "$want" && return 0
    done
    return 1
}

# Prints "URI SIGNED-BY" of the archive this machine takes its release from.
# Reads both the one-line and the deb822 form of apt's source lists.
archive() {
    for f in /etc/apt/sources.list.d/*.sources; do
        [ -e "$f" ] || continue
        awk -v suite="$CODENAME" '
            function flush() {
                if (types ~ /(^| )deb( |$)/ && (" " suites " ") ~ (" " suite " ") && enabled != "no" && uri != "") {
                    print uri, signed; found = 1; exit
                }
                types = uri = suites = signed = enabled = ""
            }
            /^[ \t]*#/ { next }
            /^[ \t]*$/ { flush(); next }
            tolower($1) == "types:"     { $1 = ""; sub(/^ /, ""); types = $0 }
            tolower($1) == "uris:"      { uri = $2 }
            tolower($1) == "suites:"    { $1 = ""; sub(/^ /, ""); suites = $0 }
            tolower($1) == "signed-by:" { signed = $2 }
            tolower($1) == "enabled:"   { enabled = $2 }
            END { if (!found) flush() }
        ' "$f"
    done
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -e "$f" ] || continue
        awk -v suite="$CODENAME" '
            $1 != "deb" { next }
            {
                signed = ""; i = 2
                if ($2 ~ /^\[/) {
                    for (i = 2; i <= NF; i++) {
                        o = $i; gsub(/[][]/, "", o)
                        if (o ~ /^signed-by=/) signed = substr(o, 11)
                        if ($i ~ /\]$/) break
                    }
                    i++
                }
                if ($(i + 1) == suite) print $i, signed
            }
        ' "$f"
    done
}

has_backports() {
    apt-cache policy | grep -q "n=$CODENAME-backports"
}

add_backports() {
    has_backports && return 0
    found=$(archive | head -n 1)
    uri=${found%% *} signed=${found#* }
    [ -n "$uri" ] || die "found no apt source for $CODENAME in /etc/apt; add one, or add $CODENAME-backports by hand"
    file=/etc/apt/sources.list.d/vireo-backports.sources
    say "adding $CODENAME-backports ($file)"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\n' "$uri" "$CODENAME"
        [ -z "$signed" ] || printf 'Signed-By: %s\n' "$signed"
    } > "$file.new"
    mv "$file.new" "$file"
    apt-get update -q
}

install_packages() {
    missing=$(missing_packages)
    if [ -z "$missing" ] && ! outdated; then
        say "nothing is missing"
        return 0
    fi
    [ "$CHECK" = no ] || die "missing or too old: ${missing:-libvirt, QEMU} (run tools/install-deps.sh as root)"
    [ "$(id -u)" = 0 ] || die "must run as root to install: ${missing:-newer libvirt and QEMU}"
    export DEBIAN_FRONTEND=noninteractive
    say "missing: ${missing:-a newer libvirt and QEMU}"
    [ -n "$(find /var/lib/apt/lists -name '*Packages*' -mtime -1 2>/dev/null | head -n 1)" ] || apt-get update -q
    add_backports

    # Whatever the machine had of a system libvirt stays as it was; what these
    # packages would newly switch on stays off.
    had_libvirtd=no; ! installed libvirt-daemon-system || had_libvirtd=yes
    had_network=no; ! [ -e /etc/libvirt/qemu/networks/autostart/default.xml ] || had_network=yes

    work=$(mktemp -d)
    policy_moved=no
    # shellcheck disable=SC2317,SC2329
    cleanup() {
        rm -f /usr/sbin/policy-rc.d
        [ "$policy_moved" = no ] || mv /usr/sbin/policy-rc.d.vireo-saved /usr/sbin/policy-rc.d
        rm -rf "$work"
    }
    trap cleanup EXIT
    trap 'exit 130' INT TERM
    # Left by a run that was killed.
    [ ! -e /usr/sbin/policy-rc.d.vireo-saved ] || mv /usr/sbin/policy-rc.d.vireo-saved /usr/sbin/policy-rc.d
    if [ -e /usr/sbin/policy-rc.d ]; then
        mv /usr/sbin/policy-rc.d /usr/sbin/policy-rc.d.vireo-saved
        policy_moved=yes
    fi
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d

    # Only for this run: a pin that takes the virtualization stack, and nothing
    # else, from backports.
    if [ -e /etc/apt/preferences ]; then cat /etc/apt/preferences > "$work/preferences"; echo >> "$work/preferences"; fi
    printf 'Package: %s\nPin: release n=%s-backports\nPin-Priority: 990\n' "$BACKPORTED" "$CODENAME" >> "$work/preferences"
    chmod 755 "$work"; chmod 644 "$work/preferences"

    # shellcheck disable=SC2086
    apt-get install -q -y --no-install-recommends \
        -o Dir::Etc::Preferences="$work/preferences" \
        -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 \
        $PACKAGES

    if [ "$had_network" = no ]; then
        rm -f /etc/libvirt/qemu/networks/autostart/default.xml
    fi
    if [ "$had_libvirtd" = no ] && [ -d /run/systemd/system ]; then
        systemctl disable --quiet libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket \
            libvirt-guests.service virtlogd.socket virtlogd-admin.socket virtlockd.socket virtlockd-admin.socket \
            2>/dev/null || true
    fi
    cleanup
    trap - EXIT INT TERM
    say "installed"
}

CHECK=no
while [ $# -gt 0 ]; do
    case "$1" in
    --check) CHECK=yes ;;
    *) die "unknown argument $1 (see the head of this file)" ;;
    esac
    shift
done

[ -r /etc/os-release ] || die "no /etc/os-release: this script is for Debian"
CODENAME=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
[ "$(. /etc/os-release && printf '%s' "${ID:-}")" = debian ] || die "this script is for Debian; elsewhere install by hand: $(echo $PACKAGES)"

install_packages

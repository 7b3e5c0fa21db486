#!/usr/bin/env bash
# Installs what the tests and the demo need and the machine lacks: Debian packages, and Keylime in a
# virtual environment of its own. Says what it does; a second run finds everything there.
#
#   KEYLIME_MQTT_VENV   where the virtual environment goes (default: .venv in the repository)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${KEYLIME_MQTT_VENV:-$(dirname "$here")/.venv}

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# What each is for: swtpm-tools makes EK certificates; libtss2-dev and pkg-config build the agent, the tcti
# libraries are opened by it at run time; libefivar1 lets Keylime read UEFI logs (without it every attestation
# with one fails); the mosquitto package may start a service on 1883: the tests bring their own on other ports;
# iproute2, ethtool and tcpdump make and watch the link of `make bench-link`; squid is the proxy that clients must get
# through (the package may start a service on 3128: the tests bring their own on other ports); faketime sets the wall
# clock of one process; nftables and haproxy are the firewalls and the shared port 443 of the network lab.
packages=(gcc libc6-dev pkg-config libtss2-dev libtss2-tcti-device0 libtss2-tcti-swtpm0 swtpm swtpm-tools
    tpm2-tools mosquitto mosquitto-clients libefivar1 openssl python3 python3-venv util-linux
    iproute2 ethtool tcpdump squid faketime libfaketime nftables haproxy)

install_packages() {
    if ! command -v dpkg-query >/dev/null; then
        say "not Debian or Ubuntu: make sure the equivalents of these are there: ${packages[*]}"
        return
    fi
    local missing=() package
    for package in "${packages[@]}"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        say "packages: already there"
        return
    fi
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "not root and no sudo: run as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "packages: installing ${missing[*]}"
    "${as_root[@]}" apt-get update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}

install_keylime() {
    local stamp
    stamp=$venv/installed-$(cat "$here/requirements.txt" "$here/gpg.py" | sha256sum | cut -c1-16)
    if [ -e "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        say "Keylime in $venv: already there"
        return
    fi
    say "Keylime: installing into $venv"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "python3 is older than 3.10, which Keylime needs: put a newer one first in PATH"
    # A python3 in front of the system's may lack venv's parts although the package is installed.
    local python=python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || python=/usr/bin/python3
    "$python" -m venv --clear "$venv"
    "$venv/bin/pip" install --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/gpg.py" "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gpg.py"
    touch "$stamp"
    say "Keylime: $("$venv/bin/pip" list --disable-pip-version-check 2>/dev/null | grep '^keylime ')"
}

install_packages
install_keylime

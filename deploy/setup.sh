#!/usr/bin/env bash
# What `make container` needs: a container engine that works, and a base image. On Debian, as root, it installs
# what is missing; elsewhere it says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

works() { command -v "$1" > /dev/null && "$1" info > /dev/null 2>&1; }

install() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "Please install: $*   (on Debian: sudo apt-get install --no-install-recommends $*)" >&2
        exit 1
    fi
    echo "installing $*"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 \
        install -y --no-install-recommends "$@"; } > /tmp/setup-apt.log 2>&1 || { tail -n 20 /tmp/setup-apt.log >&2; exit 1; }
}

# podman without systemd (inside a container, on many CI machines): cgroups by itself, limits it may set.
configure() {
    [ -d /run/systemd/system ] || [ -e /etc/containers/containers.conf ] || [ "$(id -u)" != 0 ] && return
    mkdir -p /etc/containers
    cat > /etc/containers/containers.conf << 'CONF'
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]

[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
}

if ! works podman && ! works docker; then
    install podman runc catatonit
    configure
fi
if works podman; then engine=podman; else engine=docker; fi
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! command -v docker-registry > /dev/null; then
    install docker-registry  # to push to; where there is none, that test is skipped
fi

base=docker.io/library/debian:bookworm-slim
if ! "$engine" image inspect localhost/debian:bookworm-slim > /dev/null 2>&1 &&
    ! timeout 120 "$engine" pull --quiet "$base" > /dev/null 2>&1; then
    echo "no registry within reach: making the base image from Debian's packages"
    command -v debootstrap > /dev/null || install debootstrap
    deploy/base-image.sh "$engine"
fi
"$engine" --version

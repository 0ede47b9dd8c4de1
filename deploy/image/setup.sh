#!/usr/bin/env bash
# Provides what `make container` needs: a container engine that works, and a base image. On Debian, as root, it
# installs what is missing; elsewhere it says what to install.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin  # has what dpkg and podman need; Debian's `su` leaves it out

works() { command -v "$1" > /dev/null && "$1" info > /dev/null 2>&1; }
may_install() { [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; }

install() {
    if ! may_install; then
        echo "Please install: $*   (on Debian: sudo apt-get install --no-install-recommends $*)" >&2
        exit 1
    fi
    echo "installing $*"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 \
        install -y --no-install-recommends "$@"; } > /tmp/setup-apt.log 2>&1 || { tail -n 20 /tmp/setup-apt.log >&2; exit 1; }
}

# Configures podman for root without systemd (inside a container, on many CI machines): podman manages cgroups by
# itself, sets only limits that it may set, and uses runc, since crun refuses cgroups of both versions side by side.
# A configuration of your own is not changed.
configure() {
    if [ -d /run/systemd/system ] || [ "$(id -u)" != 0 ] || [ -n "${CONTAINERS_CONF:-}" ] ||
        [ -e /etc/containers/containers.conf ]; then
        return
    fi
    command -v runc > /dev/null || install runc
    echo "writing /etc/containers/containers.conf"
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

if ! works podman && ! works docker; then install podman runc catatonit; fi
if command -v podman > /dev/null; then
    configure  # also if podman was there before
    # catatonit is the first process of a pod
    if may_install && ! command -v catatonit > /dev/null; then install catatonit; fi
fi
if works podman; then engine=podman; else engine=docker; fi
# A test pushes to this registry, and is skipped without it. The package's service stays off: the test runs the program.
if may_install && ! command -v docker-registry > /dev/null; then
    [ ! -d /run/systemd/system ] || systemctl mask --quiet docker-registry
    install docker-registry
fi

base=docker.io/library/debian:bookworm-slim
if ! "$engine" image inspect localhost/debian:bookworm-slim > /dev/null 2>&1 &&
    ! timeout 120 "$engine" pull --quiet "$base" > /dev/null 2>&1; then
    echo "no registry within reach: making the base image from Debian's packages"
    command -v debootstrap > /dev/null || install debootstrap
    deploy/image/base-image.sh "$engine"
fi
"$engine" --version

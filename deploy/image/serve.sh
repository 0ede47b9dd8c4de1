#!/bin/bash
# Runs in the container: starts TorchServe on loopback and nginx in front of it. If one of the two ends, the
# script ends with status 1. On SIGTERM or SIGINT it first lets requests in flight finish, and ends with status 0.
#
# The keys are the files inference and management in /run/keys (a mounted folder, or a Kubernetes secret). A missing
# key is generated in /tmp/serve/keys. With TOKEN_AUTH=off no key is needed: for those with a gateway.
set -euo pipefail
umask 077
rm -rf /tmp/serve  # all files are written there; a restarted container starts clean
mkdir -p /tmp/serve/keys /tmp/serve/tmp
cd /tmp/serve

fail() {
    echo "serve: $*" >&2
    exit 1
}

key() {
    if [ -e "/run/keys/$1" ]; then
        cat "/run/keys/$1" > "keys/$1" || fail "The key /run/keys/$1 can't be read by user $(id -u)."
    else
        head -c 24 /dev/urandom | base64 | tr '+/' '-_' > "keys/$1"
    fi
    grep -qxE '[A-Za-z0-9_-]{16,}' "keys/$1" || fail "The key /run/keys/$1 should be one line of 16 or more of A-Z a-z 0-9 _ -"
    head -n 1 "keys/$1"
}

case "${TOKEN_AUTH:-on}" in
    on)
        inference=$(key inference)
        management=$(key management)
        cat > keys.conf <<CONF
map "\$server_port \$http_authorization" \$allowed {
    "~^808[02] Bearer $inference\$" yes;
    "~^8081 Bearer $management\$" yes;
    default no;
}
CONF
        ;;
    off) echo 'map "" $allowed { default yes; }' > keys.conf ;;
    *) fail "TOKEN_AUTH is on or off, not $TOKEN_AUTH." ;;
esac

# Otherwise each worker's torch computes with as many threads as the machine has cores, and they slow each other down.
threads=$(python /srv/serve/threads.py) || fail "The model config in the archive can't be read."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
export TMPDIR=/tmp/serve/tmp TEMP=/tmp/serve/tmp
torchserve --start --foreground --ncs --disable-token-auth --model-store /srv/model_store \
    --models "$MODEL_NAME=model.mar" --ts-config /srv/serve/config.properties \
    --log-config /srv/serve/log4j2.xml &
torchserve=$!
nginx -e stderr -c /srv/serve/nginx.conf &
nginx=$!

stop() {
    trap '' TERM INT
    kill -QUIT "$nginx" && wait "$nginx" || true  # takes no more requests, and answers those it has
    kill "$torchserve" || true
    exit 0
}
trap stop TERM INT

wait -n || true
if kill -0 "$nginx" 2> /dev/null; then ended=TorchServe; else ended=nginx; fi
fail "$ended ended. The lines above say why; if they don't: $(python /srv/serve/health.py --memory)"

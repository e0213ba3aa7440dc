#!/usr/bin/env bash
# Two nodes on this machine, each with a small HTTP server behind it. Ask either port, and both answer in turn:
#     curl http://127.0.0.1:8484/     curl http://127.0.0.1:8494/
# Ctrl-C ends all of it. FEDERATION=... names another command than the checkout's own, PORT_OFFSET=... moves the ports.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${FEDERATION:-}" ]; then
    scripts/setup
fi
federation=${FEDERATION:-.venv/bin/federation}
shift_by=${PORT_OFFSET:-0} # added to every port, where these are taken
port() { echo "127.0.0.1:$(($1 + shift_by))"; }
work=$(mktemp -d)
pids=()
cleanup() {
    kill "${pids[@]}" 2>/dev/null || true
    wait || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 0' INT TERM

for name in a b; do
    mkdir "$work/$name-www"
    echo "answered by $name" >"$work/$name-www/index.html"
done
python3 -m http.server "$((8001 + shift_by))" --bind 127.0.0.1 --directory "$work/a-www" >/dev/null 2>&1 &
pids+=("$!")
python3 -m http.server "$((8002 + shift_by))" --bind 127.0.0.1 --directory "$work/b-www" >/dev/null 2>&1 &
pids+=("$!")

(umask 077; "$federation" token new --name two-nodes --peer "$(port 4484)" --owner-key "$work/owner.key" >"$work/token")
"$federation" join --token-file "$work/token" --state-dir "$work/a" --name a --backend "$(port 8001)" \
    --p2p-listen "$(port 4484)" --listen "$(port 8484)" --control "$(port 8485)" --no-mdns &
pids+=("$!")
"$federation" join --token-file "$work/token" --state-dir "$work/b" --name b --backend "$(port 8002)" \
    --p2p-listen "$(port 4494)" --listen "$(port 8494)" --control "$(port 8495)" --no-mdns &
pids+=("$!")
wait

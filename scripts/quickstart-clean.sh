#!/usr/bin/env bash
# Removes everything `make quickstart` made: containers, registries, the engine root.
set -uo pipefail
corten=$(realpath "$1")
quiet=${2:-}
export CORTEN_ROOT=${QUICKSTART_ROOT:-/var/lib/corten-quickstart}
state=$CORTEN_ROOT.d
failed=""
unset DOCKER_HOST DOCKER_CONTEXT

for root in "$CORTEN_ROOT" "$state/base"; do
  [ -e "$root/corten.db" ] || continue
  # The root is what knows the rest: it stays until the reset has worked.
  if ! "$corten" --root "$root" system reset --force >/dev/null; then
    echo "quickstart-clean: '$corten --root $root system reset --force' failed: try again" >&2
    failed=1
  fi
done
for pidfile in "$state"/*.pid; do
  [ -e "$pidfile" ] || continue
  pid=$(cat "$pidfile")
  # Only a process that still is our registry is ended.
  if { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q "registry serve .*$state"; then
    kill "$pid" 2>/dev/null
  fi
done
[ -z "$failed" ] || exit 1
rm -rf "$CORTEN_ROOT" "$state"
[ "$quiet" = quiet ] || echo "Removed everything the quickstart made."

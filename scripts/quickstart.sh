#!/usr/bin/env bash
# The walkthrough, narrated: build, run, look, stop, push, pull back, volumes. Leaves the
# app answering on port 8080 until Ctrl-C or `make quickstart-clean`.
#
# Everything lives in an engine root of its own, so nothing else on the machine is touched.
set -euo pipefail
cd "$(dirname "$0")/.."
corten=$(realpath "$1")
export CORTEN_ROOT=${QUICKSTART_ROOT:-/var/lib/corten-quickstart}
state=$CORTEN_ROOT.d
export DOCKER_CONFIG=$state/docker
unset DOCKER_HOST DOCKER_CONTEXT
registry=127.0.0.1:5000
password=quickstart
mirror_port=${QUICKSTART_MIRROR_PORT:-5055}

say() { printf '\n\033[1m▸ %s\033[0m\n' "$*"; }
show() { printf '  \033[2m$ %s\033[0m\n' "$*"; "$@" | sed 's/^/  /'; }
c() { "$corten" "$@"; }
show_c() { printf '  \033[2m$ corten %s\033[0m\n' "$*"; "$corten" "$@" 2>&1 | sed 's/^/  /'; }
fail() { echo "quickstart: $*" >&2; exit 1; }

[ "$(id -u)" -eq 0 ] || fail "Corten needs root until rootless mode exists: run 'sudo make quickstart'"
scripts/quickstart-clean.sh "$corten" quiet
mkdir -p "$CORTEN_ROOT" "$state/docker"
if (exec 3<>/dev/tcp/127.0.0.1/8080) 2>/dev/null; then fail "port 8080 is already in use on this machine"; fi

serve_registry() { # serve_registry NAME ADDRESS [ARGS...]
  local name=$1 address=$2
  shift 2
  "$corten" registry serve --listen "$address" --root "$state/$name" "$@" >"$state/$name.log" 2>&1 &
  echo $! >"$state/$name.pid"
  disown
  for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/${address%:*}/${address#*:}") 2>/dev/null && return 0
    sleep 0.05
  done
  cat "$state/$name.log" >&2
  fail "the registry on $address did not start"
}

say "Base images"
if timeout 20 "$corten" pull alpine:latest >"$state/pull.log" 2>&1; then
  echo "  Docker Hub answers: alpine and golang come from there."
  : >"$CORTEN_ROOT/registries.toml"
  hub=yes
else
  echo "  Docker Hub cannot be reached from here ($(tail -1 "$state/pull.log"))."
  echo "  Serving stand-ins for alpine:latest and golang:1.19-alpine from a local registry,"
  echo "  configured as docker.io's mirror: busybox from the distribution, Go from PyPI."
  hub=no
fi
serve_registry mirror "127.0.0.1:$mirror_port"
cat >"$CORTEN_ROOT/registries.toml" <<TOML
# Written by make quickstart.
[registry."docker.io"]
mirrors = [{ url = "http://127.0.0.1:$mirror_port", push = true }]
TOML
if [ "$hub" = no ]; then
  scripts/base-images.sh "$corten" "$state/base" "127.0.0.1:$mirror_port"
  "$corten" --root "$state/base" system prune --all --force >/dev/null 2>&1 || true
fi

say "Build: two stages, in parallel where they can be"
show_c build -t my-go-app examples/hello-web
say "Build again: nothing changed, so nothing runs"
show_c build -t my-go-app examples/hello-web

say "Run it"
show_c run -d -p 8080:8080 --name my-running-app my-go-app
for _ in $(seq 100); do curl -fsS http://127.0.0.1:8080/ >/dev/null 2>&1 && break; sleep 0.05; done
show curl -sS http://127.0.0.1:8080/
show curl -sS "http://[::1]:8080/"
show_c ps
show_c logs my-running-app
say "Stop and remove it"
show_c stop my-running-app
show_c ps -a
show_c rm my-running-app

say "A private registry, one more face of the same binary"
printf '%s' "$password" | c registry htpasswd --password-stdin me >"$state/htpasswd"
serve_registry private "$registry" --htpasswd "$state/htpasswd"
printf '  \033[2m$ corten login -u me --password-stdin %s\033[0m\n' "$registry"
printf '%s' "$password" | c login -u me --password-stdin "$registry" 2>&1 | sed 's/^/  /'
show_c tag my-go-app "$registry/my-go-app"
show_c push "$registry/my-go-app"
if [ "$hub" = no ]; then
  say "docker.io pushes go to the configured mirror"
  show_c tag my-go-app your-username/my-go-app
  show_c push your-username/my-go-app
fi
say "Remove it here, pull it back, run it"
show_c rmi -f "$registry/my-go-app" my-go-app
show_c run --rm "$registry/my-go-app" ls -l /app
show_c logout "$registry"

say "Volumes outlive containers; containers without one forget"
show_c run --rm -v data:/data alpine sh -c 'echo kept > /data/note; echo lost > /note'
show_c run --rm -v data:/data alpine sh -c 'cat /data/note; cat /note || true'

say "The app stays up"
show_c run -d -p 8080:8080 --name my-running-app "$registry/my-go-app"
for _ in $(seq 100); do curl -fsS http://127.0.0.1:8080/ >/dev/null 2>&1 && break; sleep 0.05; done
show curl -fsS http://127.0.0.1:8080/
printf '\nhttp://127.0.0.1:8080/ answers. '
if [ "${QUICKSTART_DETACH:-}" = 1 ]; then
  echo "Remove everything with 'make quickstart-clean'."
  exit 0
fi
echo "Ctrl-C (or 'make quickstart-clean') removes everything."
trap 'echo; scripts/quickstart-clean.sh "$corten"; exit 0' INT TERM
while c inspect my-running-app >/dev/null 2>&1; do sleep 1; done

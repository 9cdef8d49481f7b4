# Sourced by the benches beside it: a place to work in, a registry of base images, Docker's engine.
#
# Expects `corten`, the binary; `first`, where given, is put before what is started (`chrt …`).
# shellcheck shell=bash

# begin NAME: $work, which ends with `undo`; nothing of the user's configuration counts.
begin() {
  work=$(mktemp -d "${TMPDIR:-/tmp}/corten-$1.XXXXXX")
  export CORTEN_ROOT=$work/root DOCKER_CONFIG=$work/docker-config
  unset DOCKER_HOST DOCKER_CONTEXT
  mkdir -p "$work/results" "$DOCKER_CONFIG"
  echo "{}" >"$DOCKER_CONFIG/config.json" # podman insists on the file
  pids=()
}

# undo [ROOT...]: ends what was started, removes these roots of Corten (of $work), and $work.
undo() {
  local pid root
  # While its engine still lives: shims would outlive it.
  [ -z "${docker:-}" ] || $docker ps -aq 2>/dev/null | xargs -r $docker rm -f >/dev/null 2>&1 || true
  for root in "$@"; do "$corten" --root "$work/$root" system reset --force >/dev/null 2>&1 || true; done
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  # podman and buildah leave their storage mounted; dockerd's mounts went with its namespace.
  grep " $work/" /proc/self/mounts | cut -d' ' -f2 | sort -r | while read -r point; do umount "$point"; done || true
  rm -rf "$work"
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# serve ADDRESS ROOT [OPTION...]: a registry, in the network of the process $space where that is set.
serve() {
  local inside=()
  [ -z "${space:-}" ] || inside=(nsenter --net="/proc/$space/ns/net")
  ${first:-} "${inside[@]}" "$corten" registry serve --listen "$1" --root "$work/$2" "${@:3}" >>"$work/$2.log" 2>&1 &
  pids+=($!)
  for _ in $(seq 100); do "${inside[@]}" bash -c "exec 3<>/dev/tcp/${1/://}" 2>/dev/null && break; sleep 0.05; done
}

# serve_images: $registry, with the base images of the tests.
serve_images() {
  registry=127.0.0.1:$(free_port)
  serve "$registry" registry
  scripts/base-images.sh "$corten" "$work/base" "$registry" all
}

# start_docker [OPTION...]: $docker, its command line (of DOCKER, where that is set), and $dockerd, its
# engine, in a network of its own: it would change this host's firewall otherwise. $registry answers
# there under the same name, read only. False where there is none, or it does not start.
start_docker() {
  local cli=${DOCKER:-docker}
  docker="" dockerd=""
  command -v dockerd >/dev/null 2>&1 && command -v "$cli" >/dev/null 2>&1 || return 1
  ${first:-} unshare -n -m sh -c "ip link set lo up; exec dockerd --data-root $work/docker/data \
    --exec-root $work/docker/exec -H unix://$work/docker.sock --pidfile $work/docker.pid $*" \
    >"$work/dockerd.log" 2>&1 &
  dockerd=$!
  pids+=("$dockerd")
  docker="$cli -H unix://$work/docker.sock"
  for _ in $(seq 300); do
    if $docker info >/dev/null 2>&1; then
      [ -z "${registry:-}" ] || space=$dockerd serve "$registry" registry --read-only
      return 0
    fi
    sleep 0.1
  done
  docker=""
  echo "Docker is left out: $(tail -n 1 "$work/dockerd.log")" >&2
  return 1
}

#!/usr/bin/env bash
# Runs ours beside whichever of docker (with an engine), podman, crun and runc are installed,
# in the same run on the same machine, and prints medians and ratios. The report goes to
# standard output and to bench/report.md. Pulling (bench/pull.sh), the OCI runtime
# (bench/runtime.sh; BARE is its yardstick), the registry server (bench/registry.sh) and builds
# (bench/build.sh) have scripts of their own, which come last.
#
#   bench/run.sh CORTEN BARE [RUNS]
set -euo pipefail
cd "$(dirname "$0")/.."
corten=$(realpath "$1")
bare=$(realpath "$2")
runs=${3:-30}
work=$(mktemp -d "${TMPDIR:-/tmp}/corten-bench.XXXXXX")
export CORTEN_ROOT=$work/root DOCKER_CONFIG=$work/docker
unset DOCKER_HOST DOCKER_CONTEXT
report=bench/report.md
mkdir -p "$work/results" "$DOCKER_CONFIG"
echo "{}" >"$DOCKER_CONFIG/config.json" # podman insists on the file
pids=()

cleanup() {
  # While its engine still lives: the shim would outlive it.
  [ -z "${docker:-}" ] || $docker rm -f corten-bench >/dev/null 2>&1 || true
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  "$corten" system reset --force >/dev/null 2>&1 || true
  "$corten" --root "$work/base" system reset --force >/dev/null 2>&1 || true
  [ -z "${podman:-}" ] || $podman rm -af >/dev/null 2>&1 || true
  # Podman leaves its storage mounted; dockerd's mounts went with its namespace.
  grep " $work/" /proc/self/mounts | cut -d' ' -f2 | sort -r | while read -r point; do umount "$point"; done
  rm -rf "$work"
}
trap cleanup EXIT

podman="" docker="" dockerd=""
if command -v podman >/dev/null 2>&1; then
  podman="podman --root $work/podman --runroot $work/podman-run --cgroup-manager=cgroupfs"
  # Its default limits are above what an unprivileged machine may set; crun of Debian 12
  # refuses hybrid control groups.
  printf '[containers]\ndefault_ulimits = ["nofile=1024:2048", "nproc=2000:2000"]\n' >"$work/containers.conf"
  export CONTAINERS_CONF=$work/containers.conf
  if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && command -v runc >/dev/null 2>&1; then podman="$podman --runtime runc"; fi
fi

median() { # median NAME COMMAND: seconds
  local out=$work/results/$1.json
  if hyperfine --warmup 3 --runs "$runs" --shell=none --export-json "$out" "$2" >/dev/null 2>"$work/results/$1.err"; then
    python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["results"][0]["median"])' "$out"
  else
    echo failed
  fi
}

rows=()
row() { # row TITLE OURS PEER...: each PEER is NAME=SECONDS
  local title=$1 ours=$2 line
  shift 2
  line=$(python3 - "$ours" "$@" <<'PYTHON'
import sys
def ms(s): return "failed" if s == "failed" else f"{float(s)*1000:.1f} ms"
ours = sys.argv[1]
cells = [ms(ours)]
for peer in sys.argv[2:]:
    name, value = peer.split("=", 1)
    if value == "":
        continue
    ratio = "" if "failed" in (ours, value) else f" ({float(value)/float(ours):.1f}×)"
    cells.append(f"{name} {ms(value)}{ratio}")
print(" | ".join([cells[0], ", ".join(cells[1:]) or "no peer here"]))
PYTHON
)
  rows+=("| $title | $line |")
  echo "$title: $line"
}

echo "Setting up: images and a registry on loopback"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
registry=127.0.0.1:$port
"$corten" registry serve --listen "$registry" --root "$work/registry" >"$work/registry.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.05; done
scripts/base-images.sh "$corten" "$work/base" "$registry" all

# Docker's engine in a network of its own: it would change this host's firewall otherwise. The
# same registry, read only, answers there under the same name.
if command -v dockerd >/dev/null 2>&1 && command -v docker >/dev/null 2>&1; then
  mkdir -p "$work/docker-engine"
  unshare -n -m sh -c "ip link set lo up; exec dockerd --data-root $work/docker-engine/data \
    --exec-root $work/docker-engine/exec -H unix://$work/docker-engine/sock \
    --pidfile $work/docker-engine/pid" >"$work/dockerd.log" 2>&1 &
  dockerd=$!
  pids+=("$dockerd")
  docker="docker -H unix://$work/docker-engine/sock"
  for _ in $(seq 200); do $docker info >/dev/null 2>&1 && break; sleep 0.1; done
  $docker info >/dev/null 2>&1 || docker=""
fi
if [ -n "$docker" ]; then
  nsenter --net="/proc/$dockerd/ns/net" "$corten" registry serve --listen "$registry" \
    --root "$work/registry" --read-only >"$work/registry-docker.log" 2>&1 &
  pids+=($!)
  sleep 0.5
fi
mkdir -p "$CORTEN_ROOT"
printf '[registry."docker.io"]\nmirrors = [{ url = "http://%s", push = true }]\n' "$registry" >"$CORTEN_ROOT/registries.toml"
alpine=$registry/library/alpine:latest
"$corten" pull -q "$alpine" >/dev/null

peer_pull() { # make the small image known to the peers
  [ -z "$podman" ] || $podman pull -q --tls-verify=false "$alpine" >/dev/null || podman=""
  [ -z "$docker" ] || $docker pull -q "$alpine" >/dev/null 2>&1 || docker=""
  if [ -n "$docker" ]; then # the names hello-web's Dockerfile uses
    $docker pull -q "$registry/library/golang:1.19-alpine" >/dev/null 2>&1 || true
    $docker tag "$registry/library/golang:1.19-alpine" golang:1.19-alpine || true
    $docker tag "$alpine" alpine:latest || true
  fi
}
peer_pull
peer() { # peer NAME PREFIX TEST COMMAND
  [ -n "$2" ] || { echo "$1="; return; }
  echo "$1=$(median "$3-$1" "$2 $4")"
}

row "run --rm IMG true, bridge" "$(median run-bridge "$corten run --rm $alpine true")" \
  "$(peer docker "$docker" run-bridge "run --rm $alpine true")" \
  "$(peer podman "$podman" run-bridge "run --rm $alpine true")"
row "run --rm --network none IMG true" "$(median run-none "$corten run --rm --network none $alpine true")" \
  "$(peer docker "$docker" run-none "run --rm --network none $alpine true")" \
  "$(peer podman "$podman" run-none "run --rm --network none $alpine true")"

"$corten" run -d --name corten-bench -p 127.0.0.1::80 "$alpine" sleep 100000 >/dev/null
[ -z "$docker" ] || $docker run -d --name corten-bench -p 127.0.0.1::80 "$alpine" sleep 100000 >/dev/null
[ -z "$podman" ] || $podman run -d --name corten-bench "$alpine" sleep 100000 >/dev/null 2>&1 ||
  $podman run -d --network none --name corten-bench "$alpine" sleep 100000 >/dev/null 2>&1 || podman=""
row "exec true" "$(median exec "$corten exec corten-bench true")" \
  "$(peer docker "$docker" exec "exec corten-bench true")" \
  "$(peer podman "$podman" exec "exec corten-bench true")"
row "ps" "$(median ps "$corten ps")" "$(peer docker "$docker" ps ps)" "$(peer podman "$podman" ps ps)"

"$corten" build -q -t hello-web examples/hello-web >/dev/null
row "build, everything cached" "$(median build "$corten build -q -t hello-web examples/hello-web")" \
  "$(if [ -n "$docker" ]; then $docker build -q -t hello-web examples/hello-web >/dev/null 2>&1 &&
    peer docker "$docker" build "build -q -t hello-web examples/hello-web"; else echo docker=; fi)"

pss() { awk '/^Pss:/ { n += $2 } END { printf "%.1f", n / 1024 }' /proc/"$1"/smaps_rollup; }
supervisor=$(pgrep -f "supervise .*$("$corten" inspect -f '{{.Id}}' corten-bench)" | head -1)
per_container=$(pss "$supervisor")
engine_pss() { # engine_pss COMM...: of those processes of the Docker engine started here
  local pid sum=0
  for pid in $(pgrep -f "$work/docker-engine") $(pgrep -x docker-proxy); do
    case " $* " in *" $(cat "/proc/$pid/comm" 2>/dev/null) "*) ;; *) continue ;; esac
    sum=$(python3 -c "print(round($sum + $(pss "$pid"), 1))")
  done
  echo "$sum"
}
docker_idle="" docker_each=""
if [ -n "$docker" ]; then
  docker_idle="docker $(engine_pss dockerd containerd) MB"
  docker_each="docker $(engine_pss containerd-shim docker-proxy) MB"
fi
rows+=("| memory, nothing running | 0 MB (no process) | ${docker_idle:-no peer here} |")
rows+=("| memory (PSS) of the process beside a container with a published port | $per_container MB | ${docker_each:-no peer here} |")

{
  echo "# Benchmarks"
  echo
  echo "Medians of $runs runs, $(nproc) cores, kernel $(uname -r), $(date -u +%F)."
  docker_version=$(${docker:-false} version --format 'docker {{.Server.Version}}' 2>/dev/null || echo "no docker engine")
  echo "Peers in the same run: $docker_version, $(podman --version 2>/dev/null || echo no podman)."
  echo "In brackets: how many times as long the peer takes."
  echo
  echo "| work | Corten | peers |"
  echo "|---|---|---|"
  printf '%s\n' "${rows[@]}"
} | tee "$report"

bench/pull.sh "$corten"
bench/runtime.sh "$corten" "$bare"
bench/registry.sh "$corten"
bench/build.sh "$corten"

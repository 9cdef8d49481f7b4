#!/usr/bin/env bash
# Containers beside Docker's engine and Podman: run, exec, stop, ps of many, how fast many start,
# and what a running one costs in memory. Needs root; peers are measured where installed.
# Writes the section "Containers" of bench/report.md.
#
#   bench/containers.sh CORTEN [RUNS [MANY]]: MANY containers for ps and the rate, 200 if not said
#
# MOST of ours, 500 if not said, run at once for the last rows. Ten minutes with all peers.
set -euo pipefail
cd "$(dirname "$0")/.."
corten=$(realpath "$1")
runs=${2:-30}
many=${3:-200}
most=${MOST:-500}
rounds=3
each=$(((runs + rounds - 1) / rounds))
report=${REPORT:-bench/report.md}
. bench/peers.sh
begin containers

cleanup() {
  # While its storage is there: conmons would outlive it.
  [ -z "${podman:-}" ] || $podman rm -af -t 0 >/dev/null 2>&1 || true
  undo root base
}
trap cleanup EXIT

echo "Setting up: images, engines"
serve_images
image=$registry/library/alpine:latest
"$corten" pull -q "$image" >/dev/null

podman=""
if command -v podman >/dev/null 2>&1; then
  podman="podman --root $work/podman --runroot $work/podman-run --cgroup-manager=cgroupfs"
  # Its default limits are above what an unprivileged machine may set; crun of Debian 12
  # refuses hybrid control groups.
  printf '[containers]\ndefault_ulimits = ["nofile=1024:2048", "nproc=2000:2000"]\n' >"$work/containers.conf"
  export CONTAINERS_CONF=$work/containers.conf
  if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && command -v runc >/dev/null 2>&1; then podman="$podman --runtime runc"; fi
  $podman pull -q --tls-verify=false "$image" >/dev/null || podman=""
fi
if start_docker; then
  $docker pull -q "$image" >/dev/null 2>&1 || docker=""
fi

declare -A call=([corten]="$corten" [docker]="$docker" [podman]="$podman")
declare -A seconds=()
contenders="corten"
for name in docker podman; do [ -z "${call[$name]}" ] || contenders="$contenders $name"; done

# measure TEST ARGUMENTS [PREPARE]: each contender a few runs, in turns; the median of all.
measure() {
  local test=$1 arguments=$2 prepare=${3:-} name round
  for round in $(seq "$rounds"); do
    for name in $contenders; do
      local options=(--warmup 1 --runs "$each" --shell=none --export-json "$work/results/$test-$name-$round.json")
      [ -z "$prepare" ] || options+=(--prepare "${call[$name]} $prepare")
      hyperfine "${options[@]}" "${call[$name]} $arguments" >/dev/null 2>"$work/results/$test-$name.err" || true
    done
  done
  for name in $contenders; do
    seconds[$test-$name]=$(python3 -c '
import glob, json, statistics, sys
times = [t for f in glob.glob(sys.argv[1]) for t in json.load(open(f))["results"][0]["times"]]
print(statistics.median(times) if times else "failed")' "$work/results/$test-$name-*.json")
  done
}

# tell [LINE...]: the section as far as there are rows; of a run that ends early, too.
tell() {
  {
    echo "## Containers"
    echo
    echo "\`bench/containers.sh\`: medians of $runs runs, taking turns, $(nproc) cores, kernel $(uname -r), $(date -u +%F); load $(cut -d' ' -f1-3 /proc/loadavg) at the end. In brackets: how many times as long the peer takes."
    echo "Peers: $(dockerd --version 2>/dev/null || echo no docker engine), $(podman --version 2>/dev/null || echo no podman)."
    echo
    echo "| | Corten | docker | podman |"
    echo "|---|---|---|---|"
    printf '%s\n' "${rows[@]}"
    echo
    echo "\`run --rm\` of Corten returns when the container is gone for everybody, and before its files are deleted, which a process beside it does; those of the peers return after that. Of \`true\` there is next to nothing to delete."
    echo
    printf '%s\n' "$@"
  } | bench/section.py "$report"
}
rows=()
row() { # row TITLE TEST
  local name cells=()
  for name in corten docker podman; do
    cells+=("$(python3 -c '
import sys
ours, theirs, name = sys.argv[1:]
if theirs in ("", "failed"):
    print(theirs or "not here")
else:
    ratio = "" if name == "corten" or ours == "failed" else f" ({float(theirs) / float(ours):.1f}×)"
    t = float(theirs)
    print((f"{t * 1000:.1f} ms" if t < 10 else f"{t:.1f} s") + ratio)' "${seconds[$2-corten]}" "${seconds[$2-$name]:-}" "$name")")
  done
  rows+=("| $1 | ${cells[0]} | ${cells[1]} | ${cells[2]} |")
  echo "${rows[-1]}"
  tell
}

measure run-bridge "run --rm $image true"
row "\`run --rm IMAGE true\`, bridge" run-bridge
measure run-none "run --rm --network none $image true"
row "\`run --rm --network none IMAGE true\`" run-none

for name in $contenders; do
  # A program that goes at once when it is asked to.
  ${call[$name]} run -d --name well-behaved "$image" sh -c 'trap "exit 0" TERM; sleep 100000 & wait' >/dev/null
done
measure exec "exec well-behaved true"
row "\`exec\`" exec
measure stop "stop well-behaved" "start well-behaved"
row "\`stop\` of a process that ends when asked to" stop
for name in $contenders; do ${call[$name]} rm -f well-behaved >/dev/null; done

# start NAME COUNT: so many containers as fast as two cores give them, four commands at a time.
start() {
  python3 - "$2" ${call[$1]} run -d "$image" sleep 100000 <<'PYTHON'
import concurrent.futures, subprocess, sys, time
count, command = int(sys.argv[1]), sys.argv[2:]
def one(_):
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
begin = time.monotonic()
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    done = list(pool.map(one, range(count)))
failed = [d.stderr.decode() for d in done if d.returncode]
print("failed" if failed else time.monotonic() - begin)
print(*failed[:3], sep="\n", file=sys.stderr)
PYTHON
}
for name in $contenders; do seconds[many-$name]=$(start "$name" "$many"); done
row "$many containers started, four at a time" many
measure ps ps
row "\`ps\` of $many" ps
for name in docker podman; do
  forced=-f
  [ "$name" = docker ] || forced="-f -t 0"
  [ -z "${call[$name]}" ] || ${call[$name]} ps -aq | xargs ${call[$name]} rm $forced >/dev/null
done

pss() { awk '/^Pss:/ { n += $2 } END { printf "%.2f", n / 1024 }' /proc/"$1"/smaps_rollup; }
total() { # total PATTERN: all processes that match, in MiB, and how many
  local pid sum=0 count=0
  for pid in $(pgrep -f "$1"); do
    sum=$(python3 -c "print($sum + $(pss "$pid" 2>/dev/null || echo 0))")
    count=$((count + 1))
  done
  python3 -c "print(f'{$sum / max($count, 1):.2f}')"
}
"$corten" run -d --name alone -p 127.0.0.1::80 "$image" sleep 100000 >/dev/null
for id in $("$corten" ps -aq --no-trunc); do
  [ "$id" = "$("$corten" inspect -f '{{.Id}}' alone)" ] || echo "$id"
done | xargs "$corten" rm -f >/dev/null
# At rest: the others' end has woken it.
sleep 5
one=$(pss "$(pgrep -f "supervise .*$("$corten" inspect -f '{{.Id}}' alone)" | head -1)")
begin=$(date +%s.%N)
[ "$(start corten $((most - 1)))" != failed ] && running=$("$corten" ps -q | wc -l) || running="fewer than $most"
took=$(python3 -c "import time; print(f'{time.time() - $begin:.1f}')")
each_of_many=$(total "supervise .*$work")
begin=$(date +%s.%N)
"$corten" ps -aq | xargs "$corten" rm -f >/dev/null
gone=$(python3 -c "import time; print(f'{time.time() - $begin:.1f}')")

tell "Memory (PSS) of the process beside a container with a published port: $one MiB when alone," \
  "$each_of_many MiB each beside $most others. $running containers at once, started in $took s, removed in $gone s."
awk '/^## / { shown = /^## Containers/ } shown' "$report"

#!/usr/bin/env bash
# Networks beside Docker's engine, and beside bare links of the kernel: what published ports carry,
# how many connections a second, container to container, connecting a running container, names.
# Needs root; Docker is measured where it is installed. Writes the section "Networks" of
# bench/report.md.
#
#   bench/network.sh CORTEN [ROUNDS]
#
# Every contender has a network namespace of its own as its host, with one beside it for its LAN, so
# that neither meets the rules of this machine or the other's. "Bare" is a bridge and veth pairs, routed,
# without any rule. Contenders take turns; medians of ROUNDS (9 if not said) of SECONDS_EACH (1) seconds each.
# Both sides of a connection run before everything else on the machine (`chrt`), so that what others do
# there at the moment is not measured.
set -euo pipefail
cd "$(dirname "$0")/.."
corten=$(realpath "$1")
rounds=${2:-9}
seconds=${SECONDS_EACH:-1}
many=200
report=${REPORT:-bench/report.md}
. bench/peers.sh
begin network
# Each contender: the process whose namespace is its host, its LAN, and what runs its command line.
declare -A host=() lan=() call=()

cleanup() {
  # In its network, unless that was ended before this, with a whole group of processes.
  [ -z "${call[corten]:-}" ] || ${call[corten]} system reset --force >/dev/null 2>&1 || true
  undo root base
}
trap cleanup EXIT

in_() { # in_ PID COMMAND...: in that process's network
  nsenter --net="/proc/$1/ns/net" "${@:2}"
}
space=
namespace() { # a network namespace, held by a process that $space is then
  unshare -n sleep infinity &
  space=$!
  pids+=("$space")
  until [ "$(readlink "/proc/$space/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
  in_ "$space" ip link set lo up
}
beside() { # beside NAME: a LAN for that contender's host
  namespace
  lan[$1]=$space
  in_ "${host[$1]}" ip link add lan0 type veth peer name lan1 netns "$space"
  in_ "${host[$1]}" ip addr add 192.0.2.1/24 dev lan0
  in_ "${host[$1]}" ip link set lan0 up
  in_ "$space" ip addr add 192.0.2.2/24 dev lan1
  in_ "$space" ip link set lan1 up
  in_ "$space" ip route add default via 192.0.2.1
}

echo "Setting up: images, engines"
serve_images
image=$registry/library/alpine:latest
"$corten" pull -q "$image" >/dev/null
contenders="bare corten"
namespace
host[corten]=$space
beside corten
call[corten]="nsenter --net=/proc/${host[corten]}/ns/net $corten"
if start_docker && $docker pull -q "$image" >/dev/null 2>&1; then
  host[docker]=$dockerd call[docker]=$docker
  contenders="$contenders docker"
  beside docker
fi

# Bare: two namespaces on a bridge, and a host that routes.
namespace
host[bare]=$space
beside bare
in_ "${host[bare]}" sysctl -qw net.ipv4.ip_forward=1
in_ "${host[bare]}" ip link add bridge0 type bridge
in_ "${host[bare]}" ip addr add 10.99.0.1/24 dev bridge0
in_ "${host[bare]}" ip link set bridge0 up
# Not before: an engine of that kind could put nothing into control groups.
first=
! command -v chrt >/dev/null 2>&1 || first="chrt -r 1"
declare -A pid=() address=() # of NAME-web, NAME-other and NAME-apart
n=2
for side in web other apart; do
  namespace
  pid[bare-$side]=$space address[bare-$side]=10.99.0.$n
  in_ "${host[bare]}" ip link add "v$n" type veth peer name eth0 netns "$space"
  in_ "${host[bare]}" ip link set "v$n" master bridge0 up
  in_ "$space" ip addr add "10.99.0.$n/24" dev eth0
  in_ "$space" ip link set eth0 up
  in_ "$space" ip route add default via 10.99.0.1
  n=$((n + 1))
done

for name in $contenders; do
  if [ "$name" != bare ]; then
    engine=${call[$name]}
    $engine network create front >/dev/null
    $engine network create back >/dev/null
    $engine run -d --name web --network front -p 8080:8080 "$image" sleep 100000 >/dev/null
    $engine run -d --name other --network front "$image" sleep 100000 >/dev/null
    # Asked directly: what the host asks one container both ways shares its ports (docs/ports.md).
    $engine run -d --name apart --network front "$image" sleep 100000 >/dev/null
    for side in web other apart; do
      pid[$name-$side]=$($engine inspect -f '{{.State.Pid}}' $side)
      address[$name-$side]=$($engine inspect -f '{{.NetworkSettings.Networks.front.IPAddress}}' $side)
    done
  fi
  # Not by a function: what is killed in the end must be the server itself.
  for side in web apart; do
    nsenter --net="/proc/${pid[$name-$side]}/ns/net" $first python3 bench/network.py serve 8080 >/dev/null &
    pids+=($!)
  done
done
sleep 1

# measure TEST WHO VERB ARGUMENTS...: one number of each contender that has it, in turns. WHO is host,
# lan, web or other; in the arguments WEB and APART stand for addresses of containers.
declare -A value=()
measure() {
  local test=$1 who=$2 name from argument arguments
  shift 2
  for _ in $(seq "$rounds"); do
    for name in $contenders; do
      case $who in
      host) from=${host[$name]} ;;
      lan) from=${lan[$name]} ;;
      *) from=${pid[$name-$who]} ;;
      esac
      arguments=()
      for argument in "$@"; do
        case $argument in
        WEB) argument=${address[$name-web]} ;;
        APART) argument=${address[$name-apart]} ;;
        # Bare, nothing is published: the way to the container itself.
        127.0.0.1 | 192.0.2.1) [ "$name" != bare ] || argument=${address[bare-web]} ;;
        127.0.0.11) [ "$name" != bare ] || continue 2 ;;
        esac
        arguments+=("$argument")
      done
      in_ "$from" $first python3 bench/network.py "${arguments[@]}" >>"$work/results/$test-$name" || true
    done
  done
  settle "$test"
}
settle() {
  local name
  for name in $contenders; do
    value[$1-$name]=$(python3 -c '
import os, statistics, sys
lines = open(sys.argv[1]).read().split() if os.path.exists(sys.argv[1]) else []
print(statistics.median(map(float, lines)) if lines else "")' "$work/results/$1-$name")
  done
}

# The section as far as there are rows; of a run that ends early, too.
tell() {
  {
    echo "## Networks"
    echo
    echo "\`bench/network.sh\`: medians of $rounds rounds of $seconds s, taking turns, $(nproc) cores, kernel $(uname -r), $(date -u +%F); load $(cut -d' ' -f1-3 /proc/loadavg) at the end. In brackets: of what bare links carry, or take."
    echo "Peer: $(dockerd --version 2>/dev/null || echo no docker engine). Both sides of each connection are the same program (\`bench/network.py\`); bare is routed, with no rule."
    echo
    echo "| | bare | Corten | docker |"
    echo "|---|---|---|---|"
    printf '%s\n' "${rows[@]}"
  } | bench/section.py "$report"
}
rows=()
row() { # row TITLE UNIT TEST [YARDSTICK]: in brackets against bare, or another test of the same
  local name cells=() against
  for name in bare corten docker; do
    against=${value[$3-bare]:-}
    [ -z "${4:-}" ] || against=${value[$4-$name]:-}
    cells+=("$(python3 -c '
import sys
unit, mine, against, name = sys.argv[1:]
if not mine:
    print("–")
else:
    digits = 0 if float(mine) >= 100 else 1 if float(mine) >= 10 else 3
    ratio = f" ({float(mine) / float(against) * 100:.0f} %)" if against and name != "bare" else ""
    print(f"{float(mine):,.{digits}f} {unit}{ratio}")' "$2" "${value[$3-$name]:-}" "$against" "$name")")
  done
  rows+=("| $1 | ${cells[0]} | ${cells[1]} | ${cells[2]} |")
  echo "${rows[-1]}"
  tell
}

measure direct host throughput APART 8080 "$seconds"
row "host to the container's address" MB/s direct
measure local host throughput 127.0.0.1 8080 "$seconds"
row "published port at 127.0.0.1" MB/s local
measure lan lan throughput 192.0.2.1 8080 "$seconds"
row "published port, from the LAN" MB/s lan
measure between other throughput WEB 8080 "$seconds"
row "container to container" MB/s between
measure direct-rate host rate APART 8080 "$seconds"
row "requests to the container's address" /s direct-rate
measure local-rate host rate 127.0.0.1 8080 "$seconds"
row "requests to 127.0.0.1" /s local-rate
measure lan-rate lan rate 192.0.2.1 8080 "$seconds"
row "requests from the LAN" /s lan-rate
measure dns other dns 127.0.0.11 web 200
row "a name answered" ms dns

# By hyperfine, which enters the namespace instead of each command: neither is part of what is measured.
connected() { # connected NAME: three times in ms
  local inside=() engine=${call[$1]}
  [ "$1" != corten ] || inside=(nsenter "--net=/proc/${host[corten]}/ns/net") engine=$corten
  "${inside[@]}" hyperfine --shell=none --runs 3 --prepare "$engine network disconnect back other" \
    --export-json "$work/results/hyperfine" "$engine network connect back other" >/dev/null 2>&1
  python3 -c 'import json, sys
print(*(t * 1000 for t in json.load(open(sys.argv[1]))["results"][0]["times"]))' "$work/results/hyperfine"
}
for name in ${contenders/bare/}; do ${call[$name]} network connect back other; done
for _ in $(seq "$rounds"); do
  for name in ${contenders/bare/}; do connected "$name" >>"$work/results/connect-$name"; done
done
for name in ${contenders/bare/}; do ${call[$name]} network disconnect back other; done
settle connect
row "\`network connect\` of a running container" ms connect

# The same container with many ports: the last of them, against the only one before.
for name in $contenders; do
  [ "$name" != bare ] || continue
  engine=${call[$name]}
  $engine rm -f web >/dev/null
  $engine run -d --name web --network front -p "8080-$((8080 + many - 1)):8080-$((8080 + many - 1))" "$image" sleep 100000 >/dev/null
  pid[$name-web]=$($engine inspect -f '{{.State.Pid}}' web)
  nsenter --net="/proc/${pid[$name-web]}/ns/net" $first python3 bench/network.py serve $((8080 + many - 1)) >/dev/null &
  pids+=($!)
done
all=$contenders
contenders=${contenders#bare }
sleep 1
measure many lan throughput 192.0.2.1 $((8080 + many - 1)) "$seconds"
measure many-rate lan rate 192.0.2.1 $((8080 + many - 1)) "$seconds"
contenders=$all
row "one of $many published ports, from the LAN (of one alone)" MB/s many lan
row "requests to one of $many (of one alone)" /s many-rate lan-rate

awk '/^## / { shown = /^## Networks/ } shown' "$report"

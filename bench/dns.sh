#!/usr/bin/env bash
# Names of containers beside Docker's: how long the name server of a container takes to answer.
# Needs root; Docker's engine is measured where installed. Writes the section "Names" of
# bench/report.md (or of the file REPORT).
#
#   bench/dns.sh CORTEN [QUESTIONS]
#
# One question at a time, asked from inside a container's network namespace, the engines in turns.
set -euo pipefail
cd "$(dirname "$0")/.."
corten=$(realpath "$1")
questions=${2:-5000}
report=${REPORT:-bench/report.md}
. bench/peers.sh
begin dns
mkdir "$work/image"
trap 'undo root' EXIT

cp "$(command -v busybox)" "$work/image/busybox"
printf 'FROM scratch\nCOPY busybox /busybox\n' >"$work/image/Dockerfile"
"$corten" build -q -t bench "$work/image" >/dev/null
declare -A call=([corten]="$corten")
contenders="corten"
if start_docker; then
  call[docker]=$docker
  "$corten" save bench | $docker load -q >/dev/null && contenders="corten docker"
fi
declare -A pid=()
for name in $contenders; do
  ${call[$name]} network create bench-names >/dev/null
  for container in asker asked; do
    ${call[$name]} run -d --network bench-names --name "$container" bench /busybox sleep 100000 >/dev/null
  done
  pid[$name]=$(${call[$name]} inspect -f '{{.State.Pid}}' asker)
done

cat >"$work/ask.py" <<'END'
import socket, statistics, struct, sys, time
count, transport = int(sys.argv[1]), sys.argv[2]
question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x05asked\0\0\x01\0\x01"
times = []
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(("127.0.0.11", 53))
udp.settimeout(5)
for _ in range(count):
    begin = time.perf_counter()
    if transport == "tcp":
        with socket.create_connection(("127.0.0.11", 53), 5) as tcp:
            tcp.sendall(struct.pack(">H", len(question)) + question)
            answer = tcp.recv(1024)
            while len(answer) < 2 or len(answer) < 2 + struct.unpack(">H", answer[:2])[0]:
                answer += tcp.recv(1024)
        answer = answer[2:]
    else:
        udp.send(question)
        answer = udp.recv(1024)
    times.append(time.perf_counter() - begin)
    assert answer[3] & 15 == 0 and answer[7] == 1, answer
for value in times:
    print(value)
END

declare -A cells=()
for transport in udp tcp; do
  for name in $contenders; do : >"$work/$transport-$name"; done
  for _ in 1 2 3; do
    for name in $contenders; do
      nsenter -t "${pid[$name]}" -n python3 "$work/ask.py" $((questions / 3)) "$transport" \
        >>"$work/$transport-$name"
    done
  done
  for name in $contenders; do
    cells[$transport-$name]=$(python3 -c '
import sys
t = sorted(float(line) * 1e6 for line in open(sys.argv[1]))
print(f"{t[len(t) // 2]:.0f} µs ({t[len(t) * 99 // 100]:.0f} µs)")' "$work/$transport-$name")
  done
done
{
  echo "## Names"
  echo
  echo "Answers of a container's name server to $((questions / 3 * 3)) questions for another container, one at a"
  echo "time: median, and what 99 of 100 take at the most. $(date -u +%F), $(nproc) processors, load $(cut -d' ' -f1 /proc/loadavg)."
  echo
  echo "| question | corten | docker |"
  echo "|---|---|---|"
  echo "| UDP | ${cells[udp-corten]} | ${cells[udp-docker]:-not here} |"
  echo "| TCP, a connection each | ${cells[tcp-corten]} | ${cells[tcp-docker]:-not here} |"
} | tee /dev/stderr | python3 bench/section.py "$report"

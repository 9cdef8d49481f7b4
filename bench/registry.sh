#!/usr/bin/env bash
# `corten registry serve` beside Debian's docker-registry: how fast blobs come, with how much
# processor time and memory, and 1,000 clients at once. Writes the section "The registry
# server" of bench/report.md.
#
#   bench/registry.sh CORTEN [ROUNDS]
#
# Both serve the same blobs, over plain HTTP on loopback, from files that are in the page
# cache. They take turns, so that whatever else the machine does hits both alike.
set -euo pipefail
cd "$(dirname "$0")/.."
corten=$(realpath "$1")
rounds=${2:-5}
work=$(mktemp -d "${TMPDIR:-/tmp}/corten-bench-registry.XXXXXX")
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
ulimit -n 16384 2>/dev/null || ulimit -n "$(ulimit -Hn)"
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

ours=$(port)
RUST_LOG=warn "$corten" registry serve --listen "127.0.0.1:$ours" --root "$work/ours" >"$work/ours.log" 2>&1 &
pids+=($!)
servers="corten=$ours=$!"
if command -v docker-registry >/dev/null 2>&1; then
  theirs=$(port)
  mkdir "$work/theirs"
  printf 'version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: %s\n    maxthreads: 1000\nhttp:\n  addr: 127.0.0.1:%s\n' \
    "$work/theirs" "$theirs" >"$work/theirs.yml"
  docker-registry serve "$work/theirs.yml" >"$work/theirs.log" 2>&1 &
  pids+=($!)
  servers="$servers docker-registry=$theirs=$!"
else
  echo "docker-registry is not installed (scripts/install-deps.sh bench): measuring alone" >&2
fi

python3 - "$rounds" "$servers" bench/report.md <<'PYTHON'
import asyncio, hashlib, http.client, os, platform, socket, statistics, subprocess, sys, threading, time

rounds, servers, report = int(sys.argv[1]), [s.split("=") for s in sys.argv[2].split()], sys.argv[3]
names = [name for name, _, _ in servers]
ports = {name: int(port) for name, port, _ in servers}
pids = {name: int(pid) for name, _, pid in servers}
BIG, SMALL = os.urandom(256 << 20), os.urandom(1 << 20)
big, small = ("sha256:" + hashlib.sha256(b).hexdigest() for b in (BIG, SMALL))

def push(port, bytes_, digest):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v2/bench/blobs/uploads/", headers={"Content-Length": "0"})
    begun = connection.getresponse(); begun.read()
    location = begun.headers["Location"].split(f":{port}", 1)[-1]
    separator = "&" if "?" in location else "?"
    connection.request("PUT", f"{location}{separator}digest={digest}", body=bytes_,
                       headers={"Content-Type": "application/octet-stream"})
    done = connection.getresponse(); done.read()
    assert done.status == 201, done.status

def fetch(port, digest, size):
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(f"GET /v2/bench/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        buffer, got = bytearray(1 << 20), 0
        while count := s.recv_into(buffer):
            if got == 0: assert buffer.startswith(b"HTTP/1.1 200"), bytes(buffer[:100])
            got += count
        assert got >= size, got

def cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

def memory(pid, field):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith(field): return int(line.split()[1]) / 1024

def burst(port, connections, each):
    threads = [threading.Thread(target=lambda: [fetch(port, big, len(BIG)) for _ in range(each)]) for _ in range(connections)]
    start = time.monotonic()
    for t in threads: t.start()
    for t in threads: t.join()
    return connections * each * len(BIG) / (time.monotonic() - start) / 1e6

async def crowd(port, clients):
    failures, times, gate = [], [], asyncio.Event()
    async def one():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await gate.wait()
            start = time.monotonic()
            for _ in range(3):
                writer.write(f"GET /v2/bench/blobs/{small} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200"), head[:60]
                assert len(await reader.readexactly(len(SMALL))) == len(SMALL)
            times.append(time.monotonic() - start)
            writer.close()
        except Exception as error:
            failures.append(repr(error))
    tasks = [asyncio.create_task(one()) for _ in range(clients)]
    await asyncio.sleep(1)
    start = time.monotonic()
    gate.set()
    await asyncio.gather(*tasks)
    return failures, time.monotonic() - start

for name in names:
    for _ in range(200):
        try: socket.create_connection(("127.0.0.1", ports[name])).close(); break
        except OSError: time.sleep(0.05)
    push(ports[name], BIG, big); push(ports[name], SMALL, small)
    fetch(ports[name], big, len(BIG))
idle = {name: memory(pids[name], "VmRSS") for name in names}
speed = {n: {name: [] for name in names} for n in (1, 64)}
used = {n: {name: 0.0 for name in names} for n in (1, 64)}
moved = {1: 4, 64: 64}
for _ in range(rounds):
    for connections in (1, 64):
        for name in names:
            before = cpu(pids[name])
            speed[connections][name].append(burst(ports[name], connections, moved[connections] // connections))
            used[connections][name] += cpu(pids[name]) - before
peak = {name: memory(pids[name], "VmHWM") for name in names}
crowds = {name: asyncio.run(crowd(ports[name], 1000)) for name in names}
last = {name: memory(pids[name], "VmHWM") for name in names}

def row(title, cell):
    return f"| {title} | " + " | ".join(cell(name) for name in names) + " |"
def per_gb(connections, name):
    gigabytes = rounds * moved[connections] * len(BIG) / 1e9
    return f"{used[connections][name] / gigabytes:.2f} s"
version = ""
if "docker-registry" in names:
    version = subprocess.run(["docker-registry", "--version"], capture_output=True, text=True).stdout.strip()
lines = [
    "## The registry server", "",
    f"`bench/registry.sh`: medians of {rounds} rounds, taking turns, {os.cpu_count()} cores, kernel {platform.release()}, {time.strftime('%Y-%m-%d')}; plain HTTP on loopback, a blob of 256 MiB in the page cache; the clients (Python) run on the same cores.",
    version, "",
    "| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names),
    row("blob pull, 1 connection", lambda n: f"{statistics.median(speed[1][n]):.0f} MB/s"),
    row("blob pull, 64 connections", lambda n: f"{statistics.median(speed[64][n]):.0f} MB/s"),
    row("processor time of the server per GB, 1 connection", lambda n: per_gb(1, n)),
    row("processor time of the server per GB, 64 connections", lambda n: per_gb(64, n)),
    row("memory after the pushes", lambda n: f"{idle[n]:.1f} MiB"),
    row("peak memory of all of the above", lambda n: f"{peak[n]:.1f} MiB"),
    row("1,000 clients at once, 3 blobs of 1 MiB each: errors", lambda n: str(len(crowds[n][0]))),
    row("the same: time", lambda n: f"{crowds[n][1]:.1f} s"),
    row("peak memory after that", lambda n: f"{last[n]:.1f} MiB"), "",
]
print("\n".join(lines))
for name in names:
    for failure in sorted(set(crowds[name][0])): print(f"{name}: {failure}")
subprocess.run(["bench/section.py", report], input="\n".join(lines), text=True, check=True)
PYTHON

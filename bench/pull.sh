#!/usr/bin/env bash
# Moving images beside Docker and Podman: pulling (with unpacking), pushing, saving, loading and
# removing, with a registry on loopback: an image of 300 MB in 10,000 files, and one of 1 GB in
# 6 layers; Corten with each layer driver. Needs root; docker and podman are measured where
# installed; Corten itself tells where its time goes in a pull. Writes the section "Moving
# images" of bench/report.md.
#
#   bench/pull.sh CORTEN [ROUNDS [IMAGES]]: IMAGES is files or layers, both if not said
#
# The contenders take turns, so that whatever else the machine does hits them alike; where it
# is allowed they run before everything else (chrt, round robin: they have several threads).
set -euo pipefail
cd "$(dirname "$0")/.."
corten=$(realpath "$1")
rounds=${2:-5}
images=${3:-files layers}
report=bench/report.md
work=$(mktemp -d "${TMPDIR:-/tmp}/corten-pull.XXXXXX")
export DOCKER_CONFIG=$work/docker CORTEN_ROOT=$work/base
unset DOCKER_HOST DOCKER_CONTEXT
mkdir -p "$DOCKER_CONFIG" "$work/results"
echo "{}" >"$DOCKER_CONFIG/config.json"
first=""
if chrt -r 10 true 2>/dev/null; then first="chrt -r 10"; fi
pids=()

cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for root in base erofs overlay; do
    "$corten" --root "$work/$root" system reset --force >/dev/null 2>&1 || true
  done
  wait 2>/dev/null || true
  # Podman leaves its storage mounted; dockerd's mounts went with its namespace.
  grep " $work/" /proc/self/mounts | cut -d' ' -f2 | sort -r | while read -r point; do umount "$point"; done || true
  rm -rf "$work"
}
trap cleanup EXIT

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
registry=127.0.0.1:$port
target=127.0.0.1:$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
serve() { # serve PREFIX...: the registry to pull from, and the one to push to
  $first "$@" "$corten" registry serve --listen "$registry" --root "$work/registry" >>"$work/registry.log" 2>&1 &
  pids+=($!)
  $first "$@" "$corten" registry serve --listen "$target" --root "$work/target" >>"$work/registry.log" 2>&1 &
  pids+=($!)
}
serve
for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.05; done

echo "Setting up: images"
python3 - "$work/images" <<'PYTHON'
import os, random, sys
root = sys.argv[1]
random.seed(7)
text = b"".join(b"line %d of a file that compresses\n" % i for i in range(4500))
def tree(path, files, size):
    # Half of it does not compress.
    for i in range(files):
        directory = f"{path}/{i // 100:03}"
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/{i:05}", "wb") as out:
            out.write(text[:size // 2] + random.randbytes(size // 2))
os.makedirs(f"{root}/files")
tree(f"{root}/files/tree", 10000, 30000)
open(f"{root}/files/Dockerfile", "w").write("FROM scratch\nCOPY tree /tree\n")
os.makedirs(f"{root}/layers")
for n in range(6):
    tree(f"{root}/layers/tree{n}", 1700, 100000)
copies = "".join(f"COPY tree{n} /tree{n}\n" for n in range(6))
open(f"{root}/layers/Dockerfile", "w").write("FROM scratch\n" + copies)
PYTHON
for image in $images; do
  $first "$corten" build -q -t "$registry/$image:1" "$work/images/$image" >/dev/null
  $first "$corten" push -q "$registry/$image:1" >/dev/null
done
rm -rf "$work/images"
"$corten" system reset --force >/dev/null
contenders=""

if command -v dockerd >/dev/null 2>&1 && command -v docker >/dev/null 2>&1; then
  # In a network of its own: it would change this host's firewall otherwise. The same
  # registry answers there under the same name.
  mkdir -p "$work/engine"
  $first unshare -n -m sh -c "ip link set lo up; exec dockerd --data-root $work/engine/data \
    --exec-root $work/engine/exec -H unix://$work/engine/sock --pidfile $work/engine/pid \
    --bridge=none --iptables=false" >"$work/dockerd.log" 2>&1 &
  dockerd=$!
  pids+=("$dockerd")
  docker="docker -H unix://$work/engine/sock"
  for _ in $(seq 200); do $docker info >/dev/null 2>&1 && break; sleep 0.1; done
  if $docker info >/dev/null 2>&1; then
    contenders="$contenders docker"
    serve nsenter --net="/proc/$dockerd/ns/net"
    sleep 1
  fi
fi
if command -v podman >/dev/null 2>&1; then
  contenders="$contenders podman"
  podman="podman --root $work/podman --runroot $work/podman-run --cgroup-manager=cgroupfs"
fi
contenders="$contenders erofs overlay"

timed() { # timed RESULT PREPARE COMMAND: one run: seconds and peak memory in MiB
  python3 - "$work/results/$1" "$2" "$3" <<'PYTHON'
import os, shlex, subprocess, sys, time
result, prepare, command = sys.argv[1:]
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
subprocess.run(prepare, shell=True, **quiet)
os.sync()
time.sleep(0.5)
start = time.monotonic()
process = subprocess.Popen(shlex.split(command), **quiet)
_, status, usage = os.wait4(process.pid, 0)
took = time.monotonic() - start
with open(result, "a") as out:
    out.write(f"{took} {usage.ru_maxrss / 1024}\n" if status == 0 else "failed 0\n")
PYTHON
}

# What was pushed before would not be sent again.
forget="rm -rf $work/target/blobs/* $work/target/repositories/*"
for round in $(seq "$rounds"); do
  for image in $images; do
    name=$registry/$image:1
    there=$target/$image:1
    # The same archive for everybody, if it is the first one that could be made.
    archive=$work/$image.tar
    for who in $contenders; do
      case $who in
        docker)
          timed "pull-$image-docker" "$docker rmi -f $name" "$docker pull -q $name"
          timed "push-$image-docker" "$forget; $docker tag $name $there" "$docker push -q $there"
          $docker rmi "$there" >/dev/null 2>&1 || true
          timed "save-$image-docker" "rm -f $work/saved" "$docker save -o $work/saved $name"
          [ -e "$archive" ] || ln "$work/saved" "$archive" || true
          timed "rmi-$image-docker" "" "$docker rmi $name"
          timed "load-$image-docker" "" "$docker load -q -i $archive"
          ;;
        podman)
          timed "pull-$image-podman" "$podman rmi -f $name" "$first $podman pull -q --tls-verify=false $name"
          timed "push-$image-podman" "$forget" "$first $podman push -q --tls-verify=false $name $there"
          timed "save-$image-podman" "rm -f $work/saved" "$first $podman save -q -o $work/saved $name"
          [ -e "$archive" ] || ln "$work/saved" "$archive" || true
          timed "rmi-$image-podman" "" "$first $podman rmi $name"
          timed "load-$image-podman" "" "$first $podman load -q -i $archive"
          ;;
        *)
          ours="env CORTEN_LAYER_DRIVER=$who $corten --root $work/$who"
          timed "pull-$image-$who" "$ours rmi -f $name; $ours system prune -af" "$first $ours pull -q $name"
          timed "push-$image-$who" "$forget; $ours tag $name $there" "$first $ours push -q $there"
          $ours rmi "$there" >/dev/null 2>&1 || true
          timed "save-$image-$who" "rm -f $work/saved" "$first $ours save -o $work/saved $name"
          [ -e "$archive" ] || ln "$work/saved" "$archive" || true
          timed "rmi-$image-$who" "" "$first $ours rmi $name"
          timed "load-$image-$who" "$ours system prune -af" "$first $ours load -q -i $archive"
          ;;
      esac
      rm -f "$work/saved"
    done
  done
done

shares() { # shares IMAGE: where the processor time of a pull with the erofs driver goes
  local ours="env CORTEN_LAYER_DRIVER=erofs $corten --root $work/erofs"
  $ours rmi -f "$registry/$1:1" >/dev/null 2>&1 || true
  $ours system prune -af >/dev/null 2>&1 || true
  RUST_LOG=corten_registry=debug python3 - "$work/results/shares-$1" $first $ours pull -q "$registry/$1:1" <<'PYTHON' || true
import os, re, subprocess, sys
result, command = sys.argv[1], sys.argv[2:]
process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
log = process.stderr.read()
_, status, usage = os.wait4(process.pid, 0)
process.returncode = status
log = re.sub(r"\x1b\[[0-9;]*m", "", log)
line = next(line for line in log.splitlines() if "processor time" in line)
spent = {name: int(micros) / 1e6 for name, micros in re.findall(r"(inflate|hash|write)=(\d+)", line)}
whole = usage.ru_utime + usage.ru_stime
spent["download and all else"] = max(whole - sum(spent.values()), 0)
with open(result, "w") as out:
    for name, seconds in sorted(spent.items(), key=lambda one: -one[1]):
        out.write(f"{100 * seconds / whole:.0f} % {name} ({seconds:.2f} s)\n")
PYTHON
}
for image in $images; do shares "$image"; done

{
  echo "## Moving images"
  echo
  echo "\`bench/pull.sh\`: medians of $rounds, taking turns, $(nproc) cores, kernel $(uname -r), $(date -u +%F); load $(cut -d' ' -f1-3 /proc/loadavg) at the end; with \`corten registry serve\` on loopback. Pulled and loaded into an empty store, and synced (by Corten); pushed to an empty registry; loaded from one and the same archive for all."
  docker_version=$(${docker:-false} version --format 'docker {{.Server.Version}}' 2>/dev/null || echo "no docker engine")
  echo "Peers: $docker_version, $(podman --version 2>/dev/null || echo no podman). Half of each file does not compress."
  echo
  python3 - "$work/results" "$contenders" <<'PYTHON'
import os, statistics, sys
results, names = sys.argv[1], sys.argv[2].split()
def runs(work, image, who):
    path = f"{results}/{work}-{image}-{who}"
    if not os.path.exists(path):
        return None
    lines = [line.split() for line in open(path)]
    return None if any(line[0] == "failed" for line in lines) else [tuple(map(float, line)) for line in lines]
ours = ("erofs", "overlay")
images = (("files", "300 MB, 10,000 files, 1 layer"), ("layers", "1 GB, 10,200 files, 6 layers"))
images = [(image, title) for image, title in images if os.path.exists(f"{results}/pull-{image}-erofs")]
for image, title in images:
    print(f"| {title} | Corten, erofs | Corten, overlay | docker | podman |\n|---|---|---|---|---|")
    for work in ("pull", "push", "save", "load", "rmi"):
        measured = {who: runs(work, image, who) for who in names}
        median = {who: statistics.median(t for t, _ in some) if some else None for who, some in measured.items()}
        cells = []
        for who in (*ours, "docker", "podman"):
            seconds = median.get(who)
            if seconds is None:
                cells.append("failed" if who in names else "")
            elif who in ours:
                cells.append(f"{seconds:.2f} s")
            else:
                ratios = "; ".join(f"{seconds / median[o]:.1f}×" for o in ours if median[o])
                cells.append(f"{seconds:.2f} s ({ratios})")
        print(f"| {work} | " + " | ".join(cells) + " |")
        if work != "rmi":
            peaks = [f"{max(m for _, m in measured[who]):.0f} MiB" if measured[who] else "" for who in ours]
            print(f"| peak memory of it | " + " | ".join(peaks) + " | | |")
    print()
print("In brackets: how many times as long as Corten with erofs; with overlay.")
for image, title in (("files", "300 MB"), ("layers", "1 GB")):
    path = f"{results}/shares-{image}"
    if os.path.exists(path):
        text = ", ".join(line.strip() for line in open(path))
        print(f"\nProcessor time of the erofs pull of {title}: {text}.")
print("\nHash: of blobs and of plain archives; inflate: with reading the blobs; write: reading tars, writing layers and blobs. They overlap: each is a thread, of every layer.")
PYTHON
} >"$work/section"
cat "$work/section"
python3 - "$report" "$work/section" <<'PYTHON'
import os, re, sys
report, section = sys.argv[1], open(sys.argv[2]).read()
text = open(report).read() if os.path.exists(report) else "# Benchmarks\n"
text = re.sub(r"\n*## (?:Pulling|Moving) images\n.*?(?=\n## |\Z)", "", text, flags=re.S)
open(report, "w").write(text.rstrip("\n") + "\n\n" + section)
PYTHON

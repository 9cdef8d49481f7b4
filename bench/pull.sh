#!/usr/bin/env bash
# Moving images beside Docker and Podman: pulling (with unpacking), pushing, saving, removing,
# loading and listing, with a registry on loopback: an image of 300 MB in 10,000 files, one of
# 1 GB in 6 layers, and 500 small ones to list; Corten with each layer driver. Needs root; docker
# and podman are measured where installed; Corten itself tells where its time goes in a pull.
# Writes the section "Moving images" of bench/report.md.
#
#   bench/pull.sh CORTEN [ROUNDS [IMAGES]]: IMAGES is files or layers, both if not said
#
# PERCENT=5 tries the script with images of a twentieth: nothing is written then.
#
# The contenders take turns, so that whatever else the machine does hits them alike; where it
# is allowed they run before everything else (chrt, round robin: they have several threads).
set -euo pipefail
cd "$(dirname "$0")/.."
corten=$(realpath "$1")
rounds=${2:-5}
images=${3:-files layers}
percent=${PERCENT:-100}
many=$((5 * percent))
report=${REPORT:-bench/report.md}
first=""
if chrt -r 10 true 2>/dev/null; then first="chrt -r 10"; fi
. bench/peers.sh
begin pull
CORTEN_ROOT=$work/base
trap 'undo base erofs overlay' EXIT

# The registry to pull from, and the one to push to.
registry=127.0.0.1:$(free_port)
target=127.0.0.1:$(free_port)
serve "$registry" registry
serve "$target" target

echo "Setting up: images"
python3 - "$work/images" "$percent" <<'PYTHON'
import os, random, sys
root, percent = sys.argv[1], int(sys.argv[2])
random.seed(7)
text = b"".join(b"line %d of a file that compresses\n" % i for i in range(4500))
def tree(path, files, size):
    # Half of it does not compress.
    for i in range(files * percent // 100):
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
# As a docker-archive: one layer, and configurations that differ.
python3 - "$work/many.tar" "$many" <<'PYTHON'
import hashlib, io, json, sys, tarfile
archive, many = sys.argv[1], int(sys.argv[2])
def add(out, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    out.addfile(entry, io.BytesIO(content))
layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w") as out:
    add(out, "file", b"content")
diff_id = "sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()
manifest = []
with tarfile.open(archive, "w") as out:
    add(out, "layer.tar", layer.getvalue())
    for n in range(many):
        config = {"architecture": "amd64", "os": "linux", "config": {"Env": [f"N={n}"]},
                  "created": "2024-01-01T00:00:00Z", "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
        config = json.dumps(config).encode()
        name = hashlib.sha256(config).hexdigest() + ".json"
        add(out, name, config)
        manifest.append({"Config": name, "RepoTags": [f"many/image{n}:1"], "Layers": ["layer.tar"]})
    add(out, "manifest.json", json.dumps(manifest).encode())
PYTHON
"$corten" system reset --force >/dev/null
contenders=""

if start_docker --bridge=none --iptables=false; then
  contenders="$contenders docker"
  space=$dockerd serve "$target" target
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
as() { # as WHO: how it is called, and how everything is removed that it has of an image
  insecure="" empty=true
  case $1 in
    docker) call=$docker ;; # the engine does the work, with the priority it has
    podman) call="$first $podman" insecure=--tls-verify=false ;;
    *)
      call="$first env CORTEN_LAYER_DRIVER=$1 $corten --root $work/$1"
      # What is deleted beside the command must not be in the next one's way.
      empty="$call system prune -af; while ls -d $work/$1/tmp/removed-*; do sleep 0.1; done"
      ;;
  esac
}
move() { # move IMAGE WHO
  local name=$registry/$1:1 there=$target/$1:1
  # The same archive for everybody, the first one that could be made.
  local archive=$work/$1.tar
  as "$2"
  timed "pull-$1-$2" "$call rmi -f $name; $empty" "$call pull -q $insecure $name"
  timed "push-$1-$2" "$forget; $call tag $name $there" "$call push -q $insecure $there"
  $call rmi "$there" >/dev/null 2>&1 || true
  timed "save-$1-$2" "rm -f $work/saved" "$call save -o $work/saved $name"
  [ -e "$archive" ] || ln "$work/saved" "$archive" || true
  timed "rmi-$1-$2" "" "$call rmi $name"
  timed "load-$1-$2" "$empty" "$call load -q -i $archive"
  rm -f "$work/saved"
}
# The section as far as there are results: of a run that ends early, too.
tell() {
  {
    echo "## Moving images"
    echo
    echo "\`bench/pull.sh\`: medians of $measured, taking turns, $(nproc) cores, kernel $(uname -r), $(date -u +%F); load $(cut -d' ' -f1-3 /proc/loadavg) at the end; with \`corten registry serve\` on loopback. Pulled and loaded into an empty store, and synced (by Corten); pushed to an empty registry; loaded from one and the same archive for all."
    docker_version=$(${docker:-false} version --format 'docker {{.Server.Version}}' 2>/dev/null || echo "no docker engine")
    echo "Peers: $docker_version, $(podman --version 2>/dev/null || echo no podman). Half of each file does not compress."
    echo
    python3 - "$work/results" "$contenders" "$many images" <<'PYTHON'
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
print("In brackets: how many times as long as Corten with erofs; with overlay.\n")
listed = {who: runs("ls", "many", who) for who in names}
listed = {who: statistics.median(t for t, _ in some) * 1000 for who, some in listed.items() if some}
if listed:
    print("`image ls` of %s: " % sys.argv[3] + ", ".join(f"{who} {ms:.0f} ms" for who, ms in listed.items()) + ".")
for image, title in (("files", "300 MB"), ("layers", "1 GB")):
    path = f"{results}/shares-{image}"
    if os.path.exists(path):
        text = ", ".join(line.strip() for line in open(path))
        print(f"\nProcessor time of the erofs pull of {title}: {text}.")
print("\nHash: of blobs and of plain archives; inflate: with reading the blobs; write: reading tars, writing layers and blobs. They overlap: each is a thread, of every layer.")
PYTHON
  } >"$work/section"
  [ "$percent" != 100 ] || bench/section.py "$report" <"$work/section"
}
for round in $(seq "$rounds"); do
  for image in $images; do
    for who in $contenders; do move "$image" "$who"; done
    measured=$round
    tell
  done
done
for image in $images; do
  for who in $contenders; do
    as "$who"
    $call rmi -f "$registry/$image:1" >/dev/null 2>&1 || true
  done
done
for who in $contenders; do
  as "$who"
  $call load -q -i "$work/many.tar" >/dev/null 2>&1 || echo "$who: the small images were not loaded" >&2
done
for round in 1 2 3 4 5 6 7 8 9; do
  for who in $contenders; do
    # Podman takes minutes for them: once is enough.
    if [ "$who" = podman ] && [ "$round" != 1 ]; then continue; fi
    as "$who"
    timed "ls-many-$who" "" "$call image ls"
  done
done

shares() { # shares IMAGE: where the processor time of a pull with the erofs driver goes
  as erofs
  sh -c "$call rmi -f $registry/$1:1; $empty" >/dev/null 2>&1 || true
  RUST_LOG=corten_registry=debug python3 - "$work/results/shares-$1" $call pull -q "$registry/$1:1" <<'PYTHON'
import os, re, subprocess, sys
result, command = sys.argv[1], sys.argv[2:]
process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
log = re.sub(r"\x1b\[[0-9;]*m", "", process.stderr.read())
_, status, usage = os.wait4(process.pid, 0)
process.returncode = status
lines = [line for line in log.splitlines() if "processor time" in line]
if status != 0 or not lines:
    sys.exit(f"where the time of a pull goes was not told:\n{log[-2000:]}")
spent = {name: int(micros) / 1e6 for name, micros in re.findall(r"(inflate|hash|write)=(\d+)", lines[-1])}
whole = usage.ru_utime + usage.ru_stime
spent["download and all else"] = max(whole - sum(spent.values()), 0)
with open(result, "w") as out:
    for name, seconds in sorted(spent.items(), key=lambda one: -one[1]):
        out.write(f"{100 * seconds / whole:.0f} % {name} ({seconds:.2f} s)\n")
PYTHON
}
for image in $images; do shares "$image"; done

tell
cat "$work/section"

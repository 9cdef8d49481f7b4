#!/usr/bin/env bash
# Builds beside Docker's builders (classic and BuildKit, docker.io's) and buildah: the
# walkthrough with everything cached, 30 tiny RUN and COPY steps, contexts of 10,000 and 100,000
# files, parallel stages. Needs root; peers are measured where installed. Writes the section
# "Builds" of bench/report.md.
#
#   bench/build.sh CORTEN [ROUNDS [FILES]]: FILES in the large context, 100000 if not said
#
# Half an hour with 5 rounds and all peers. The contenders take turns, so that whatever else the machine does hits them alike.
set -euo pipefail
cd "$(dirname "$0")/.."
corten=$(realpath "$1")
rounds=${2:-5}
files=${3:-100000}
report=${REPORT:-bench/report.md}
. bench/peers.sh
begin build
trap 'undo root base' EXIT

echo "Setting up: images, contexts, engines"
serve_images
for image in alpine:latest golang:1.19-alpine; do
  "$corten" pull -q "$registry/library/$image" >/dev/null
  "$corten" tag "$registry/library/$image" "$image"
done

# A peer that cannot be set up is left out, and so is one that hangs: nothing of the others is lost.
patient() { timeout 300 "$@"; }

DOCKER=/usr/bin/docker # Debian's, which speaks BuildKit's sessions
if start_docker; then
  for image in alpine:latest golang:1.19-alpine; do
    if ! { patient $docker pull -q "$registry/library/$image" >/dev/null &&
      patient $docker tag "$registry/library/$image" "$image"; }; then
      echo "Docker is left out: $(tail -n 1 "$work/dockerd.log")" >&2
      docker=""
      break
    fi
  done
fi
buildah=""
if command -v buildah >/dev/null 2>&1; then
  buildah="buildah --root $work/buildah --runroot $work/buildah-run"
  for image in alpine:latest golang:1.19-alpine; do
    if ! { patient $buildah pull -q --tls-verify=false "$registry/library/$image" >/dev/null &&
      patient $buildah tag "$registry/library/$image" "docker.io/library/$image"; }; then
      echo "buildah is left out: it cannot pull" >&2
      buildah=""
      break
    fi
  done
fi

python3 - "$work" "$files" <<'PYTHON'
import os, shutil, sys
work, files = sys.argv[1], int(sys.argv[2])
def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").write(text)
shutil.copytree("examples/hello-web", f"{work}/hello")
write(f"{work}/run/Dockerfile", "FROM alpine\n" + "RUN true\n" * 30)
write(f"{work}/steps/Dockerfile", "FROM alpine\n" + "".join(f"RUN echo {i} >/{i}\n" for i in range(30)))
for i in range(30):
    write(f"{work}/copy/f{i}", f"{i}\n")
write(f"{work}/copy/Dockerfile", "FROM alpine\n" + "".join(f"COPY f{i} /f{i}\n" for i in range(30)))
for name, count in (("small", 10000), ("large", files)):
    for i in range(count):
        write(f"{work}/{name}/src/{i // 100:04}/{i:06}", f"file {i}\n" * 20)
    write(f"{work}/{name}/Dockerfile", "FROM scratch\nCOPY src /src\n")
write(f"{work}/stages/Dockerfile", "".join(
    f"FROM alpine AS s{i}\n" + "".join(f"RUN sleep 0.5; echo {i} >/{n}\n" for n in range(4)) for i in range(4))
    + "FROM scratch\n" + "".join(f"COPY --from=s{i} /etc/os-release /{i}\n" for i in range(4)))
write(f"{work}/chain/Dockerfile", "FROM alpine\n" + "".join(f"RUN sleep 0.5; echo >/{n}\n" for n in range(4)))
PYTHON

python3 - "$work" "$corten" "$docker" "$buildah" "$rounds" "$files" "$report" <<'PYTHON'
import json, os, shlex, statistics, subprocess, sys, time
work, corten, docker, buildah, rounds, files, report = sys.argv[1:]
rounds, files = int(rounds), int(files)
builders = {"Corten": ([corten, "build", "-q"], {})}
if docker:
    builders["docker classic"] = (docker.split() + ["build", "-q"], {"DOCKER_BUILDKIT": "0"})
    builders["docker BuildKit"] = (docker.split() + ["build", "-q"], {"DOCKER_BUILDKIT": "1"})
if buildah:
    builders["buildah"] = (buildah.split() + ["bud", "-q", "--layers", "--pull-never", "--isolation",
                                              "chroot"], {})
count = 0

PATIENCE = 900

def timed(who, context, *flags):
    command, env = builders[who]
    began = time.monotonic()
    subprocess.run([*command, *flags, "-t", context, f"{work}/{context}"], check=True,
                   timeout=PATIENCE, env=dict(os.environ, **env), stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.monotonic() - began

def build(who, context, *flags):
    """Seconds; `None` where it failed, or took so long that nobody would wait."""
    try:
        return timed(who, context, *flags)
    except subprocess.CalledProcessError as error:
        print(f"{who} {context}: {error.stderr.decode()[-300:]}", file=sys.stderr)
    except subprocess.TimeoutExpired:
        print(f"{who} {context}: given up after {PATIENCE} s", file=sys.stderr)
    return None

def measure(context, *flags, before=lambda: None, warm=True, rounds=rounds, without=()):
    times = {who: [] for who in builders if who not in without}
    for who in times:
        if warm and build(who, context) is None:
            times[who] = [None]
    for _ in range(rounds):
        for who in times:
            if None not in times[who]:
                before()
                times[who].append(build(who, context, *flags))
    return {who: statistics.median(t) if t and None not in t else None for who, t in times.items()}

def quick(context, each=4):
    """As `measure`, by hyperfine: what takes milliseconds is not measured by a program that takes one to start another."""
    times = {who: [] for who in builders}
    out = f"{work}/hyperfine.json"
    for _ in range(rounds):
        for who, (command, env) in builders.items():
            what = shlex.join([*command, "-t", context, f"{work}/{context}"])
            done = subprocess.run(["hyperfine", "--warmup", "1", "--runs", str(each), "--shell=none", "--export-json", out, what],
                                  env=dict(os.environ, **env), capture_output=True, text=True, timeout=PATIENCE)
            if done.returncode:
                print(f"{who} {context}: {done.stderr[-300:]}", file=sys.stderr)
                continue
            with open(out) as measured:
                times[who] += json.load(measured)["results"][0]["times"]
    return {who: statistics.median(t) if t else None for who, t in times.items()}

versions = []
if docker:
    versions.append("docker " + subprocess.check_output(docker.split() + ["version", "-f", "{{.Server.Version}}"], text=True).strip())
if buildah:
    versions.append(subprocess.check_output(["buildah", "--version"], text=True).split(" (")[0] + " (`--isolation chroot`)")
rows, targets = [], []
def tell():
    """Writes the section as far as there are rows; of a run that ends early, too."""
    load = os.getloadavg()
    lines = ["## Builds\n",
             f"`bench/build.sh`: medians of {rounds} (of 3 and of 1 where it takes long), taking turns, {os.cpu_count()} cores, kernel {os.uname().release}, {time.strftime('%Y-%m-%d')}; load average at the end {load[0]:.1f} (1 min), {load[2]:.1f} (15 min).",
             "Peers: " + ", ".join(versions) + ".\n",
             "| work | " + " | ".join(builders) + " |\n|---|" + "---|" * len(builders), *rows,
             "\nIn brackets: how many times as long. Targets, with their bounds:\n",
             *(f"- {line}" for line in targets)]
    subprocess.run(["bench/section.py", report], input="\n".join(lines), text=True, check=True)
def row(title, times, by=1):
    ours = times["Corten"]
    cells = []
    for who in builders:
        took = times.get(who)
        if took is None:
            cells.append("" if who not in times else "failed")
        else:
            ratio = "" if who == "Corten" or not ours else f" ({took / ours:.1f}×)"
            cells.append(f"{took / by * 1000:.1f} ms{ratio}")
    rows.append(f"| {title} | " + " | ".join(cells) + " |")
    print(rows[-1], file=sys.stderr, flush=True)
    tell()

# buildah cannot run the walkthrough's compiler in a chroot of some hosts: it says so.
hello = quick("hello")
row("walkthrough, everything cached", hello)
# Those that change nothing are one step to Corten, and thirty to the others.
row("30 `RUN true`, each step", measure("run", "--no-cache", warm=False), by=30)
steps = measure("steps", "--no-cache", warm=False)
row("30 `RUN echo N >/N`, each step", steps, by=30)
copy = measure("copy", "--no-cache", warm=False)
row("30 `COPY` of one file, each step", copy, by=30)
small = measure("small")
row("10,000 files in the context, unchanged", small)
one = f"{work}/large/src/0000/000000"
changes = iter(range(1, 10 ** 9))
def change():
    with open(one, "w") as out:
        out.write(f"changed {next(changes)}\n")
def touch():
    os.utime(one)
# All of the context is checked and nothing is copied: what was touched is what it was. buildah
# sends nothing anywhere, and takes minutes to compare.
few = min(rounds, 3)
large = measure("large", before=touch, rounds=few, without=("buildah",))
row(f"{files:,} files in the context, one of them touched: the check", large)
row(f"{files:,} files in the context, one of them changed, all copied",
    measure("large", before=change, warm=False, rounds=1, without=("buildah",)))
with open(f"{work}/large/Dockerfile", "w") as out:
    out.write("FROM scratch\nCOPY src/0000/000000 /one\n")
row(f"{files:,} files in the context, one of them changed, that one copied",
    measure("large", before=change, rounds=few, without=("buildah",)))
chain = measure("chain", "--no-cache", warm=False, rounds=few)
stages = measure("stages", "--no-cache", warm=False, rounds=few)
row("a chain of four steps of 0.5 s", chain)
row("four such chains in stages of their own", stages)

def target(text, value, bound, form="{:.1f}"):
    """Below the bound; `None`: not measured."""
    if value is not None:
        targets.append(f"{text}: {form.format(value)}, {'met' if value <= bound else 'MISSED'}")
def ratio(times, *whom):
    """How much of the fastest peer's time Corten takes."""
    peers = [times[who] for who in whom or times if who != "Corten" and times.get(who)]
    return times["Corten"] / min(peers) if peers and times.get("Corten") else None
def ms(times, by=1):
    return times["Corten"] and times["Corten"] / by * 1000
both = ("docker classic", "docker BuildKit")
target("walkthrough cached, ms (20)", ms(hello), 20)
target("of docker build's time (1/20)", ratio(hello, "docker classic"), 1 / 20, "{:.3f}")
target("RUN that writes, ms a step (10)", ms(steps, 30), 10)
target("of Docker's time a step (1/10)", ratio(steps, *both), 1 / 10, "{:.3f}")
target("COPY, of docker build's time a step (1/10)", ratio(copy, "docker classic"), 1 / 10, "{:.3f}")
target("COPY, of BuildKit's time a step (1/10)", ratio(copy, "docker BuildKit"), 1 / 10, "{:.3f}")
target("10,000 files, ms (50)", ms(small), 50)
target("check of the large context, of Docker's transfer (1/5)", ratio(large, *both), 1 / 5, "{:.3f}")
if chain.get("Corten") and stages.get("Corten"):
    target("stages at once, of the longest chain (1.15)", stages["Corten"] / chain["Corten"], 1.15, "{:.2f}")
tell()
PYTHON
awk '/^## / { shown = /^## Builds/ } shown' "$report"

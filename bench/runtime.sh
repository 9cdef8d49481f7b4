#!/usr/bin/env bash
# `corten runtime` beside crun, runc and the bare system calls: run of a bundle, exec in a
# running container, peak memory. Needs root; crun and runc are measured where installed.
# Writes the section "The OCI runtime" of bench/report.md.
#
#   bench/runtime.sh CORTEN BARE [RUNS]
#
# BARE is crates/corten-runtime/examples/bare.rs: the same namespaces, mounts, devices,
# control group, pivot_root, execve and wait, and nothing else.
#
# Everything happens in a mount namespace of its own, with a fresh cgroup2 mount (crun of
# Debian 12 refuses hybrid hierarchies) and all files on a tmpfs. The contenders take turns,
# a few runs each, so that whatever else the machine does hits them alike; where it is
# allowed they also run before everything else (chrt).
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${CORTEN_BENCH_INSIDE:-}" ]; then
  corten=$(realpath "$1") bare=$(realpath "$2")
  first="env"
  chrt -f 10 true 2>/dev/null && first="chrt -f 10"
  CORTEN_BENCH_INSIDE=1 exec $first unshare --mount --propagation private "$0" "$corten" "$bare" "${3:-60}"
fi
corten=$1 bare=$2 runs=$3
rounds=6
each=$(((runs + rounds - 1) / rounds))
report=bench/report.md

umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
work=$(mktemp -d /tmp/corten-bench-runtime.XXXXXX)
mount -t tmpfs tmpfs "$work"
cleanup() {
  for name in corten crun runc; do
    [ ! -d "$work/$name/sleep-$name" ] || "$work/bin/$name" --root "$work/$name" delete --force "sleep-$name" || true
  done
  rmdir /sys/fs/cgroup/corten-runtime 2>/dev/null || true
  umount -l "$work"
  rmdir "$work"
}
trap cleanup EXIT

# One word per contender, so that all are called alike.
mkdir -p "$work/bin" "$work/results"
cp "$bare" "$work/bin/bare"
ln -s "$corten" "$work/bin/corten-file"
contenders="corten"
command="$corten runtime"
declare -A call=([corten]="$command")
printf '#!/bin/sh\nexec %s "$@"\n' "$command" >"$work/bin/corten"
for name in crun runc; do
  path=$(command -v "$name") || continue
  contenders="$contenders $name"
  call[$name]=$path
  ln -s "$path" "$work/bin/$name"
done
chmod +x "$work/bin/corten"

bundle() { # bundle NAME PROGRAM ARG...
  local dir=$work/$1
  shift
  mkdir -p "$dir/rootfs/bin"
  cp "$(command -v busybox)" "$dir/rootfs/bin/$(basename "$1")"
  (cd "$dir" && ${call[corten]} spec)
  python3 - "$dir/config.json" "$@" <<'PYTHON'
import json, sys
path, args = sys.argv[1], sys.argv[2:]
spec = json.load(open(path))
spec["ociVersion"] = "1.0.2"  # the newest crun 1.8 knows
spec["process"].update(terminal=False, args=args)
spec["process"].pop("rlimits", None)  # raising them needs CAP_SYS_RESOURCE
# crun raises RLIMIT_MEMLOCK before it loads a device filter, which needs it, too.
spec["linux"]["resources"].pop("devices", None)
json.dump(spec, open(path, "w"), indent=1)
PYTHON
}
bundle true /bin/true
bundle sleep /bin/sleep 100000
cp "$work/sleep/rootfs/bin/sleep" "$work/sleep/rootfs/bin/true"

measure() { # measure NAME COMMAND: one turn
  hyperfine --shell=none --warmup 2 --runs "$each" --export-json "$work/results/$1.$round.json" "$2" \
    >"$work/results/$1.out" 2>&1 || { cat "$work/results/$1.out" >&2; exit 1; }
}
for round in $(seq "$rounds"); do
  for name in $contenders; do
    measure "run-$name" "${call[$name]} --root $work/$name run --bundle $work/true bench-$name"
  done
  measure run-bare "$work/bin/bare run $work/true"
done
for name in $contenders; do
  "$work/bin/$name" --root "$work/$name" run --detach --bundle "$work/sleep" "sleep-$name" </dev/null >/dev/null 2>&1
done
for round in $(seq "$rounds"); do
  for name in $contenders; do
    measure "exec-$name" "${call[$name]} --root $work/$name exec sleep-$name /bin/true"
  done
done
for name in $contenders; do
  for _ in 1 2 3 4 5; do
    "$bare" rss ${call[$name]} --root "$work/$name" run --bundle "$work/true" "rss-$name" >>"$work/results/rss-run-$name"
    "$bare" rss ${call[$name]} --root "$work/$name" exec "sleep-$name" /bin/true >>"$work/results/rss-exec-$name"
  done
done

{
  echo "## The OCI runtime"
  echo
  echo "\`bench/runtime.sh\`: medians of $((each * rounds)) runs, taking turns, $(nproc) cores, kernel $(uname -r), $(date -u +%F); in a mount namespace with only a cgroup2 mount."
  echo "$(crun --version 2>/dev/null | head -1 || echo no crun), $(runc --version 2>/dev/null | head -1 || echo no runc). \"Bare\" are the same namespaces, mounts, devices, control group, execution and wait as plain system calls (\`crates/corten-runtime/examples/bare.rs\`)."
  echo
  python3 - "$work/results" "$contenders" <<'PYTHON'
import glob, json, os, statistics, sys
results, names = sys.argv[1], sys.argv[2].split()
def times(what):
    return [t for f in glob.glob(f"{results}/{what}.[0-9]*.json") for t in json.load(open(f))["results"][0]["times"]]
def row(title, values, unit, digits):
    ours = values["corten"]
    cells = [f"{ours:.{digits}f} {unit}"]
    for name in ("bare", "crun", "runc"):
        if name in values:
            cells.append(f"{values[name]:.{digits}f} {unit} ({values[name] / ours:.2f}×)")
        else:
            cells.append("")
    print(f"| {title} | " + " | ".join(cells) + " |")
print("| work | Corten | bare | crun | runc |\n|---|---|---|---|---|")
for what, title in (("run", "run of a busybox `true` bundle"), ("exec", "exec of busybox `true`")):
    measured = {n: times(f"{what}-{n}") for n in names + ["bare"]}
    row(title, {n: statistics.median(t) * 1000 for n, t in measured.items() if t}, "ms", 2)
    row(title + ", fastest", {n: min(t) * 1000 for n, t in measured.items() if t}, "ms", 2)
for what in ("run", "exec"):
    kib = {n: statistics.median(map(int, open(f"{results}/rss-{what}-{n}"))) / 1024 for n in names}
    row(f"peak memory of {what}", kib, "MiB", 1)
PYTHON
  echo
  echo "In brackets: how many times as long (as much) as Corten."
} >"$work/section"
cat "$work/section"
bench/section.py "$report" <"$work/section"

#!/usr/bin/env bash
# Runs the validation programs of opencontainers/runtime-tools against one or more OCI
# runtimes and prints, in Markdown, how many assertions of each program held.
#
#   scripts/runtime-validation.sh SUITE NAME=RUNTIME... [-- PROGRAM...]
#
# SUITE is a checkout of runtime-tools, built: `runtimetest` and `rootfs-<arch>.tar.gz` in it,
# and the programs in SUITE/t (`go build -o t/ ./validation/…`). RUNTIME is a runtime binary,
# or a command of several words ("corten runtime"). What the programs said is kept in
# $OUT (default: a temporary directory that is named at the end) as NAME/PROGRAM.tap.
# Needs root. The programs leave bundles and containers behind; they are removed here.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '5,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
suite=$(realpath "$1")
shift
runtimes=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do runtimes+=("$1"); shift; done
[ $# -eq 0 ] || shift
programs=("$@")
[ ${#programs[@]} -gt 0 ] || mapfile -t programs < <(ls "$suite/t")
for needed in "$suite/runtimetest" "$suite/t/${programs[0]}"; do
  [ -x "$needed" ] || { echo "$needed is missing: build the suite first (see the head of this script)" >&2; exit 2; }
done

out=${OUT:-$(mktemp -d "${TMPDIR:-/tmp}/runtime-validation.XXXXXX")}
mkdir -p "$out"
work=$(mktemp -d "${TMPDIR:-/tmp}/rv.XXXXXX")
chmod 711 "$work" # user namespaces have to reach the bundles
sweep() { # every container of every runtime, then what the programs unpacked
  for runtime in "$work"/bin/*; do
    [ -x "$runtime" ] || continue
    for id in $("$runtime" list -q 2>/dev/null); do "$runtime" delete --force "$id" >/dev/null 2>&1 || true; done
  done
  { grep -F " $work/" /proc/self/mounts || true; } | cut -d' ' -f2 | sort -r | while read -r point; do umount -l "$point"; done
  rm -rf --one-file-system "$work/tmp"
}
trap 'sweep; rm -rf --one-file-system "$work"' EXIT

names=()
mkdir -p "$work/bin"
for pair in "${runtimes[@]}"; do
  name=${pair%%=*}
  names+=("$name")
  # A state directory of its own, so that only these containers are swept.
  printf '#!/bin/sh\nexec %s --root %q "$@"\n' "${pair#*=}" "$work/state-$name" >"$work/bin/$name"
  chmod +x "$work/bin/$name"
done

cd "$suite"
for name in "${names[@]}"; do
  mkdir -p "$out/$name"
  for program in "${programs[@]}"; do
    mkdir -p "$work/tmp"
    code=0
    TMPDIR=$work/tmp RUNTIME=$work/bin/$name timeout -k 5 120 "t/$program" \
      >"$out/$name/$program.tap" 2>"$out/$name/$program.err" </dev/null || code=$?
    echo "$code" >"$out/$name/$program.code"
    echo "$name $program: exit $code" >&2
    sweep
  done
done

python3 - "$out" "${names[@]}" -- "${programs[@]}" <<'PYTHON'
import pathlib, re, sys
out = pathlib.Path(sys.argv[1])
split = sys.argv.index("--")
names, programs = sys.argv[2:split], sys.argv[split + 1:]

def judge(name, program):
    """Assertions that held, that did not, that were skipped; and how the program ended."""
    ok = failed = skipped = 0
    text = (out / name / f"{program}.tap").read_text(errors="replace")
    code = int((out / name / f"{program}.code").read_text())
    # Assertions stand at the beginning of a line; what is indented is a diagnostic.
    for line in text.splitlines():
        match = re.match(r"(not )?ok\b(.*)", line)
        if not match:
            continue
        if re.search(r"#\s*(skip|todo)", match[2], re.I):
            skipped += 1
        elif match[1]:
            failed += 1
        else:
            ok += 1
    end = f"exit {code}" if code else ""
    if ok + failed + skipped == 0 and '"error":' in text:
        end = "complains"  # the programs about hooks assert nothing, they only print an error
    return ok, failed, skipped, end

def cell(ok, failed, skipped, end):
    parts = [f"{ok} ok"] if ok or not end else []
    if failed:
        parts.append(f"**{failed} not**")
    if skipped:
        parts.append(f"{skipped} skipped")
    if end:
        parts.append(f"**{end}**")
    return ", ".join(parts)

totals = {name: [0, 0, 0, 0] for name in names}
print("| program | " + " | ".join(names) + " |")
print("|---|" + "---|" * len(names))
for program in programs:
    cells = []
    for name in names:
        ok, failed, skipped, end = judge(name, program)
        cells.append(cell(ok, failed, skipped, end))
        total = totals[name]
        total[0] += ok
        total[1] += failed
        total[2] += skipped
        total[3] += failed == 0 and not end
    print(f"| {program} | " + " | ".join(cells) + " |")
print("| **all** | " + " | ".join(
    f"{ok} ok, {failed} not, {skipped} skipped; {clean} of {len(programs)} programs clean"
    for ok, failed, skipped, clean in totals.values()) + " |")
PYTHON
echo "What the programs said is in $out" >&2

#!/usr/bin/env bash
# scripts/fuzz.sh [SECONDS] [TARGET...]: fuzzes every target (or those named) for so long each
# (60), one after the other, and stops at the first finding. Needs the stable toolchain and
# root, and installs cargo-fuzz where it is missing. See fuzz/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=60
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  seconds=$1
  shift
fi
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked

# Coverage comes from flags that stable compilers have but do not admit to; the address
# sanitizer would need a standard library of its own.
export RUSTC_BOOTSTRAP=1
if [ $# -gt 0 ]; then targets=("$@"); else mapfile -t targets < <(cargo fuzz list); fi

# Targets write small files all the time.
scratch=$(mktemp -d /dev/shm/corten-fuzz-XXXXXX)
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch

# Most targets do without the engine, which takes long to build.
features=(--no-default-features)
for target in "${targets[@]}"; do
  ! sed -n "/^name = \"$target\"/,/^\$/p" fuzz/Cargo.toml | grep -q required-features || features=()
done
for target in "${targets[@]}"; do
  cargo fuzz build --sanitizer none "${features[@]}" "$target"
done
for target in "${targets[@]}"; do
  mkdir -p "fuzz/corpus/$target"
  kept=fuzz/corpora/$target.tar.xz
  [ ! -f "$kept" ] || tar -xJf "$kept" -C fuzz/corpus
  corpora=("fuzz/corpus/$target")
  [ ! -d "fuzz/seeds/$target" ] || corpora+=("fuzz/seeds/$target")
  log=$scratch/log
  if ! cargo fuzz run --sanitizer none "${features[@]}" "$target" "${corpora[@]}" -- \
    -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=4096 \
    -print_final_stats=1 >"$log" 2>&1; then
    tail -n 60 "$log"
    echo "FOUND by $target: its input is in fuzz/artifacts/$target (see fuzz/README.md)"
    exit 1
  fi
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  echo "$target: ${runs:-?} inputs in $seconds s, nothing found"
done

#!/usr/bin/env bash
# Tries Corten in virtual machines: pure cgroup v2, pure v1, systemd as the first process with
# either, and what a shutdown and a power cut leave (boot). Takes about three quarters of an hour on
# two cores, because the machines are emulated.
#
#   test-vm.sh [MODE...]    (default: v2 v1 systemd systemd-v1 boot)
#
# The runtime's test program is run whole on v2; on v1 those of its cases that depend on the
# kind of groups, with systemd those about its driver. VM_TESTS=NAME,NAME... chooses others.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- v2 v1 systemd systemd-v1 boot
cargo build --release --locked -p corten
host=$(rustc -vV | sed -n 's/^host: //p')
corten=${CARGO_TARGET_DIR:-target}/$host/release/corten
test=$(cargo test --locked -p corten-runtime --test runtime --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*\/runtime-[^"]*\)".*/\1/p')
# Words in the names of the cases about groups.
groups=limit,update,cpu_,io_and,unified,freeze,oom_,kill_all,groups,fork_bomb,threaded,hierarchies
groups+=,devices,cgroup,pause,events,memory_hog,failed_create,kill_without,rootless,with_criu
failed=()
for mode in "$@"; do
  echo "== $mode"
  cases=${VM_TESTS:-}
  [ "$mode" != v1 ] || cases=${cases:-$groups}
  # About the engine alone.
  programs=("$test")
  [ "$mode" != boot ] || programs=()
  # A whole test program takes its time in an emulated machine.
  VM_TIMEOUT=${VM_TIMEOUT:-7200} VM_TESTS=$cases scripts/test-cgroup2.sh "$corten" "$mode" "" "${programs[@]}" || failed+=("$mode")
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }

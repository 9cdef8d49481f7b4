#!/usr/bin/env bash
# Prints what engines with other roots than the default one (tests, quickstart, bench) have
# left on this host: mounts, links, nftables tables, cgroups, processes. Prints nothing when
# there is nothing. The default engine's own objects are its user's and are not reported.
set -uo pipefail

grep -E 'corten-[0-9a-f]{8}|/corten-(test|e2e)' /proc/self/mounts | sed 's/^/mount: /'
for link in /sys/class/net/*; do
  name=${link##*/}
  [[ $name =~ ^crt[0-9a-f]{8}([0-9a-f]{4})?$ || $name =~ ^v[0-9a-f]{12}([0-9a-f]{2})?$ ]] && echo "link: $name"
done
if command -v nft >/dev/null 2>&1; then
  nft list tables 2>/dev/null | grep -E 'corten_[0-9a-f]{8}' | sed 's/^/nftables: /'
fi
find /sys/fs/cgroup -maxdepth 3 -type d -name 'corten-*' 2>/dev/null | sed 's/^/cgroup: /'
ls -d /run/corten-network/corten_????????.* 2>/dev/null | sed 's/^/pipe of a listener: /'
ls -d /run/corten-????????/c/* 2>/dev/null | sed 's/^/run directory: /'
for comm in /proc/[0-9]*/cmdline; do
  # It may vanish before it is read; the redirection itself then complains.
  line=$({ tr '\0' ' ' <"$comm"; } 2>/dev/null) || continue
  case "$line" in
    *" supervise "*--root*|*" build-step"*) echo "process: ${comm//[^0-9]/} $line" ;;
  esac
done
exit 0

#!/usr/bin/env bash
# Runs Corten in a small virtual machine, so on other cgroups and another kernel than here:
#
#   test-cgroup2.sh CORTEN [v2|v1|systemd|systemd-v1|boot] [KERNEL] [TEST...]
#
# CORTEN may be - to run only the tests. With systemd, that of this machine is the first
# process there, and the tests of the systemd driver are run. `boot` is systemd on v2 with its
# journal and the units that `make install` installs; the machine is booted three times, once after
# a shutdown and once after its power was cut.
# KERNEL is an unpacked linux-image package (`dpkg -x`); without one, the distribution's cloud
# kernel is fetched and kept in CORTEN_CACHE (default ~/.cache/corten). Each TEST is a static
# test binary to run in there as well (`cargo test -p corten-runtime --test runtime --no-run`).
# VM_TESTS=NAME,NAME... runs only their cases with these words in their names. VM_STEPS=limits
# (or network, volumes, runtimes) carries out only these of the engine's steps.
# Needs root and what `scripts/install-deps.sh vm` installs. `make test-vm` runs all of it.
set -euo pipefail
corten=$1 mode=${2:-v2} kernel=${3:-}
shift $(($# < 3 ? $# : 3))
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d "${TMPDIR:-/tmp}/corten-vm.XXXXXX")
pid=
end() {
  [ -z "$pid" ] || kill -9 $(pgrep -P "$pid") "$pid" 2>/dev/null
  rm -rf "$work"
}
trap end EXIT

# unpacked PACKAGE: where its files are, unpacked, not installed.
unpacked() {
  local kept=${CORTEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/corten}/$1
  if [ ! -d "$kept" ]; then
    (cd "$work" && apt-get download --quiet "$1" >&2 && dpkg -x "$1"_*.deb unpacked) || return 1
    mkdir -p "$(dirname "$kept")" && mv "$work/unpacked" "$kept"
  fi
  echo "$kept"
}

if [ -z "$kernel" ]; then
  package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1 || true)
  [ -n "$package" ] || { echo "test-cgroup2: apt knows no linux-image-cloud-amd64" >&2; exit 1; }
  kernel=$(unpacked "$package")
fi
release=$(ls "$kernel/lib/modules")

# The whole system is one archive: busybox, Corten, the modules for networks and overlays.
root=$work/root
mkdir -p "$root"/{bin,sbin,etc,proc,sys,dev,run,tmp,var/lib/corten,tests,context}
busybox=$(command -v busybox)
cp "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do
  [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
ln -s ../bin/busybox "$root/sbin/modprobe"
[ "$corten" = - ] || strip -o "$root/bin/corten" "$corten"
for test in "$@"; do strip -o "$root/tests/$(basename "$test")" "$test"; done
# Called by this name either is the runtime's command line.
runtime=$(cd "$root" && find bin/corten tests -name corten -o -name 'runtime-*' 2>/dev/null | head -1 || true)
[ -z "$runtime" ] || ln -s "../$runtime" "$root/bin/corten-runtime"

# with_libraries PROGRAM [FROM]: into the machine, with its shared libraries.
with_libraries() {
  local file to
  mkdir -p "$root$(dirname "$1")" && cp -L "${2:-}$1" "$root$1"
  for file in $(ldd "${2:-}$1" | grep -o '/[^ ]*'); do
    to=$root${file#"${2:-}"}
    [ -e "$to" ] || { mkdir -p "$(dirname "$to")" && cp -L "$file" "$to"; }
  done
}
# What the runtime's test program calls, where this machine has it. Busybox's are too small.
[ $# -eq 0 ] || for program in bash ip unshare newuidmap newgidmap; do
  found=$(command -v $program) || continue
  rm -f "$root/bin/$program" && with_libraries "$found" && cp -Lp "$found" "$root/bin/$program"
done
touch "$root/etc/subuid" "$root/etc/subgid"
# The runtime's steps on labels and checkpoints, where the programs can be had.
if apparmor=$(unpacked apparmor); then with_libraries /sbin/apparmor_parser "$apparmor"; fi
if criu=$(command -v criu); then
  with_libraries "$criu"
  # It packs file systems in memory with what busybox has not.
  for program in /bin/tar /bin/gzip; do rm -f "$root$program" && with_libraries $program; done
  [ "$criu" = /sbin/criu ] || ln -s "$criu" "$root/sbin/criu"
  # It stops the traffic of a network namespace while it saves it.
  for program in iptables-restore ip6tables-restore; do
    found=$(command -v $program) || continue
    with_libraries "$(realpath "$found")"
    ln -sf "$(realpath "$found")" "$root/sbin/$program"
    for file in /usr/lib/*/xtables/libxt_{mark,standard}.so; do
      [ ! -e "$file" ] || with_libraries "$file"
    done
  done
fi
# Servers of volumes, with what of their libraries this machine has not.
if nfs=$(unpacked nfs-kernel-server) && rpcbind=$(unpacked rpcbind) && wrap=$(unpacked libwrap0) && nsl=$(unpacked libnsl2); then
  for program in rpc.mountd rpc.nfsd exportfs; do
    with_libraries /usr/sbin/$program "$nfs"
    ln -s /usr/sbin/$program "$root/sbin/$program"
  done
  with_libraries /sbin/rpcbind "$rpcbind"
  cp -P {"$wrap","$nsl"}/usr/lib/*/lib*.so* "$root/lib/x86_64-linux-gnu/"
  cp /etc/netconfig /etc/protocols /etc/services /etc/rpc "$root/etc/" 2>/dev/null || true
  printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
fi
# Not the kernel's server: it refuses what Debian's ksmbd-tools (3.4.7) tell it of a share, since its answers lack a
# length that Linux 6.1.85 began to ask for.
smb=$work/smb libraries=/usr/lib/x86_64-linux-gnu
mkdir "$smb"
for package in samba samba-libs samba-common-bin libtalloc2 libtdb1 libtevent0 libldb2 liblmdb0 libpopt0 libwbclient0; do
  if found=$(unpacked $package); then cp -a "$found/." "$smb/"; else smb=; break; fi
done
if [ -n "$smb" ]; then
  export LD_LIBRARY_PATH=$smb$libraries:$smb$libraries/samba
  for program in /usr/sbin/smbd /usr/bin/smbpasswd; do
    with_libraries $program "$smb"
    ln -s $program "$root/sbin/"
  done
  unset LD_LIBRARY_PATH
fi
# Other runtimes, where this machine has them.
for program in crun runc; do
  ! found=$(command -v $program) || with_libraries "$found"
done
# What speaks SCTP, where this machine has it; no module of it is needed.
[ ! -x /usr/bin/perl ] || with_libraries /usr/bin/perl
printf '%s\n' root:x:0:0:root:/root:/bin/sh nobody:x:65534:65534:nobody:/:/bin/sh >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo vm >"$root/etc/hostname"
for part in net lib crypto fs/overlayfs fs/fuse fs/quota fs/{nfs,nfsd,nfs_common,lockd,smb,netfs,fscache,nls} drivers/net/veth.ko* drivers/net/bridge drivers/net/macvlan.ko* drivers/net/ipvlan drivers/net/dummy.ko* drivers/virtio drivers/block/virtio_blk.ko*; do
  for found in "$kernel/lib/modules/$release/kernel"/$part; do
    [ -e "$found" ] || continue
    target=$root/${found#"$kernel/"}
    mkdir -p "$(dirname "$target")" && cp -r "$found" "$target"
  done
done
cp "$kernel/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$release/"
find "$root/lib/modules" -name '*.ko.xz' -exec xz -d {} +
depmod -b "$root" "$release"

# systemd with the libraries it needs, and one unit that runs the guest script.
options=
case $mode in
systemd* | boot)
  program=/lib/systemd/systemd
  with_libraries $program
  [ ! -e /lib/systemd/systemd-executor ] || with_libraries /lib/systemd/systemd-executor
  rm -f "$root/bin/systemctl"
  with_libraries "$(command -v systemctl)"
  [ -e "$root/bin/systemctl" ] || ln -s "$(command -v systemctl)" "$root/bin/systemctl"
  mkdir -p "$root/etc/systemd/system"
  cat >"$root/etc/systemd/system/corten-test.service" <<'UNIT'
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
Environment=CORTEN_BOOTED=1
ExecStart=/init
UNIT
  options="systemd.unit=corten-test.service systemd.show_status=0"
  [ "$mode" != systemd-v1 ] || options+=" systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
  ;;
esac
if [ "$mode" = boot ]; then
  # As on a real host: what is installed there, enabled, and a journal that is kept.
  with_libraries /lib/systemd/systemd-journald
  with_libraries /lib/systemd/systemd-shutdown
  with_libraries "$(command -v journalctl)"
  [ -e "$root/bin/journalctl" ] || ln -s "$(command -v journalctl)" "$root/bin/journalctl"
  units=$root/lib/systemd/system
  mkdir -p "$units"/{sysinit,sockets}.target.wants "$root/etc/systemd/system/multi-user.target.wants"
  for unit in {sysinit,basic,sockets,timers,paths,slices,multi-user,network-online,network}.target \
    {local-fs,local-fs-pre,swap,shutdown,umount,final,reboot,poweroff}.target \
    systemd-{reboot,poweroff,journald,journal-flush}.service systemd-journald{,-dev-log}.socket; do
    cp -L "/lib/systemd/system/$unit" "$units/"
  done
  ln -s ../systemd-journald.service ../systemd-journal-flush.service "$units/sysinit.target.wants/"
  ln -s ../systemd-journald.socket ../systemd-journald-dev-log.socket "$units/sockets.target.wants/"
  mkdir -p "$root/usr/local/bin" "$root/var/log/journal"
  ln -s /bin/corten "$root/usr/local/bin/corten"
  ln -s ../run "$root/var/run"
  "$here/install-extras.sh" "$corten" "$root/usr/local" "$root/usr/local/lib/systemd/system" /usr/local >/dev/null
  ln -s /usr/local/lib/systemd/system/corten{,-restore}.service /etc/systemd/system/corten-test.service \
    "$root/etc/systemd/system/multi-user.target.wants/"
  cat >"$root/etc/systemd/system/corten-test.service" <<'UNIT'
[Unit]
After=corten.service corten-restore.service
[Service]
Type=oneshot
RemainAfterExit=yes
KillMode=process
TimeoutStartSec=infinity
Environment=CORTEN_BOOTED=1
ExecStart=/init
UNIT
  printf '[Manager]\nDefaultTimeoutStopSec=60s\nDefaultTimeoutStartSec=600s\n' >"$root/etc/systemd/system.conf"
  printf '[Journal]\nStorage=persistent\nRateLimitBurst=0\n' >"$root/etc/systemd/journald.conf"
  echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
  options="systemd.unit=multi-user.target systemd.show_status=0"
fi

# The base image's files, and what is done with them.
base=$work/base
mkdir -p "$base"/{bin,etc,tmp,proc,sys,dev,root}
cp "$busybox" "$base/bin/"
# All of them: in the machine, some have made way for larger ones.
for applet in $("$busybox" --list); do
  [ "$applet" = busybox ] || ln -s busybox "$base/bin/$applet"
done
cp "$root/etc/passwd" "$root/etc/group" "$base/etc/"
tar --owner=0 --group=0 -C "$base" -cf "$root/context/rootfs.tar" .
cp "$here/test-cgroup2-guest.sh" "$root/init"
cp "$here/test-vm-runtime-guest.sh" "$root/runtime.sh"
for part in network volumes limits runtimes boot; do cp "$here/test-vm-$part-guest.sh" "$root/$part.sh"; done
chmod 755 "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc) | gzip -1 >"$work/initrd"
truncate -s 2G "$work/disk"
mkfs.ext4 -q -O quota,project -E quotatype=prjquota "$work/disk"

# Runs the machine until it ends, or says that its power is to be cut. QEMU 7.2 emulates neither
# cmpxchg16b nor the kernel patching itself under several threads well.
machine() {
  local serial=$work/serial
  : >"$serial"
  timeout "${VM_TIMEOUT:-1800}" qemu-system-x86_64 -accel tcg,thread=single -cpu max,cx16=off -m 2048 -smp 2 \
    -display none -monitor none -serial "file:$serial" -no-reboot \
    -nic none -drive "file=$work/disk,format=raw,if=virtio" \
    -kernel "$kernel/boot/vmlinuz-$release" -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1 no_timer_check corten.cgroups=$mode corten.tests=${VM_TESTS:-} corten.steps=${VM_STEPS:-} $options" </dev/null &
  pid=$!
  tail --pid=$pid -n +1 -s 0.2 -f "$serial" | sed -u 's/\r//' | tee -a "$work/log" &
  while kill -0 "$pid" 2>/dev/null; do
    # Nobody is left to kill if it ended just now, or was killed a moment ago.
    if grep -q '^cut the power' "$serial"; then kill -9 $(pgrep -P "$pid") 2>/dev/null || true; fi
    sleep 0.2
  done
  wait || true
  pid=
}
machine
[ "$mode" != boot ] || for boot in second third; do
  ! grep -q '^passed: ' "$work/log" || break
  echo "-- $boot boot"
  machine
done
grep -q '^passed: [0-9]*, failed: 0$' "$work/log"

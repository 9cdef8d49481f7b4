#!/bin/sh
# The init of test-cgroup2.sh's virtual machine: sets up the system, tries Corten, powers off.
export PATH=/bin:/sbin HOME=/
# Nothing can pivot_root(2) away from the initial file system, so leave it.
if [ ! -e /moved ]; then
  mkdir /new
  busybox mount -t tmpfs -o size=1g root /new
  for part in /*; do [ $part = /new ] || cp -a $part /new/; done
  touch /new/moved
  exec switch_root /new /init
fi
[ -e /proc/cmdline ] || mount -t proc proc /proc
mode=$(sed -n 's/.*corten\.cgroups=\([^ ]*\).*/\1/p' /proc/cmdline)
# What outlives a boot.
disk() {
  for module in virtio_pci virtio_blk quota_v2; do modprobe $module 2>/dev/null; done
  mkdir -p /disk
  mount -t ext4 -o prjquota /dev/vda /disk || echo "no disk"
  mkdir -p /disk/corten /disk/tmp /disk/journal
  mount --bind /disk/corten /var/lib/corten
}
if [ -z "$CORTEN_BOOTED" ]; then
  case $mode in systemd*) exec /lib/systemd/systemd ;; esac
  mount -t sysfs sys /sys
  mount -t devtmpfs dev /dev
  if [ $mode = boot ]; then
    disk
    mount --bind /disk/journal /var/log/journal
    exec /lib/systemd/systemd
  fi
  mkdir -p /dev/pts /dev/shm
  mount -t devpts devpts /dev/pts
  mount -t tmpfs run /run
  mount -t tmpfs tmp /tmp
fi
exec >/dev/console 2>&1
case $mode in
v2) mount -t cgroup2 cgroup2 /sys/fs/cgroup ;;
v1)
  mount -t tmpfs cgroup /sys/fs/cgroup
  for controller in cpu,cpuacct cpuset memory pids devices freezer blkio; do
    mkdir "/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller" || echo "no v1 $controller"
  done
  # As systemd makes them; crun goes by them.
  ln -s cpu,cpuacct /sys/fs/cgroup/cpu
  ln -s cpu,cpuacct /sys/fs/cgroup/cpuacct
  ;;
esac
for module in overlay veth bridge nf_tables; do modprobe $module 2>/dev/null; done
[ $mode = boot ] || disk
# As on a real host: file systems that can be mounted with other ids, and shared memory.
mkdir -p /dev/shm
export TMPDIR=/disk/tmp
mount -t tmpfs shm /dev/shm
ip link set lo up
echo "kernel $(uname -r), cgroup $mode"

passed=0 failed=0
# try NAME PATTERN COMMAND...: the output, with the exit code as last line, matches.
try() {
  name=$1 pattern=$2
  shift 2
  out=$("$@" 2>&1; echo "exit $?")
  if printf '%s\n' "$out" | tr '\n' ' ' | grep -Eq "$pattern"; then
    passed=$((passed + 1))
    echo "ok   $name"
  else
    failed=$((failed + 1))
    echo "FAIL $name: wanted /$pattern/, got:"
    printf '%s\n' "$out"
  fi
}
sh_() { sh -c "$1"; }
# until_ COMMAND...: it succeeds within two minutes.
until_() {
  deadline=$(($(cut -d. -f1 /proc/uptime) + 120))
  while [ "$(cut -d. -f1 /proc/uptime)" -lt $deadline ]; do
    "$@" >/dev/null 2>&1 && return 0
    usleep 100000
  done
  echo "never: $*"
  "$@"
  return 1
}

# limit NAME V2-FILE V2-VALUE V1-FILE V1-VALUE: in the group of the container $id.
limit() {
  if [ $mode = v2 ]; then
    try "$1" "^$3 exit 0" cat "/sys/fs/cgroup/corten/$id/$2"
  else
    try "$1" "^$5 exit 0" cat "/sys/fs/cgroup/${4%%/*}/corten/$id/${4##*/}"
  fi
}
# The runtimes that are set besides the built-in one: that by its command line, and those that were to be had.
others=own
for program in crun runc; do
  for directory in /usr/bin /usr/sbin /usr/local/bin /usr/local/sbin; do
    [ ! -x $directory/$program ] || others="$others $program"
  done
done
set_runtimes() {
  {
    echo "$*"
    printf '[runtimes.own]\npath = "/bin/corten"\nargs = ["runtime"]\n'
    for name in ${others#own}; do printf '[runtimes.%s]\npath = "%s"\n' $name $name; done
  } >/var/lib/corten/engine.toml
}

steps=$(sed -n 's/.*corten\.steps=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
engine() {
cat >/context/Dockerfile <<'DOCKERFILE'
FROM scratch
ADD rootfs.tar /
ENV PATH=/bin
RUN echo built >/made && cat /proc/self/cgroup
CMD ["sh"]
DOCKERFILE
try "build" 'exit 0' corten build -q -t base /context
case $steps in
"") ;;
*) for part in $steps; do . /$part.sh; done; return ;;
esac
try "run" '^hello exit 0' corten run --rm base echo hello
try "what RUN made" '^built exit 0' corten run --rm base cat /made
try "no network" 'exit 0' corten run --rm --network none base true
try "exit code" '^exit 3' corten run --rm base sh -c 'exit 3'
try "cgroup namespace" ':/ exit 0' corten run --rm base sh -c 'grep -v name= /proc/self/cgroup | tail -1'
try "cgroup mount is read-only" 'exit 1' corten run --rm base sh -c 'd=$(ls -d /sys/fs/cgroup/pids /sys/fs/cgroup | head -1); mkdir $d/x'

try "run -d -p" 'exit 0' corten run -d --name web -p 8080:80 base sh -c 'mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w'
try "published port" 'page exit 0' sh_ 'for n in 1 2 3 4 5 6 7 8 9; do wget -qO- http://127.0.0.1:8080/index.html && exit; sleep 1; done; exit 1'
try "exec" '^page exit 0' corten exec web cat /w/index.html
try "top" 'httpd' corten top web
try "pause" 'exit 0' corten pause web
try "is paused" '^paused exit 0' corten inspect -f '{{.State.Status}}' web
try "unpause" 'exit 0' corten unpause web
try "exec again" '^page exit 0' corten exec web cat /w/index.html
try "stop" 'exit 0' corten stop -t 1 web
try "rm" 'exit 0' corten rm web

corten run -d --name limits -m 64m --memory-swap 64m --pids-limit 20 --cpus 0.5 --cpuset-cpus 0 --cpu-shares 512 base sleep 600 >/dev/null || failed=$((failed + 1))
id=$(corten inspect -f '{{.Id}}' limits)
limit memory memory.max 67108864 memory/memory.limit_in_bytes 67108864
limit swap memory.swap.max 0 memory/memory.memsw.limit_in_bytes 67108864
limit pids pids.max 20 pids/pids.max 20
limit cpus cpu.max '50000 100000' cpu,cpuacct/cpu.cfs_quota_us 50000
limit cpuset cpuset.cpus 0 cpuset/cpuset.cpus 0
limit shares cpu.weight 59 cpu,cpuacct/cpu.shares 512
try "pids limit bites" 'fork' corten exec limits sh -c 'for n in $(seq 30); do sleep 5 & done; wait'
try "kill" 'exit 0' corten kill limits
try "rm" 'exit 0' corten rm -f limits
try "group is gone" 'exit 1' sh_ "ls -d /sys/fs/cgroup/*/corten/$id /sys/fs/cgroup/corten/$id"

try "oom kill" 'exit 137' corten run --name oom -m 16m --memory-swap 16m base sh -c 'exec dd if=/dev/zero of=/dev/null bs=64M count=4'
try "oom kill is told" '^true 137 exit 0' corten inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' oom
corten rm oom >/dev/null

disk=$(sed 's/:/ /' /sys/block/vda/dev)
# Open: EPERM is the filter, anything else (ENXIO, success) is not.
try "device not allowed" 'not permitted.*exit 1' corten run --rm base sh -c "mknod /d b $disk && head -c 1 /d"
try "nor by --cap-add" 'not permitted.*exit 1' corten run --rm --cap-add MKNOD --cap-add SYS_ADMIN base sh -c "mknod /d b $disk; head -c 1 /d"
try "null works" 'exit 0' corten run --rm base sh -c 'echo x >/dev/null && head -c 1 /dev/urandom >/dev/null'
try "--device" 'exit 0' corten run --rm --device /dev/vda base sh -c 'head -c 1 /dev/vda >/dev/null'
try "--device read-only" 'not permitted.*exit 1' corten run --rm --device /dev/vda:/dev/vda:r base sh -c 'head -c 1 /dev/vda >/dev/null && true >>/dev/vda'
try "privileged" 'exit 0' corten run --rm --privileged base sh -c 'head -c 1 /dev/vda >/dev/null'
try "device cgroup rule" 'exit 0' corten run --rm --device-cgroup-rule "b $(echo $disk | tr ' ' :) rmw" base sh -c "mknod /d b $disk && head -c 1 /d >/dev/null"

mkdir -p /context/many
{ echo 'FROM base'; for n in $(seq 40); do echo "COPY Dockerfile /f$n"; done; echo 'RUN ls /f1 /f40'; } >/context/many/Dockerfile
try "many layers" 'exit 0' corten build -q -t many /context/many
try "run many layers" '^f1 exit 0' corten run --rm many sh -c 'ls /f40 >/dev/null && basename /f1'

. /volumes.sh
. /network.sh
. /runtimes.sh
[ $mode != v2 ] || . /limits.sh

try "restart" 'exit 0' sh_ 'corten run -d --name again base sleep 600 && corten restart -t 0 again && corten exec again true'
try "system check" 'exit 0' corten system check
try "rm -f" 'exit 0' corten rm -f again
try "system check again" 'exit 0' corten system check
try "no group is left" '^0 exit 0' sh_ 'find /sys/fs/cgroup -path "*/corten/*" -type d | wc -l'
}
filter=$(sed -n 's/.*corten\.tests=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
case $mode in
systemd*) filter=${filter:-systemd} ;;
boot) . /boot.sh ;;
*) [ ! -x /bin/corten ] || engine ;;
esac
[ -n "$steps" ] || [ $mode = boot ] || [ ! -e /bin/corten-runtime ] || . /runtime.sh

# An emulated machine is slow.
export CORTEN_TEST_PATIENCE=6
for test in /tests/*; do
  [ -x "$test" ] || continue
  "$test" $filter 2>&1 | tee /tmp/out
  try "$(basename "$test")" 'test result: ok' grep '^test result' /tmp/out
done
echo "passed: $passed, failed: $failed"
poweroff -f

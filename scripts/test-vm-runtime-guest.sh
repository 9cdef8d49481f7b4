# Sourced by test-cgroup2-guest.sh: the runtime's own command line, as engines drive it, with
# every limit that the kernel of the virtual machine can enforce. `corten-runtime` is in $PATH.
# $mode is v2, v1, systemd or systemd-v1; `try`, `sh_`, $passed and $failed are that script's.

case $mode in
systemd*) driver=--systemd-cgroup leaf=system.slice/vm-box.scope path=system.slice:vm:box ;;
*) driver= leaf=vm/box path=/vm/box ;;
esac
runtime="corten-runtime $driver"
v2=yes
[ -e /sys/fs/cgroup/cgroup.controllers ] || v2=
bundle=/tmp/bundle
disk=$(sed 's/:/ /' /sys/block/vda/dev)
major=${disk% *} minor=${disk#* }

# config DEVICES RESOURCES ARGS...: writes the bundle's config.json.
config() {
  devices=$1 resources=$2
  shift 2
  args=
  for arg in "$@"; do args="$args${args:+,}\"$arg\""; done
  cat >$bundle/config.json <<JSON
{"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "hostname": "box",
 "process": {"cwd": "/", "args": [$args], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
  "noNewPrivileges": true $process,
  "capabilities": {"bounding": ["CAP_MKNOD", "CAP_KILL"], "effective": ["CAP_MKNOD", "CAP_KILL"],
   "permitted": ["CAP_MKNOD", "CAP_KILL"]}},
 "mounts": [
  {"destination": "/proc", "type": "proc", "source": "proc"},
  {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
  {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}],
 "linux": {"cgroupsPath": "$path", $linux
  "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}],
  "resources": {"devices": [{"allow": false, "access": "rwm"}$devices]$resources}}}
JSON
}
process= linux=

# A file of the container's group, by any of its names.
in_group() {
  for dir in /sys/fs/cgroup/$leaf /sys/fs/cgroup/*/$leaf; do
    for file in "$@"; do [ ! -e "$dir/$file" ] || { cat "$dir/$file"; return; }; done
  done
  echo "no $*"
  return 1
}
# What a container inherits must not be the pipe `try` reads.
create() { $runtime create --bundle $bundle --pid-file /tmp/box.pid box </dev/null >/dev/null 2>/tmp/err; code=$?; cat /tmp/err; return $code; }
detached() { $runtime exec --detach --pid-file /tmp/exec.pid box "$@" </dev/null >/dev/null 2>/tmp/err; code=$?; cat /tmp/err; return $code; }
groups_left() { find /sys/fs/cgroup -path "*/$leaf" -type d | wc -l; }
update() { echo "$1" | $runtime update --resources - box; }
state() { $runtime state box | tr -d ' \n' | grep -o '"status":"[a-z]*"'; }
in_group_of() { grep -shx "$(cat "$1")" /sys/fs/cgroup/$leaf/cgroup.procs /sys/fs/cgroup/*/$leaf/cgroup.procs | head -1 | grep -c .; }
throttled() { in_group cpu.stat | grep -q 'nr_throttled [1-9]'; }
frozen() { cat /sys/fs/cgroup/$leaf/cgroup.events /sys/fs/cgroup/*/$leaf/freezer.state | grep -Eq 'frozen 1|FROZEN'; }
few() { [ "$(in_group pids.current)" -le 4 ]; }
stopped() { state | grep -q stopped; }
ended() { ! kill -0 $watcher; }
stats() { $runtime events --stats box; }

mkdir -p $bundle/rootfs/bin $bundle/rootfs/proc $bundle/rootfs/dev $bundle/rootfs/tmp $bundle/rootfs/sys/fs/cgroup
cp -a /bin/busybox $bundle/rootfs/bin/
for applet in sh echo cat sleep dd mknod head seq usleep true kill; do ln -s busybox $bundle/rootfs/bin/$applet; done
# A first process that reaps what ends below it, and never forks again: a shell that did could
# meet the very limit that a step tries out, and end, and the steps after that would fail.
wait_for='sleep 1000000 & wait'

config '' '' echo hello
try "runtime: run" '^hello exit 0' $runtime run --bundle $bundle box
config '' '' sh -c 'exit 5'
try "runtime: exit code" '^exit 5' $runtime run --bundle $bundle box
try "runtime: run leaves no group" '^0 exit 0' groups_left

limits=', "memory": {"limit": 33554432, "swap": 33554432}, "pids": {"limit": 8},
 "cpu": {"shares": 512, "quota": 20000, "period": 100000, "cpus": "0"}'
config '' "$limits" sh -c "$wait_for"
try "runtime: create" 'exit 0' create
try "runtime: is created" 'created' state
try "runtime: start" 'exit 0' $runtime start box
try "runtime: is running" 'running' state
try "runtime: in its group" '^1 exit 0' in_group_of /tmp/box.pid
try "runtime: memory limit" '^33554432 exit 0' in_group memory.max memory.limit_in_bytes
try "runtime: no swap" '^(0|33554432) exit 0' in_group memory.swap.max memory.memsw.limit_in_bytes
try "runtime: pids limit" '^8 exit 0' in_group pids.max
try "runtime: cpu quota" '^20000( 100000)? exit 0' in_group cpu.max cpu.cfs_quota_us
try "runtime: cpu weight" '^(59|512) exit 0' in_group cpu.weight cpu.shares
try "runtime: cpuset" '^0 exit 0' in_group cpuset.cpus
try "runtime: list" 'box +[0-9]+ +running' $runtime list
try "runtime: ps" "$(cat /tmp/box.pid)" $runtime ps box

try "runtime: exec" '^inside exit 0' $runtime exec box echo inside
try "runtime: exec --detach" 'exit 0' detached sleep 1000
try "runtime: exec is in the group" '^1 exit 0' in_group_of /tmp/exec.pid
try "runtime: pids.max refuses fork" "can't fork" $runtime exec box sh -c 'for n in $(seq 12); do sleep 2 & done; wait'
try "runtime: what was forked ends" 'exit 0' until_ few
[ -z "$v2" ] || try "runtime: refusals are counted" 'max [1-9][0-9]* exit 0' in_group pids.events
detached sh -c 'while :; do :; done'
try "runtime: cpu.max throttles" 'exit 0' until_ throttled
kill -9 "$(cat /tmp/exec.pid)"

try "runtime: update" 'exit 0' $runtime update --memory 67108864 --memory-swap 67108864 --pids-limit 30 --cpu-quota 90000 box
try "runtime: updated memory" '^67108864 exit 0' in_group memory.max memory.limit_in_bytes
try "runtime: updated pids" '^30 exit 0' in_group pids.max
try "runtime: updated quota" '^90000( 100000)? exit 0' in_group cpu.max cpu.cfs_quota_us
try "runtime: the weight stays" '^(59|512) exit 0' in_group cpu.weight cpu.shares
try "runtime: now it may fork" '^exit 0' $runtime exec box sh -c 'for n in $(seq 12); do true & done; wait'
rate="\"blockIO\": {\"throttleReadBpsDevice\": [{\"major\": $major, \"minor\": $minor, \"rate\": 1048576}]}"
try "runtime: update of block devices" 'exit 0' update "{$rate}"
try "runtime: io.max" "^$major:$minor .*1048576.* exit 0" in_group io.max blkio.throttle.read_bps_device
if [ -e /sys/fs/cgroup/hugetlb ] || grep -q hugetlb /sys/fs/cgroup/cgroup.controllers 2>/dev/null; then
  try "runtime: update of huge pages" 'exit 0' update '{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}'
  try "runtime: hugetlb" '^4194304 exit 0' in_group hugetlb.2MB.max hugetlb.2MB.limit_in_bytes
fi

opens="mknod /tmp/d b $disk 2>/dev/null; head -c 1 /tmp/d >/dev/null"
try "runtime: device denied" 'not permitted exit 1' $runtime exec box sh -c "$opens"
rule="{\"allow\": true, \"type\": \"b\", \"major\": $major, \"minor\": $minor, \"access\": \"r\"}"
try "runtime: update of devices" 'exit 0' update "{\"devices\": [{\"allow\": false, \"access\": \"rwm\"}, $rule]}"
try "runtime: device allowed" '^exit 0' $runtime exec box sh -c "$opens"
try "runtime: but not to be written" 'not permitted.* exit [12]' $runtime exec box sh -c ": >>/tmp/d"

try "runtime: events --stats" '"type":"stats".*"limit":67108864' stats
try "runtime: statistics of processes" '"pids":\{"current":[1-9][0-9]*,"limit":30' stats
try "runtime: pause" 'exit 0' $runtime pause box
try "runtime: is paused" 'paused' state
try "runtime: is frozen" 'exit 0' until_ frozen
try "runtime: no exec while paused" 'paused.* exit [1-9]' $runtime exec box true
try "runtime: resume" 'exit 0' $runtime resume box
try "runtime: runs again" '^again exit 0' $runtime exec box echo again

$runtime events --interval 1s box </dev/null >/tmp/events 2>&1 &
watcher=$!
try "runtime: events are told" 'exit 0' until_ grep -q '"type":"stats"' /tmp/events
try "runtime: memory.max kills" 'exit 137' $runtime exec box sh -c 'exec dd if=/dev/zero of=/dev/null bs=128M count=1'
try "runtime: events tell of it" 'exit 0' until_ grep -q '"type":"oom"' /tmp/events
try "runtime: the container lives" 'running' state

try "runtime: kill" 'exit 0' $runtime kill box KILL
try "runtime: is stopped" 'exit 0' until_ stopped
try "runtime: delete" 'exit 0' $runtime delete box
try "runtime: no group is left" '^0 exit 0' groups_left
try "runtime: events end" 'exit 0' until_ ended

config ", $rule" '' sh -c "$opens"
try "runtime: device of the configuration" '^exit 0' $runtime run --bundle $bundle box
config '' '' sh -c "sh -c '$wait_for' & $wait_for"
create && $runtime start box
try "runtime: kill --all" 'exit 0' $runtime kill --all box KILL
try "runtime: all are gone" 'exit 0' until_ stopped
try "runtime: delete --force" 'exit 0' $runtime delete --force box
create && $runtime start box
try "runtime: delete --force of what runs" 'exit 0' $runtime delete --force box
try "runtime: nothing is left" '^0 exit 0' groups_left

config '' ', "unified": {"memory.high": "41943040", "cgroup.max.descendants": "3"}' sh -c "$wait_for"
if [ -n "$v2" ]; then
  try "runtime: unified map" 'exit 0' create
  try "runtime: memory.high" '^41943040 exit 0' in_group memory.high
  try "runtime: a file of no controller" '^3 exit 0' in_group cgroup.max.descendants
  $runtime delete --force box
else
  try "runtime: unified map" 'needs cgroup v2.* exit [1-9]' create
fi
try "runtime: no group stays behind" '^0 exit 0' groups_left

# AppArmor: a profile that takes one file away.
[ -e /sys/kernel/security/lsm ] || mount -t securityfs securityfs /sys/kernel/security
if [ -x /sbin/apparmor_parser ] && [ -d /sys/kernel/security/apparmor ]; then
  echo 'profile corten-box flags=(attach_disconnected,mediate_deleted) { file, capability, signal, mount, umount, deny /secret rwklx, }' >/tmp/profile
  try "apparmor: the profile is loaded" 'exit 0' /sbin/apparmor_parser --skip-cache --replace /tmp/profile
  echo word >$bundle/rootfs/secret
  process=', "apparmorProfile": "corten-box"'
  config '' '' sh -c 'cat /proc/self/attr/current; cat /secret'
  try "apparmor: label and refusal" 'corten-box \(enforce\).*/secret.*Permission denied exit 1' $runtime run --bundle $bundle box
  config '' '' sh -c "$wait_for"
  create && $runtime start box
  try "apparmor: exec has it too" 'corten-box \(enforce\) exit 0' $runtime exec box cat /proc/self/attr/current
  $runtime delete --force box
  process=', "apparmorProfile": "no-such-profile"'
  config '' '' true
  try "apparmor: a profile that is not there" 'no-such-profile.* exit [1-9]' $runtime run --bundle $bundle box
  try "apparmor: leaves no group" '^0 exit 0' groups_left
  process=
else
  echo "skip apparmor: $(ls /sys/kernel/security /sbin/apparmor_parser 2>&1 | tr '\n' ' ')"
fi

# CRIU, where the machine was given one.
if [ -x /sbin/criu ]; then
  echo "criu check: $(criu check 2>&1 | tail -1)"
  config '' '' sh -c 'while true; do echo >>/tmp/count; usleep 50000; done'
  counted() { [ "$(wc -c <$bundle/rootfs/tmp/count)" -gt "$1" ]; }
  is() { state | grep -q "$1"; }
  # As engines do: the host's files could not be saved as a container's streams.
  piped() { sleep 1000 | "$@" 2>&1 | cat >/tmp/err & }
  piped $runtime create --bundle $bundle box
  try "criu: create" 'exit 0' until_ is created
  try "criu: start" 'exit 0' $runtime start box
  try "criu: it counts" 'exit 0' until_ counted 3
  try "criu: checkpoint" '^exit 0' $runtime checkpoint --image-path /tmp/images box
  grep Error /tmp/images/dump.log | head -5
  before=$(wc -c <$bundle/rootfs/tmp/count)
  try "criu: nothing is left" '^0 exit 0' groups_left
  piped $runtime restore --detach --image-path /tmp/images --bundle $bundle box
  try "criu: restore" 'exit 0' until_ is running
  cat /tmp/err
  [ ! -e /tmp/images/restore.log ] || grep Error /tmp/images/restore.log | head -5
  try "criu: it goes on counting" 'exit 0' until_ counted "$before"
  try "criu: is running" 'running' state
  try "criu: exec" '^restored exit 0' $runtime exec box echo restored
  try "criu: delete" 'exit 0' $runtime delete --force box
  try "criu: no group stays behind" '^0 exit 0' groups_left
fi

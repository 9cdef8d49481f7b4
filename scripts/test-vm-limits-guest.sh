# Sourced by test-cgroup2-guest.sh where there is cgroup v2 alone: what `stats`, `update`, `top` and
# the OOM flag make of it. `try`, `sh_`, `until_` and the image `base` are that script's.

group=/sys/fs/cgroup/corten
# stat TEMPLATE: a sample of `counted`.
stat() { corten stats --no-stream --format "$1" counted; }
killed() { corten inspect -f '{{.State.OOMKilled}} {{.State.Status}}' counted | grep -q 'true running'; }

# A container without limits is counted as well. It writes what only its group can have written.
try "stats: run" 'exit 0' corten run -d --name counted -v written:/w base sh -c 'dd if=/dev/zero of=/w/file bs=1M count=8 conv=fsync 2>/dev/null; touch /w/done; sleep 100000 & wait'
id=$(corten inspect -f '{{.Id}}' counted)
try "stats: it has written" 'exit 0' until_ corten exec counted test -e /w/done
try "stats: controllers" 'memory.*pids exit 0' sh_ "tr ' ' '\n' <$group/$id/cgroup.controllers | sort | tr '\n' ' '"
try "stats: memory of the machine" '^[0-9.]+[KM]iB / 1\.[0-9]*GiB exit 0' stat '{{.MemUsage}}'
try "stats: memory" '^exit 0' sh_ "test $(cat $group/$id/memory.current) -gt 1000000"
try "stats: processes" '^2 exit 0' stat '{{.PIDs}}'
try "stats: written" '^[0-9.]+[kM]?B / 8\.[0-9]+MB exit 0' stat '{{.BlockIO}}'
try "stats: network" '^[0-9.]+k?B / [0-9.]+k?B exit 0' stat '{{.NetIO}}'
corten exec -d counted sh -c 'while :; do :; done'
try "stats: processor" '^[1-9][0-9.]*% exit 0' stat '{{.CPUPerc}}'
try "top" 'sh -c while .*exit 0' corten top counted

try "update: all at once" '^counted exit 0' corten update -m 96m --memory-swap 128m --memory-reservation 32m --pids-limit 30 --cpus 0.25 --cpuset-cpus 1 --cpu-shares 512 counted
in_() { cat "$group/$id/$1"; }
try "update: memory" '^100663296 exit 0' in_ memory.max
try "update: swap" '^33554432 exit 0' in_ memory.swap.max
try "update: reservation" '^33554432 exit 0' in_ memory.low
try "update: pids" '^30 exit 0' in_ pids.max
try "update: cpus" '^25000 100000 exit 0' in_ cpu.max
try "update: cpuset" '^1 exit 0' in_ cpuset.cpus
try "update: shares" '^59 exit 0' in_ cpu.weight
try "update: told" '/ 96MiB exit 0' stat '{{.MemUsage}}'
try "update: throttles" 'exit 0' until_ grep -q 'nr_throttled [1-9]' $group/$id/cpu.stat
try "update: one alone" 'exit 0' corten update --cpus 2 counted
try "update: cpus again" '^200000 100000 exit 0' in_ cpu.max
try "update: the rest stays" '^30 exit 0' in_ pids.max
try "update: without limit" 'exit 0' corten update --pids-limit -1 --memory-swap -1 counted
try "update: no pids limit" '^max exit 0' in_ pids.max
try "update: no swap limit" '^max exit 0' in_ memory.swap.max
try "update: swap below memory" 'emory.* exit 1' corten update --memory 64m --memory-swap 32m counted
try "update: that changed nothing" '^100663296 exit 0' in_ memory.max

# Swap there is none: more than 96 MiB is too much.
try "oom: of an exec" 'exit 137' corten exec counted sh -c 'exec dd if=/dev/zero of=/dev/null bs=200M count=1'
try "oom: the flag while it runs" 'exit 0' until_ killed
# --until 0s leaves out the second that is not over.
try "oom: event" 'exit 0' until_ sh_ 'corten events --since 1h --until 0s --filter event=oom | grep "container oom"'
try "limits: pause" 'exit 0' corten pause counted
try "limits: stats while paused" '^[1-9][0-9]* exit 0' stat '{{.PIDs}}'
try "limits: update while paused" 'exit 0' corten update --pids-limit 40 counted
try "limits: holds" '^40 exit 0' in_ pids.max
try "limits: unpause" 'exit 0' corten unpause counted
try "limits: after a restart" 'exit 0' corten restart -t 0 counted
try "limits: hold again" '^40 exit 0' in_ pids.max
try "limits: memory again" '^100663296 exit 0' in_ memory.max
try "limits: end" 'exit 0' corten rm -f counted
try "limits: no group" 'exit 1' sh_ "ls -d $group/$id"

try "io: limits of a device" 'exit 0' corten run -d --name slow --device-write-bps /dev/vda:1mb --device-read-iops /dev/vda:50 -v written:/w base sleep 100000
id=$(corten inspect -f '{{.Id}}' slow)
try "io: io.max" '^254:0 rbps=max wbps=1048576 riops=50 wiops=max exit 0' in_ io.max
try "io: unknown controllers are no reason" 'exit 0' corten run --rm --memory-swappiness 10 base true
try "io: end" 'exit 0' corten rm -f slow
corten volume rm written >/dev/null

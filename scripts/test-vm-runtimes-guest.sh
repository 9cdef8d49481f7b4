# Sourced by test-cgroup2-guest.sh: other runtimes that the engine is told of, on control groups of one version alone, as
# crun wants them. `try`, `sh_`, `until_`, `limit`, $others, `set_runtimes` and the image `base` are that script's.

state() { corten inspect -f '{{.State.Status}}' web; }
is() { state | grep -qx "$1"; }
in_it() { corten exec web "$@"; }
parent() { sed -n 's/^PPid:\t//p' "/proc/$1/status"; }
fetched() { wget -qO- http://127.0.0.1:8080/index.html; }
counted() { corten inspect -f '{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}' often | grep -qx "$1"; }
healthy() { corten inspect -f '{{.State.Health.Status}}' web | grep -qx healthy; }
no_process() { [ ! -e "/proc/$1" ]; }
groups_of() { find /sys/fs/cgroup -path "*/corten/*" -type d | wc -l; }

with() {
  r=$1
  run="corten run --rm --runtime $r"
  try "$r: run" '^hello exit 0' $run base echo hello
  try "$r: exit code" '^exit 3' $run base sh -c 'exit 3'
  try "$r: no such program" 'nothing-there.* exit 127' $run base nothing-there
  try "$r: who it is" '^65534 65534 box exit 0' sh_ "$run -u 65534 -h box base sh -c 'id -u; id -g; hostname' | tr '\n' ' '"
  try "$r: read-only, with a tmpfs" 'ead-only file system.* kept exit 0' $run --read-only --tmpfs /tmp base sh -c 'echo x >/x; echo kept >/tmp/f && cat /tmp/f'
  try "$r: --init" '(init|corten) .* exit 0' $run --init base ps
  try "$r: a volume" '^kept exit 0' sh_ "$run -v of-$r:/d base sh -c 'echo kept >/d/f' && $run -v of-$r:/d:ro base cat /d/f"
  try "$r: no network" 'find device .* exit 1' $run --network none base ip addr show eth0
  try "$r: privileged" '^exit 0' $run --privileged base sh -c 'head -c 1 /dev/vda >/dev/null'
  try "$r: device not allowed" 'not permitted.* exit 1' $run base sh -c "mknod /d b $disk && head -c 1 /d"
  try "$r: a device" '^exit 0' $run --device /dev/vda base sh -c 'head -c 1 /dev/vda >/dev/null'
  try "$r: groups are its own" ':/ exit 0' $run base sh -c 'grep -v name= /proc/self/cgroup | tail -1'

  try "$r: run -d" 'exit 0' corten run -d --name web --runtime $r -m 64m --memory-swap 64m --pids-limit 20 --cpus 0.5 --cpuset-cpus 0 --cpu-shares 512 -p 8080:80 --health-cmd 'test -e /w' --health-interval 2s base sh -c 'echo out; echo err >&2; mkdir /w; echo page >/w/index.html; trap "exit 3" TERM; trap "exit 4" USR1; httpd -p 80 -h /w; while :; do usleep 200000; done'
  id=$(corten inspect -f '{{.Id}}' web)
  try "$r: inspect" "^$r running exit 0" corten inspect -f '{{.HostConfig.Runtime}} {{.State.Status}}' web
  limit "$r: memory" memory.max 67108864 memory/memory.limit_in_bytes 67108864
  limit "$r: swap" memory.swap.max 0 memory/memory.memsw.limit_in_bytes 67108864
  limit "$r: pids" pids.max 20 pids/pids.max 20
  limit "$r: cpus" cpu.max '50000 100000' cpu,cpuacct/cpu.cfs_quota_us 50000
  limit "$r: cpuset" cpuset.cpus 0 cpuset/cpuset.cpus 0
  limit "$r: shares" cpu.weight '(20|59)' cpu,cpuacct/cpu.shares 512
  try "$r: published port" 'exit 0' until_ fetched
  try "$r: page" '^page exit 0' fetched
  try "$r: health" 'exit 0' until_ healthy
  try "$r: logs" 'out.*exit 0' corten logs web
  try "$r: logs of stderr" '^err exit 0' sh_ 'corten logs web 2>&1 >/dev/null'
  try "$r: exec" '^page exit 0' in_it cat /w/index.html
  try "$r: exec as another" '^65534 b 5|^65534 b exit 5' sh_ 'corten exec -u 65534 -e A=b web sh -c "id -u; echo \$A; exit 5"'
  try "$r: exec of nothing" 'exit 127' in_it no-such-program
  try "$r: exec reads" '^from outside exit 0' sh_ 'echo from outside | corten exec -i web cat'
  try "$r: exec -d" 'exit 0' corten exec -d web sleep 1000
  try "$r: top" 'exit 0' until_ sh_ 'corten top web | grep "sleep 1000"'
  try "$r: stats" '/ 64MiB [1-9] exit 0' corten stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' web
  try "$r: cp" '^page exit 0' sh_ 'corten cp web:/w/index.html - | tar -xO'
  try "$r: diff" 'A /w/index.html.* exit 0' corten diff web
  try "$r: pids limit bites" 'fork' in_it sh -c 'for n in $(seq 30); do sleep 2 & done; wait'
  try "$r: what was forked ends" 'exit 0' until_ in_it true
  try "$r: oom of an exec" 'exit 137' in_it sh -c 'exec dd if=/dev/zero of=/dev/null bs=100M count=1'
  try "$r: it lives" '^running exit 0' state
  try "$r: update" '^web exit 0' corten update -m 80m --memory-swap 80m --pids-limit 40 --cpus 1 web
  limit "$r: updated memory" memory.max 83886080 memory/memory.limit_in_bytes 83886080
  limit "$r: updated pids" pids.max 40 pids/pids.max 40
  limit "$r: updated cpus" cpu.max '100000 100000' cpu,cpuacct/cpu.cfs_quota_us 100000
  try "$r: pause" 'exit 0' corten pause web
  try "$r: is paused" '^paused exit 0' state
  try "$r: no exec while paused" 'is paused.* exit 1' in_it true
  try "$r: unpause" 'exit 0' corten unpause web
  try "$r: exec again" '^again exit 0' in_it echo again
  try "$r: a signal" 'exit 0' corten kill -s USR1 web
  try "$r: ends by it" 'exit 0' until_ is exited
  try "$r: as it likes" '^4 exit 0' corten inspect -f '{{.State.ExitCode}}' web
  try "$r: start" 'exit 0' corten start web
  try "$r: the limits are kept" '^83886080 exit 0' sh_ "cat /sys/fs/cgroup/corten/$id/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/corten/$id/memory.limit_in_bytes"
  try "$r: listens to TERM" 'exit 0' until_ in_it test -e /w/index.html
  try "$r: stop" 'exit 0' corten stop -t 60 web
  try "$r: ends as it likes, too" '^exited 3 exit 0' corten inspect -f '{{.State.Status}} {{.State.ExitCode}}' web
  try "$r: restart" 'exit 0' corten restart -t 0 web
  try "$r: kill" 'exit 0' corten kill web
  try "$r: wait" '^137 exit 0' corten wait web
  try "$r: no group" 'exit 1' sh_ "ls -d /sys/fs/cgroup/*/corten/$id /sys/fs/cgroup/corten/$id"

  # A supervisor that is killed takes its container along, and the next command sees it.
  try "$r: once more" 'exit 0' corten start web
  pid=$(corten inspect -f '{{.State.Pid}}' web)
  supervisor=$(parent "$pid")
  try "$r: its parent is the supervisor" 'supervise exit 0' sh_ "tr '\0' '\n' </proc/$supervisor/cmdline | grep -x supervise"
  kill -9 "$supervisor"
  try "$r: is said to have ended" 'exit 0' until_ is exited
  try "$r: its processes are gone" 'exit 0' until_ no_process "$pid"
  try "$r: nothing is wrong" 'exit 0' corten system check
  try "$r: starts anew" 'exit 0' corten start web
  try "$r: is entered" '^anew exit 0' in_it echo anew
  try "$r: rm -f" 'exit 0' corten rm -f web

  try "$r: restart policy" 'exit 0' corten run -d --name often --runtime $r --restart on-failure:2 base sh -c 'echo x >>/count; exit 4'
  try "$r: is kept" 'exit 0' until_ counted '2 exited 4'
  try "$r: three lines" '^x x x exit 0' sh_ 'corten cp often:/count - | tar -xO'
  try "$r: rm" 'exit 0' corten rm often
  try "$r: always" 'exit 0' corten run -d --name often --runtime $r --restart always base sleep 1000
  pid=$(corten inspect -f '{{.State.Pid}}' often)
  kill -9 "$pid"
  try "$r: is started again" 'exit 0' until_ counted '1 running 0'
  try "$r: rm of what goes on" 'exit 0' corten rm -f often
  try "$r: volume rm" 'exit 0' corten volume rm of-$r
  try "$r: system check" 'Nothing is wrong.* exit 0' corten system check
  try "$r: no group is left" '^0 exit 0' groups_of
}

disk=$(sed 's/:/ /' /sys/block/vda/dev)
set_runtimes
# The built-in one by its command line is tried where the tests are run.
foreign=${others#own}
for other in $foreign; do with $other; done
for other in $foreign; do
  set_runtimes "default-runtime = \"$other\""
  try "$other by default" "^$other exit 0" sh_ 'corten run -d --name web base sleep 1000 >/dev/null; corten inspect -f "{{.HostConfig.Runtime}}" web'
  try "$other by default: info" "^$other exit 0" corten info -f '{{.DefaultRuntime}}'
  try "$other by default: exec" '^exit 0' in_it true
  rm /var/lib/corten/engine.toml
  try "$other, no more set: goes on" '^exit 0' in_it true
  case $other in
  # As clients send it for Docker's default.
  runc) try "runc, no more set: is the built-in one" 'exit 0' corten restart -t 0 web ;;
  *) try "$other, no more set: no start" "unknown or invalid runtime name: $other.* exit 1" corten restart -t 0 web ;;
  esac
  try "$other, no more set: rm" 'exit 0' corten rm -f web
done

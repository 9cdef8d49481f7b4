# Sourced by test-cgroup2-guest.sh in a machine with systemd and its journal: what the log driver
# journald writes, and what becomes of containers across a shutdown and a power cut. The units of `make
# install` are enabled, so what is to run does by the time this is sourced. `try`, `sh_` and `until_` are that
# script's; /disk is kept.

stage=$(cat /disk/stage 2>/dev/null || echo 1)
[ ! -e /disk/counts ] || read -r passed failed </disk/counts
# The next boot goes on with this stage.
next() {
  echo "$passed $failed" | dd of=/disk/counts conv=fsync 2>/dev/null
  echo "$1" | dd of=/disk/stage conv=fsync 2>/dev/null
}
is() { corten inspect -f '{{.State.Status}}' "$1"; }
code() { corten inspect -f '{{.State.ExitCode}}' "$1"; }
lives() { corten exec "$1" true; }
journal() { journalctl -q --no-pager -o cat "$@"; }
fetch() { until_ wget -qO /dev/null http://127.0.0.1:8080/index.html; }
# back NAME: it is said to run, and does.
back() {
  try "$1: runs" '^running exit 0' is "$1"
  try "$1: lives" 'exit 0' lives "$1"
}
healthy() { try "system check" 'Nothing is wrong.* exit 0' corten system check; }

case $stage in
1)
  cat >/context/Dockerfile <<'DOCKERFILE'
FROM scratch
ADD rootfs.tar /
ENV PATH=/bin
DOCKERFILE
  try "build" 'exit 0' corten build -q -t base /context

  try "journald: run" 'exit 0' corten run -d --name noisy --restart always --log-driver journald --log-opt tag=the-tag --log-opt labels=colour --label colour=blue base sh -c 'echo from stdout; echo from stderr >&2; sleep 100000 & wait'
  id=$(corten inspect -f '{{.Id}}' noisy)
  logged() { journal CONTAINER_NAME=noisy | grep -qx "$1"; }
  try "journald: stdout" 'exit 0' until_ logged 'from stdout'
  try "journald: stderr" '^from stderr exit 0' journal CONTAINER_NAME=noisy PRIORITY=3
  try "journald: by id" '^from stdout from stderr exit 0' journal "CONTAINER_ID_FULL=$id"
  try "journald: by tag" '^from stdout from stderr exit 0' journal -t the-tag
  try "journald: fields" '"CONTAINER_TAG":"the-tag".*exit 0' sh_ 'journalctl -q --no-pager -o json CONTAINER_NAME=noisy COLOUR=blue IMAGE_NAME=base | head -1'
  try "journald: logs" '^from stdout from stderr exit 0' corten logs noisy
  try "journald: restarted" 'exit 0' systemctl restart systemd-journald
  try "journald: writes on" 'exit 0' corten exec noisy sh -c 'echo later >/proc/1/fd/1'
  try "journald: to the new one" 'exit 0' until_ logged later
  try "journald: not kept here" 'exit 0' corten run -d --name unkept --log-driver journald --log-opt cache-disabled=true base echo only there
  only() { journal CONTAINER_NAME=unkept | grep -qx 'only there'; }
  try "journald: is only there" 'exit 0' until_ only
  try "journald: logs has nothing to read" 'does not support reading.* exit 1' corten logs unkept

  try "network" 'exit 0' corten network create lan
  try "always" 'exit 0' corten run -d --name always --restart always base sleep 100000
  try "web" 'exit 0' corten run -d --name web --restart always -p 8080:80 base sh -c 'mkdir -p /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w'
  try "unless" 'exit 0' corten run -d --name unless --restart unless-stopped --network lan base sh -c 'trap "exit 0" TERM; sleep 100000 & wait'
  try "failing" 'exit 0' corten run -d --name failing --restart on-failure base sleep 100000
  try "plain" 'exit 0' corten run -d --name plain base sh -c 'trap "exit 7" TERM; sleep 100000 & wait'
  try "passing" 'exit 0' corten run -d --rm --name passing base sleep 100000
  try "hand" 'exit 0' corten run -d --name hand --restart unless-stopped base sleep 100000
  try "hand: stopped" 'exit 0' corten stop -t 0 hand
  try "twice" 'exit 0' corten run -d --name twice --restart always base sleep 100000
  try "twice: stopped" 'exit 0' corten stop -t 0 twice
  try "web answers" 'exit 0' fetch
  healthy
  next 2
  # Not to be waited for: this is a unit, too.
  systemctl --no-block reboot
  sleep 1000
  ;;
2)
  echo "after a shutdown"
  back always
  back web
  back unless
  back failing
  back noisy
  # As Docker has it: `always` means after a boot, whoever stopped it.
  back twice
  try "plain: was asked to end" '^exited exit 0' is plain
  try "plain: said so" '^7 exit 0' code plain
  try "hand: stays stopped" '^exited exit 0' is hand
  try "passing: is gone" 'o such .*exit 1' is passing
  try "web: answers" 'exit 0' fetch
  try "unless: on its network" '^lan exit 0' corten inspect -f '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}' unless
  try "journald: of both boots" '^from stdout from stderr later from stdout from stderr exit 0' journal CONTAINER_NAME=noisy
  try "journald: logs of both boots" '^from stdout from stderr later from stdout from stderr exit 0' corten logs noisy
  try "serve" '^noisy exit 0' corten -H unix:///var/run/docker.sock ps --filter name=noisy --format '{{.Names}}'
  healthy
  try "hand: started" 'exit 0' corten start hand
  try "failing: paused" 'exit 0' corten pause failing
  next 3
  # What is told to be done is done, and nothing else has been written to the disk since.
  try "plain: started" 'exit 0' corten start plain
  try "last" 'exit 0' corten run -d --name last --restart unless-stopped -v data:/data base sh -c 'echo x >>/data/starts; sleep 100000 & wait'
  try "passing" 'exit 0' corten run -d --rm --name passing base sleep 100000
  try "unless: stopped" 'exit 0' corten stop -t 0 unless
  [ $failed -eq 0 ] || echo "$failed failed before the cut"
  echo "cut the power"
  sleep 1000
  ;;
3)
  echo "after a power cut"
  back always
  back web
  back hand
  back failing
  back noisy
  back twice
  back last
  try "plain: did not end by itself" '^exited 137 exit 0' corten inspect -f '{{.State.Status}} {{.State.ExitCode}}' plain
  try "unless: stays stopped" '^exited exit 0' is unless
  try "passing: is gone" 'o such .*exit 1' is passing
  try "web: answers" 'exit 0' fetch
  try "ps tells those that run" '^always failing hand last noisy twice web exit 0' sh_ "corten ps --format '{{.Names}}' | sort | tr '\n' ' '"
  healthy
  try "unless: starts" 'exit 0' corten start unless
  try "end" 'exit 0' corten rm -f always web hand failing noisy twice last plain unless unkept
  try "network rm" 'exit 0' corten network rm lan
  healthy
  try "no group is left" '^0 exit 0' sh_ 'find /sys/fs/cgroup/corten -mindepth 1 -type d | wc -l'
  ;;
esac

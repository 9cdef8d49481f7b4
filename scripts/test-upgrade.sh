#!/usr/bin/env bash
# Tries what becomes of containers, networks and volumes of an older Corten when a newer one takes over:
# what runs goes on running under its old supervisor, is changed by the new command line, and is
# started anew by it.
#
#   test-upgrade.sh OLDER NEWER
#
# Needs root, busybox and curl. Everything is in a network namespace and a root of its own.
set -euo pipefail
if [ -z "${UPGRADE_INSIDE:-}" ]; then
  UPGRADE_INSIDE=1 exec unshare -n "$0" "$(realpath "$1")" "$(realpath "$2")"
fi
older=$1 newer=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/corten-upgrade.XXXXXX")
export CORTEN_ROOT=$work/root
failed=0 count=0
end() {
  # There may be mounts in it.
  "$newer" system reset --force >/dev/null 2>&1 || { echo "the root is not reset: $CORTEN_ROOT"; return; }
  rm -rf --one-file-system "$work"
}
trap end EXIT
ip link set lo up

# try WHAT PATTERN COMMAND...: what it prints, and its exit code at the end, match.
try() {
  local what=$1 pattern=$2 said
  shift 2
  said=$("$@" 2>&1; echo "exit $?")
  count=$((count + 1))
  if tr '\n' ' ' <<<"$said" | grep -Eq "$pattern"; then
    echo "ok   $what"
  else
    failed=$((failed + 1))
    printf 'FAIL %s: wanted /%s/, got:\n%s\n' "$what" "$pattern" "$said"
  fi
}
# Until it is so, for ten seconds.
until_() {
  for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
  "$@"
}
fetch() { until_ curl -fsS -m 5 -o "$work/page" "http://$1/f" && cat "$work/page"; }
closed() { ! curl -fsS -m 2 "http://$1/f"; }
inside() { "$newer" exec "$1" sh -c "$2"; }
supervisors() { pgrep -f "supervise --root $CORTEN_ROOT" | sort; }

mkdir -p "$work/files"/{bin,tmp}
cp "$(command -v busybox)" "$work/files/bin/busybox"
for applet in sh sleep httpd wget cat echo ping ip nslookup ls; do ln -s busybox "$work/files/bin/$applet"; done
tar -C "$work/files" -cf "$work/base.tar" .

old() { "$older" "$@"; }
new() { "$newer" "$@"; }
try "older: image" 'exit 0' old import "$work/base.tar" base
try "older: networks" 'exit 0' old network create --subnet 10.201.1.0/24 front
try "older: another" 'exit 0' old network create --subnet 10.201.2.0/24 --ipv6 --subnet fd00:201::/64 back
try "older: volume" 'exit 0' old volume create data
web=(run -d --name web --network front --restart always -p 18080:80 -v data:/d base sh -c
  'echo kept >>/d/f; exec httpd -f -p 80 -h /d')
try "older: web" 'exit 0' old "${web[@]}"
try "older: other" 'exit 0' old run -d --name other --network front base sleep 100000
try "older: plain" 'exit 0' old run -d --name plain -p 18090:80 -v data:/d base httpd -f -p 80 -h /d
try "older: published" '^kept exit 0' fetch 127.0.0.1:18080
before=$(supervisors)

try "takes over" 'web.*exit 0' new ps
try "as it was" '^kept exit 0' fetch 127.0.0.1:18080
try "on the default network, too" '^kept exit 0' fetch 127.0.0.1:18090
try "exec" '^kept exit 0' inside web 'cat /d/f'
try "a name" '^kept exit 0' inside other 'wget -q -O - http://web/f'
try "run beside them" 'exit 0' new run -d --name late --network front -p 18082:80 -v data:/d base httpd -f -p 80 -h /d
try "published, too" '^kept exit 0' fetch 127.0.0.1:18082
try "they find it" '^kept exit 0' inside other 'wget -q -O - http://late/f'
try "it finds them" '^kept exit 0' inside late 'wget -q -O - http://web/f'
try "connect" 'exit 0' new network connect back web
try "is connected" 'inet 10.201.2.*inet6 fd00:201.*exit 0' inside web 'ip addr show eth1'
try "connect the new one" 'exit 0' new network connect back late
try "they find each other there" "^kept exit 0" inside late "wget -q -O - http://web/f"
try "disconnect" 'exit 0' new network disconnect back web
try "is disconnected" 'exit [1-9]' inside web 'ip addr show eth1'
try "port add" 'exit 0' new port add web 18081:80
try "is added" '^kept exit 0' fetch 127.0.0.1:18081
try "port rm" 'exit 0' new port rm web 18081:80
try "is closed" 'exit 0' closed 127.0.0.1:18081
try "the other is not" '^kept exit 0' fetch 127.0.0.1:18080
try "the old supervisors are there still" "^exit 0" comm -23 <(echo "$before") <(supervisors)
nft flush ruleset
try "back after a flush" '^kept exit 0' fetch 127.0.0.1:18082
try "back after a flush: of an old supervisor" '^kept exit 0' fetch 127.0.0.1:18080
try "back after a flush: on the default network" '^kept exit 0' fetch 127.0.0.1:18090
try "nothing is wrong" 'exit 0' new system check
try "volume in use" 'volume is in use.*exit 1' new volume rm data
try "network in use" 'has active endpoints.*exit 1' new network rm front
try "restart" 'exit 0' new restart -t 1 web
try "its data is there" '^kept kept exit 0' fetch 127.0.0.1:18080
try "connect again" 'exit 0' new network connect back web
try "stop" 'exit 0' new stop -t 1 web plain
try "start" 'exit 0' new start web plain
try "is connected still" 'inet 10.201.2.*exit 0' inside web 'ip addr show eth1'
try "published still" '^kept kept kept exit 0' fetch 127.0.0.1:18090
# A supervisor of the older program that dies.
kill -9 $(comm -12 <(echo "$before") <(supervisors)) 2>/dev/null || true
try "ps after a kill" 'other *exit 0' new ps -a --filter status=exited --format '{{.Names}}'
try "start again" 'exit 0' new start other
try "a name again" '^kept kept kept exit 0' inside other 'wget -q -O - http://web/f'
try "nothing is wrong then" 'exit 0' new system check
try "rm" 'exit 0' new rm -f web other plain late
try "network rm" 'exit 0' new network rm front back
try "data outlives them" '^kept kept kept exit 0' new run --rm -v data:/d base cat /d/f
try "volume rm" 'exit 0' new volume rm data
try "reset" 'exit 0' new system reset --force
try "no link is left" '^0 exit 1' grep -cE '^ *crt' /proc/net/dev
echo "$count tried, $failed failed"
[ "$failed" = 0 ]

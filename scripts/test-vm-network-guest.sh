# Sourced by test-cgroup2-guest.sh: networks on parent links, and published SCTP ports, with a kernel
# that has them. `try`, `sh_` and the image `base` are that script's.

# Links of the host as they are now, without their numbers.
links() { ls /sys/class/net | tr '\n' ' '; }
gone() { [ ! -e "/sys/class/net/$1" ]; }
# From `other`, once `web` serves: that takes its time in an emulated machine. By its address, and not
# with wget: a static busybox looks up names, and what a service's port is, by libraries that are not there.
fetch() {
  address=$(corten inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' web)
  ask="printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $address 80 | tail -n 1 | grep page"
  corten exec other sh -c "for n in 1 2 3 4 5 6 7 8 9; do $ask && exit; sleep 1; done; exit 1"
}
serve='mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w'

for module in macvlan ipvlan 8021q dummy sctp nf_conntrack nf_nat nft_chain_nat nft_nat nft_masq; do modprobe $module 2>/dev/null; done
# The LAN: the other end of a pair, as another machine would be.
# Busybox cannot say what the other end is called.
ip link add lan0 type veth
peer=$(grep -lx "$(cat /sys/class/net/lan0/iflink)" /sys/class/net/*/ifindex | cut -d/ -f5)
ip link set "$peer" name lan1
ip link set lan0 up
ip link set lan1 up
before=$(links)

# on WHAT DRIVER OPTIONS...: two containers on such a network reach each other.
on() {
  what=$1 driver=$2
  shift 2
  try "$what: create" 'exit 0' corten network create -d "$driver" "$@" apart
  try "$what: run" 'exit 0' corten run -d --name web --network apart base sh -c "$serve"
  try "$what: run another" 'exit 0' corten run -d --name other base sleep 1000
  try "$what: connect" 'exit 0' corten network connect apart other
  try "$what: is reached" '^page exit 0' fetch
}
off() {
  try "$what: disconnect" 'exit 0' corten network disconnect apart other
  try "$what: it is off" 'exit [12]' corten exec other ip link show eth1
  try "$what: in use" 'has active endpoints.* exit 1' corten network rm apart
  try "$what: end" 'exit 0' corten rm -f web other
  try "$what: rm" 'exit 0' corten network rm apart
  try "$what: nothing is left" "^$before *exit 0" links
}

on "macvlan" macvlan --subnet 10.77.0.0/24 --gateway 10.77.0.1 -o parent=lan0
try "macvlan: route" 'default via 10.77.0.1 dev eth0 .*exit 0' corten exec web ip route
off
on "VLAN" macvlan --subnet 10.77.0.0/24 -o parent=lan0.10
try "VLAN: is there" '^exit 0' sh_ 'test -e /proc/net/vlan/lan0.10'
try "VLAN: a second network" 'exit 0' corten network create -d macvlan -o parent=lan0.10 second
try "VLAN: rm of the second" 'exit 0' corten network rm second
try "VLAN: stays" '^exit 0' sh_ 'test -e /sys/class/net/lan0.10'
off
on "dummy" macvlan --internal
try "dummy: no way out" '^0 exit' corten exec web sh -c 'routes=$(ip route) && echo "$routes" | grep -c default'
off
on "ipvlan l2" ipvlan --subnet 10.77.0.0/24 --gateway 10.77.0.1 -o parent=lan0
try "ipvlan: no macvlan beside it" 'network apart is already using parent interface lan0.* exit 1' corten network create -d macvlan -o parent=lan0 beside
off
for way in l3 l3s; do
  on "ipvlan $way" ipvlan --subnet 10.77.0.0/24 -o parent=lan0 -o ipvlan_mode=$way
  try "ipvlan $way: the parent routes" 'default dev eth0 .*exit 0' corten exec web ip route show default
  off
done
try "ipvlan, dual stack" 'exit 0' corten network create -d ipvlan --ipv6 -o parent=lan0.20 apart
try "ipvlan, dual stack: run" 'inet6 fd.* exit 0' corten run --rm --network apart base ip addr show eth0
try "ipvlan, dual stack: rm" 'exit 0' corten network rm apart
try "ipvlan, dual stack: nothing is left" "^$before *exit 0" links
try "reset takes parents along" 'exit 0' sh_ 'corten --root /tmp/other network create -d macvlan -o parent=lan0.30 x && corten --root /tmp/other system reset --force'
try "and leaves none" "^$before *exit 0" links

try "sctp: published" 'exit 0' corten run -d --name web -p 9000:9000/sctp base sleep 1000
try "sctp: port" '9000/sctp -> 0.0.0.0:9000.* exit 0' corten port web
try "sctp: taken" 'already allocated.* exit 125' corten run --rm -p 9000:9000/sctp base true
if [ -x /usr/bin/perl ]; then
  # The LAN's other machine.
  unshare -n sleep 1000 &
  lan=$!
  sleep 2
  ip link set lan1 netns $lan
  ip addr add 10.78.0.1/24 dev lan0
  nsenter -t $lan -n sh -c 'ip link set lo up; ip addr add 10.78.0.2/24 dev lan1; ip link set lan1 up'
  nsenter -t "$(corten inspect -f '{{.State.Pid}}' web)" -n /usr/bin/perl -e '
    socket(S, 2, 1, 132) && bind(S, pack("S n a4 x8", 2, 9000, "\0" x 4)) && listen(S, 5) or die $!;
    while ($peer = accept(C, S)) { syswrite(C, "for " . join(".", unpack("x4 C4", $peer))); close(C) }' </dev/null >/dev/null 2>&1 &
  server=$!
  ask_='socket(S, 2, 1, 132) or die $!; alarm 20;
    connect(S, pack("S n C4 x8", 2, 9000, split(/\./, $ARGV[0]))) or die $!;
    sysread(S, $_, 100); print "$_\n"'
  for n in 1 2 3 4 5 6 7 8 9; do nsenter -t $lan -n /usr/bin/perl -e "$ask_" 10.78.0.1 >/dev/null 2>&1 && break; sleep 1; done
  try "sctp: from the LAN, with its address" '^for 10.78.0.2 exit 0' nsenter -t $lan -n /usr/bin/perl -e "$ask_" 10.78.0.1
  try "sctp: unpublished" 'exit 0' corten port rm web 9000:9000/sctp
  try "sctp: is closed" 'exit [1-9]' nsenter -t $lan -n /usr/bin/perl -e "$ask_" 10.78.0.1
  kill $server $lan
fi
try "sctp: end" 'exit 0' corten rm -f web
# Unless it went with the other machine.
ip link del lan0 2>/dev/null

# Sourced by test-cgroup2-guest.sh: volumes with a size, containers with one, and volumes that are served, by NFS and by
# CIFS, by this machine itself, where its programs were to be had. `try`, `sh_`, `until_`, `set_runtimes` and the image
# `base` are that script's.

# The machine's root has project quotas.
mkdir -p /context/seed
printf 'FROM base\nRUN mkdir /d && dd if=/dev/urandom of=/d/f bs=1M count=3\n' >/context/seed/Dockerfile
try "volume of a size" 'exit 0' sh_ 'corten volume create -o size=4M fits && corten volume create -o size=1M small'
try "image with 3 MB" 'exit 0' corten build -q -t seed /context/seed
try "fits in 4 MB" ' 3145728 .*exit 0' corten run --rm --network none -v fits:/d seed ls -l /d
try "6 MB do not" 'quota exceeded.*exit 1' corten run --rm --network none -v fits:/d base sh -c 'dd if=/dev/zero of=/d/g bs=1M count=3'
try "3 do not in 1 MB" 'into volume small: Disk quota exceeded.*exit 125' corten run --rm --network none -v small:/d seed true
try "nor as an archive" 'to volume small: .*Disk quota exceeded.*exit 1' sh_ 'corten volume export fits | corten volume import small'
try "nor as a copy" 'to volume small: .*Disk quota exceeded.*exit 1' corten volume copy fits small
try "nothing is left of it" '^0 exit 0' sh_ 'ls -A /var/lib/corten/volumes/small/_data | wc -l'
try "volume rm" 'exit 0' corten volume rm fits small

# So has what a container writes, whoever makes it.
set_runtimes
full='(No space left|quota exceeded)'
for runtime in corten $others; do
  try "a layer of 4 MB, $runtime" 'exit 0' corten run -d --name bounded --runtime $runtime --network none --storage-opt size=4M base sleep 600
  try "3 MB fit" 'exit 0' corten exec bounded dd if=/dev/zero of=/f bs=1M count=3
  try "6 MB do not" "$full.*exit 1" corten exec bounded dd if=/dev/zero of=/g bs=1M count=3
  try "names change within" '^built exit 0' corten exec bounded sh -c 'rm /g; mkdir /e && mv /f /e/f && mv /made /e/made && cat /e/made'
  try "nor do 6 MB when started again" "$full.*exit 1" sh_ 'corten restart -t 0 bounded >/dev/null && corten exec bounded dd if=/dev/zero of=/g bs=1M count=3'
  try "others are not bounded" 'exit 0' corten run --rm --runtime $runtime --network none base dd if=/dev/zero of=/g bs=1M count=6
  try "rm of the bounded" 'exit 0' corten rm -f bounded
done
try "an unknown option" 'Unknown option nothing.*exit 125' corten run --rm --storage-opt nothing=1 base true
rm /var/lib/corten/engine.toml

# served WHAT VOLUME: a file of such a volume is where its server has it, nothing stays mounted.
served() {
  what=$1 volume=$2 directory=$3
  try "$what: write" 'exit 0' corten run --rm --network none -v $volume:/d base sh -c 'echo kept >/d/f'
  try "$what: the server has it" '^kept exit 0' cat $directory/f
  try "$what: two at once" 'exit 0' corten run -d --name holds --network none -v $volume:/d base sleep 1000
  try "$what: read" '^kept exit 0' corten run --rm --network none -v $volume:/d:ro base cat /d/f
  try "$what: is mounted while it is used" '^1 exit 0' sh_ "grep -c /volumes/$volume/_data /proc/mounts"
  try "$what: rm in use" 'volume is in use.*exit 1' corten volume rm $volume
  try "$what: end" 'exit 0' corten rm -f holds
  try "$what: is mounted no more" '^0 exit 1' sh_ "grep -c /volumes/$volume/_data /proc/mounts"
  try "$what: export" '^kept exit 0' sh_ "corten volume export $volume | tar -xO ./f"
  try "$what: copy" '^kept exit 0' sh_ "corten volume copy $volume copy >/dev/null && corten run --rm --network none -v copy:/d base cat /d/f"
  try "$what: rm" 'exit 0' corten volume rm $volume copy
  try "$what: its data stays" '^kept exit 0' cat $directory/f
  rm $directory/f
}

if [ -x /sbin/rpcbind ]; then
  for module in nfsd nfsv3 nfsv4; do modprobe $module; done
  mkdir -p /disk/export /var/lib/nfs/v4recovery /run/rpcbind
  touch /var/lib/nfs/etab /var/lib/nfs/rmtab
  echo '/disk/export *(rw,no_root_squash,insecure,no_subtree_check,fsid=1)' >/etc/exports
  mount -t nfsd nfsd /proc/fs/nfsd
  # There is nobody whose state could be reclaimed after the start.
  for time in nfsv4leasetime nfsv4gracetime; do echo 10 >/proc/fs/nfsd/$time; done
  echo '_rpc:x:101:65534::/run/rpcbind:/bin/false' >>/etc/passwd
  rpcbind
  sleep 1
  exportfs -ra
  rpc.mountd
  rpc.nfsd 2
  try "nfs: create" 'exit 0' corten volume create --driver local --opt type=nfs --opt o=addr=127.0.0.1,rw --opt device=:/disk/export nfs3
  served "nfs" nfs3 /disk/export
  try "nfs 4: create" 'exit 0' corten volume create --driver local --opt type=nfs --opt o=addr=localhost,rw,vers=4.2 --opt device=:/disk/export nfs4
  served "nfs 4" nfs4 /disk/export
  try "nfs: not served" 'failed to mount local volume: mount :/nothing.*exit 125' corten run --rm --network none --mount type=volume,src=wrong,dst=/d,volume-driver=local,volume-opt=type=nfs,volume-opt=device=:/nothing,volume-opt=o=addr=127.0.0.1 base true
  try "nfs: rm" 'exit 0' corten volume rm wrong
  rpc.nfsd 0
fi
if [ -x /sbin/smbd ]; then
  for module in cifs nls_utf8; do modprobe $module; done
  mkdir -p /disk/share /etc/samba /var/lib/samba/private /var/cache/samba /var/log/samba /run/samba /var/run
  [ -e /var/run/samba ] || ln -s /run/samba /var/run/
  # A named user only, and only this machine.
  printf '[global]\ninterfaces = lo\nbind interfaces only = yes\ndisable netbios = yes\n[share]\npath = /disk/share\nread only = no\n' >/etc/samba/smb.conf
  printf 'secret\nsecret\n' | smbpasswd -s -a root
  smbd -D
  cifs() { corten volume create --driver local --opt type=cifs --opt "o=username=root,password=$1,vers=3.0" --opt device=//$2/share $3; }
  answers() { nc -w 5 127.0.0.1 445 </dev/null; }
  try "cifs: the server answers" 'exit 0' until_ answers
  try "cifs: create, with a wrong password" 'exit 0' cifs wrong 127.0.0.1 wrong
  try "cifs: that is refused, and not told" 'data: username=root,password=\*{8},vers=3.0: Permission denied.*exit 125' corten run --rm --network none -v wrong:/d base true
  try "cifs: rm" 'exit 0' corten volume rm wrong
  try "cifs: create" 'exit 0' cifs secret 127.0.0.1 smb
  served "cifs" smb /disk/share
  try "cifs: create, by name" 'exit 0' cifs secret localhost named
  served "cifs by name" named /disk/share
  try "cifs: no such share" 'failed to mount local volume: mount //127.0.0.1/nothing.*password=\*{8}.*No such file or directory.*exit 125' corten run --rm --network none --mount 'type=volume,src=wrong,dst=/d,volume-driver=local,volume-opt=type=cifs,volume-opt=device=//127.0.0.1/nothing,"volume-opt=o=username=root,password=secret"' base true
  try "cifs: rm of that" 'exit 0' corten volume rm wrong
fi

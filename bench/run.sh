#!/usr/bin/env bash
# Runs every bench beside whichever peers are installed (docker with an engine, podman, crun, runc,
# buildah, docker-registry), in the same run on the same machine. Each writes its section of
# bench/report.md; BARE is the yardstick of bench/runtime.sh.
#
#   bench/run.sh CORTEN BARE
set -euo pipefail
cd "$(dirname "$0")"
corten=$(realpath "$1")
bare=$(realpath "$2")
./runtime.sh "$corten" "$bare"
./containers.sh "$corten"
./dns.sh "$corten"
./pull.sh "$corten"
./registry.sh "$corten"
./build.sh "$corten"
./network.sh "$corten"

#!/usr/bin/env bash
# Installs (or with --remove, removes) completions, man pages and the systemd units.
#   install-extras.sh CORTEN DEST-PREFIX DEST-SYSTEMD-DIR PREFIX
set -euo pipefail
if [ "$1" = --remove ]; then
  prefix=$2 units=$3
  if [ -L "$prefix/bin/docker" ] && [ "$(readlink "$prefix/bin/docker")" = corten ]; then
    rm -f "$prefix/bin/docker"
  fi
  rm -f "$prefix/bin/corten" "$prefix/bin/corten-runtime" \
    "$prefix/share/bash-completion/completions/corten" "$prefix/share/zsh/site-functions/_corten" \
    "$prefix/share/fish/vendor_completions.d/corten.fish" "$prefix"/share/man/man1/corten*.1 \
    "$units/corten.service" "$units/corten-restore.service"
  exit 0
fi
corten=$1 prefix=$2 units=$3 run_prefix=$4
mkdir -p "$prefix/share/bash-completion/completions" "$prefix/share/zsh/site-functions" \
  "$prefix/share/fish/vendor_completions.d" "$prefix/share/man/man1" "$units"
"$corten" completion bash >"$prefix/share/bash-completion/completions/corten"
"$corten" completion zsh >"$prefix/share/zsh/site-functions/_corten"
"$corten" completion fish >"$prefix/share/fish/vendor_completions.d/corten.fish"
"$corten" man "$prefix/share/man/man1"
cat >"$units/corten.service" <<UNIT
[Unit]
Description=Corten, Docker Engine API
Documentation=man:corten(1)
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=$run_prefix/bin/corten serve
Restart=on-failure
# Containers belong to their own supervisors and outlive this service.
KillMode=process
LimitNOFILE=1048576
TasksMax=infinity
Delegate=yes

[Install]
WantedBy=multi-user.target
UNIT
cat >"$units/corten-restore.service" <<UNIT
[Unit]
Description=Start the Corten containers whose restart policy asks for it
After=network-online.target local-fs.target
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$run_prefix/bin/corten system restore
# Containers belong to their own supervisors and outlive this unit.
KillMode=process
Delegate=yes

[Install]
WantedBy=multi-user.target
UNIT
echo "Installed. Start the API with 'systemctl enable --now corten', and restarts at boot with"
echo "'systemctl enable corten-restore'."

#!/bin/sh
# Models and snapshots in /var/lib/promforest stay: they belong to the user.
set -e
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload

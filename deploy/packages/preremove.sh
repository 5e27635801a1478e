#!/bin/sh
# dpkg passes the word "remove" where nothing is left after it, and rpm the number of versions that are left.
set -e
case $1 in
    remove | 0) ;;
    *) exit 0 ;;
esac
command -v systemctl >/dev/null || exit 0
systemctl --quiet disable promforest.socket promforest.service || true # a masked unit is no reason to stay
[ -d /run/systemd/system ] || exit 0
systemctl stop promforest.socket promforest.service

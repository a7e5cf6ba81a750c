#!/usr/bin/env bash
# Builds the image without a daemon: build.sh [TAG] [buildah's options, such as --build-arg EXTRAS=postgresql,redis].
# Takes `docker` where there is one, else buildah. PIP_CONF names a pip.conf for the build alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
tag=${1:-stoa}
shift || true
secret=()
[ -z "${PIP_CONF:-}" ] || secret=(--secret "id=pip.conf,src=$PIP_CONF")
if command -v docker > /dev/null; then
  exec docker build --tag "$tag" "${secret[@]}" "$@" .
fi
# --format docker keeps HEALTHCHECK, which OCI's format has no place for.
exec buildah build --format docker --isolation "${BUILDAH_ISOLATION:-chroot}" --tag "$tag" "${secret[@]}" "$@" .

#!/bin/sh
# A base image from Debian's packages, for where no registry of images can be reached. As root; wants
# debootstrap and docker, or DOCKER=podman.
#
#     deploy/desktop/base_image.sh dart-gui-base:bookworm [SUITE [MIRROR]]
#     docker build -f deploy/desktop/Dockerfile --build-arg BASE=dart-gui-base:bookworm .
set -eu
name=${1:?"give the name of the image, such as dart-gui-base:bookworm"}
suite=${2:-bookworm}
mirror=${3:-http://deb.debian.org/debian}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
trap 'exit 1' HUP INT TERM
debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror"
# As Debian's own images have it: a layer is thrown away whole, so no file of it has to be synced.
echo force-unsafe-io > "$root/etc/dpkg/dpkg.cfg.d/docker-apt-speedup"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" --exclude=./dev/* --exclude=./proc/* --exclude=./sys/* -c . |
    ${DOCKER:-docker} import --change 'CMD ["/bin/bash"]' - "$name"

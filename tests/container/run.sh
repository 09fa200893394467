#!/usr/bin/env bash
# Build the images of this repository for the CPU, and run the tests in them. Debian 12, as root.
# CONTAINER_DIR says where it keeps what it makes (/var/lib/mergetime-container, unless set). Run again, it makes what is
# not there. Nothing of it stays running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

[[ $(id -u) == 0 ]] || { echo "error: making a base image takes root" >&2; exit 1; }
. tests/private_folder.sh
dir=$(realpath -m --no-symlinks "${CONTAINER_DIR:-/var/lib/mergetime-container}")
private_folder "$dir"
packages=(mmdebstrap patchelf squashfs-tools uidmap)

step() { # what is made, then the command that makes it, whose parts are joined by &&. What failed on the way is made anew.
    local made=$1
    shift
    [[ -e $made.done ]] && return
    rm -rf "$made"
    echo "making $made"
    "$@" >"$made.log" 2>&1 || { tail -20 "$made.log" >&2; exit 1; }
    touch "$made.done"
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -y -o DPkg::Lock::Timeout=300 update \
        && apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${packages[@]}"
}

# A place for wheels is part of the base, since a build binds nothing to where nothing is. Devices are no part of it.
make_base() { # folder
    mmdebstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$1" \
        && find "$1/dev" -mindepth 1 -delete \
        && mkdir "$1/wheels"
}

# Packages come from where this machine's pip finds them, its build of torch included; the image needs no network.
get_wheels() { # folder
    pip download --quiet --dest "$1" setuptools wheel \
        && pip download --quiet --dest "$1" -r envs/torch.txt \
        && pip download --quiet --dest "$1" --no-deps --require-hashes -r envs/requirements.lock
}

dpkg -s "${packages[@]}" >/dev/null 2>&1 || step "$dir/packages" install_packages
if ! command -v apptainer >/dev/null; then
    step "$dir/apptainer" tests/container/get_apptainer.sh "$dir/apptainer"
    export PATH=$dir/apptainer/usr/bin:$PATH
fi
step "$dir/base" make_base "$dir/base"
# What was made from another lock or definition goes.
export MERGETIME_CONTAINERS=$dir/images
mkdir -p "$MERGETIME_CONTAINERS"
lock=$(cat envs/torch.txt envs/requirements.lock | sha256sum | cut -c -12)
digest=$(cat envs/torch.txt envs/requirements.lock envs/gpu.lock containers/mergetime.def | sha256sum | cut -c -12)
wheels=$dir/wheels-$lock
find "$dir" -maxdepth 1 -name 'wheels-*' ! -name "wheels-$lock*" -exec rm -rf {} +
find "$MERGETIME_CONTAINERS" -name '*.sif*' ! -name "*-$digest.sif" -delete
step "$wheels" get_wheels "$wheels"

# In a mount namespace of its own, which ends with it: root gets the range of users that --fakeroot takes.
echo "root:100000:65536" >"$dir/subid"
build() { # names of images
    SUBID=$dir/subid unshare --mount bash -euc '
        mount --bind "$SUBID" /etc/subuid
        mount --bind "$SUBID" /etc/subgid
        exec containers/build.sh "$@"
    ' -- "$@" -- --fakeroot --bind "$wheels:/wheels:ro" --build-arg BOOTSTRAP=localimage --build-arg "BASE=$dir/base" \
        --build-arg "PIP=--no-cache-dir --no-index --find-links /wheels" >"$dir/$1.log" 2>&1 || { tail -20 "$dir/$1.log" >&2; return 1; }
}
echo "building images"
builds=()
build train evaluate &
builds+=($!)
build publish &
builds+=($!)
for job in "${builds[@]}"; do
    wait "$job"
done

exec pytest tests/container

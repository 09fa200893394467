#!/usr/bin/env bash
# Build the images that rules name: containers/build.sh [train] [evaluate] [publish] [vllm] [-- OPTIONS OF apptainer build]
# Without names: train, evaluate and publish. MERGETIME_CONTAINERS is where they go, and where rules look for them
# (containers, unless set). An image's name carries a digest of all that it is made from; one that is there stays.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

names=()
while (($#)) && [[ $1 != -- ]]; do
    names+=("$1")
    shift
done
shift $(($# > 0))
((${#names[@]})) || names=(train evaluate publish)
command -v apptainer >/dev/null || { echo "error: apptainer is not on the PATH" >&2; exit 1; }
folder=${MERGETIME_CONTAINERS:-containers}
[[ $folder != *://* ]] || { echo "error: MERGETIME_CONTAINERS=$folder is no folder to build in" >&2; exit 1; }
mkdir -p "$folder"

for name in "${names[@]}"; do
    definition=containers/mergetime.def
    arguments=()
    same=
    case $name in
        train) same=evaluate ;;
        evaluate) same=train ;;
        publish) arguments=(--build-arg NAME=publish --build-arg TORCH=no --build-arg "IMPORTS=pandas pyarrow matplotlib plotly scipy pydantic") ;;
        vllm) definition=containers/vllm.def ;;
        *) echo "error: no image is called $name; there are train, evaluate, publish, vllm" >&2; exit 1 ;;
    esac
    # scripts/mergetime/workflow/containers.py computes the same digest.
    digest=$(cat envs/torch.txt envs/requirements.lock envs/gpu.lock "$definition" | sha256sum | cut -c -12)
    image=$folder/$name-$digest.sif
    if [[ -e $image ]]; then
        echo "$image is there"
        continue
    fi
    # These two are made from the same: one file under both names.
    if [[ $same && -e $folder/$same-$digest.sif ]]; then
        ln "$folder/$same-$digest.sif" "$image"
        echo "$image is that of $same"
        continue
    fi
    arguments+=(
        --build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)"
        --build-arg "REVISION=$(git rev-parse --verify --quiet HEAD 2>/dev/null || echo unknown)"
        --build-arg "LOCK=$(sha256sum envs/requirements.lock | cut -d ' ' -f 1)"
    )
    trap 'rm -f "$image.part"' EXIT
    # gzip, the default, takes five times as long.
    apptainer build --force --mksquashfs-args "-comp zstd -Xcompression-level 3" "${arguments[@]}" "$@" \
        "$image.part" "$definition"
    mv "$image.part" "$image"
    echo "$image is built"
done

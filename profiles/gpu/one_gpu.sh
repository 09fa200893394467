#!/usr/bin/env bash
# The shell of a job that wants a GPU on a machine with several: bash, seeing the first GPU that no other job holds.
# A lock lasts as long as a process of the job lives, however it ends.
set -euo pipefail

gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}
[[ $gpus ]] || { echo "error: no GPU to be seen" >&2; exit 1; }
locks=/tmp/mergetime-gpus-$(id -u)
mkdir -p "$locks"
# A job that still waits when Snakemake is killed must not start.
while kill -0 "$PPID" 2>/dev/null; do
    for gpu in ${gpus//,/ }; do
        exec {lock}>"$locks/$gpu"
        if flock --nonblock "$lock"; then
            CUDA_VISIBLE_DEVICES=$gpu exec "$(dirname "$0")/../../rules/site/shell/bash" "$@"
        fi
        exec {lock}>&-
    done
    sleep 1
done
exit 1

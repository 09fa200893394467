#!/usr/bin/env bash
# The shell of a job that wants a GPU on a machine with several: bash, seeing the first GPU that no other job holds.
# A lock lasts as long as a process of the job lives, however it ends.
set -euo pipefail

gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}
[[ $gpus ]] || { echo "error: no GPU to be seen" >&2; exit 1; }
# A container may know the variable and not have the folder.
shared=${XDG_RUNTIME_DIR:-}
[[ -d $shared && -w $shared ]] || shared=/tmp
# In a folder that somebody else may write to, links and locks could be waiting.
locks=$shared/mergetime-gpus-$(id -u)
mkdir -m 700 "$locks" 2>/dev/null || true
if [[ -L $locks || ! -d $locks || ! -O $locks ]] || ! chmod 700 "$locks"; then
    echo "error: $locks is not a folder of yours alone, and GPUs are shared out by locks in it; remove it" >&2
    exit 1
fi
# A job that still waits when Snakemake is killed must not start.
while kill -0 "$PPID" 2>/dev/null; do
    for gpu in ${gpus//,/ }; do
        exec {lock}>>"$locks/$gpu"
        if flock --nonblock "$lock"; then
            CUDA_VISIBLE_DEVICES=$gpu exec "$(dirname "$0")/../../rules/site/shell/bash" "$@"
        fi
        exec {lock}>&-
    done
    sleep 1
done
exit 1

#!/usr/bin/env bash
# Cancel the jobs of the cluster that start.sh started, stop its daemons, and remove its state. Packages stay.
set -euo pipefail

dir=${CLUSTER_DIR:-/var/lib/mergetime-cluster}
[[ -d $dir ]] || exit 0

stop() { # pid file, name of the daemon
    local pid
    [[ -s $1 ]] || return 0
    pid=$(cat "$1")
    if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$2" ]]; then
        kill -TERM "$pid"
        for _ in {1..150}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        ! kill -0 "$pid" 2>/dev/null || kill -KILL "$pid"
    fi
    rm -f "$1"
}

if [[ -s $dir/run/slurmctld.pid ]]; then
    timeout 20 scancel --user "$(id -un)" || true
    for _ in {1..100}; do
        [[ $(timeout 20 squeue --noheader 2>/dev/null) ]] || break
        sleep 0.2
    done
fi
for file in "$dir"/run/slurmd-*.pid; do
    stop "$file" slurmd
done
stop "$dir/run/slurmctld.pid" slurmctld
stop "$dir/munge/munged.pid" munged
# Its control groups, which are empty by now.
for group in /sys/fs/cgroup/*/slurm_cgroup1; do
    [[ ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} +
done
for file in slurm.conf gres.conf cgroup.conf; do
    [[ $(readlink "/etc/slurm/$file") != "$dir/etc/$file" ]] || rm "/etc/slurm/$file"
done
rm -rf "$dir"

#!/usr/bin/env bash
# Start a SLURM cluster on this machine: a node with pretend GPUs, one without, and, where this machine has control groups
# of version 1 to write to, one that limits memory by them. Debian or Ubuntu, as root.
# Run again, it starts only what does not run. CLUSTER_DIR says where it keeps its state
# (/var/lib/mergetime-cluster, unless set); stop.sh stops it.
set -euo pipefail

[[ $(id -u) == 0 ]] || { echo "error: installing and starting SLURM takes root" >&2; exit 1; }
dir=${CLUSTER_DIR:-/var/lib/mergetime-cluster}
. "$(dirname "${BASH_SOURCE[0]}")/../private_folder.sh"
private_folder "$dir"
host=$(hostname -s)
nodes=(gpu1 cpu1)
# A file that only the root of control groups of version 1 has, and that SLURM looks for.
[[ ! -w /sys/fs/cgroup/memory/release_agent ]] || nodes+=(cgroup1)
gpus=4
socket=$dir/run/munge/munge.socket.2
mkdir -p "$dir"/{etc/cgroup1,log,run/munge,spool/ctld,dev,munge}
chmod 755 "$dir" "$dir/run" "$dir/run/munge"
chmod 700 "$dir/munge"

runs() { # pid file
    [[ -s $1 ]] && kill -0 "$(cat "$1")" 2>/dev/null
}

wait_until() { # seconds, then a command
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < until)) || { echo "error: this stayed false: $*" >&2; return 1; }
        sleep 0.2
    done
}

# Packages. Their own services are not started: this cluster has a configuration of its own.
missing=()
for package in munge slurmctld slurmd slurm-client; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if ((${#missing[@]})); then
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    {
        apt-get -q -y -o DPkg::Lock::Timeout=300 update
        apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}"
    } >"$dir/log/apt.log" 2>&1 || { tail -20 "$dir/log/apt.log" >&2; exit 1; }
fi

# munge: a daemon, a key and a socket of this cluster's own.
if [[ ! -s $dir/munge/munge.key ]]; then
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/munge.key")
fi
if ! runs "$dir/munge/munged.pid"; then
    rm -f "$socket" "$socket.lock"
    munged --force --key-file="$dir/munge/munge.key" --socket="$socket" --pid-file="$dir/munge/munged.pid" \
        --log-file="$dir/munge/munged.log" --seed-file="$dir/munge/munged.seed"
fi
munge -S "$socket" -n | unmunge -S "$socket" >/dev/null

# Few CPUs a node, so that jobs wait as they do elsewhere. Timers are short (cred_expire is
# also how long a job waits before it starts again), and jobs start at once. Memory is enforced by polling, since there may be no
# control groups to write to.
cat >"$dir/etc/slurm.conf" <<EOC
ClusterName=mergetime
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket,cred_expire=15
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
EnforcePartLimits=ALL
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
StateSaveLocation=$dir/spool/ctld
SlurmdSpoolDir=$dir/spool/%n
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
SlurmctldParameters=enable_configless,preempt_send_user_signal
SlurmdParameters=config_overrides
DebugFlags=NO_CONF_HASH
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=5,bf_interval=5,defer_batch
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
InactiveLimit=0
KillWait=5
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=20
Waittime=0
MessageTimeout=30
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
JobAcctGatherParams=OverMemoryKill
NodeName=gpu1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=4 RealMemory=64000 Gres=gpu:h100:$gpus State=UNKNOWN
NodeName=cpu1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17101 CPUs=8 RealMemory=128000 State=UNKNOWN
PartitionName=cpu Nodes=cpu1 Default=YES MaxTime=2-00:00:00 DefaultTime=30 DefMemPerCPU=500 State=UP
PartitionName=gpu Nodes=gpu1 MaxTime=2-00:00:00 DefaultTime=30 DefMemPerCPU=1000 PriorityTier=1 State=UP
PartitionName=urgent Nodes=gpu1 MaxTime=2-00:00:00 DefaultTime=30 DefMemPerCPU=1000 PriorityTier=2 PreemptMode=off State=UP
EOC
if [[ ${nodes[*]} == *cgroup1* ]]; then
    cat >>"$dir/etc/slurm.conf" <<EOC
NodeName=cgroup1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17201 CPUs=1 RealMemory=64000 State=UNKNOWN
PartitionName=cgroup Nodes=cgroup1 MaxTime=2-00:00:00 DefaultTime=30 DefMemPerCPU=500 State=UP
EOC
fi
# A GPU is a character device that nobody else uses, so that SLURM assigns it and sets CUDA_VISIBLE_DEVICES.
cat >"$dir/etc/gres.conf" <<EOC
AutoDetect=off
NodeName=gpu1 Name=gpu Type=h100 File=$dir/dev/gpu[0-$((gpus - 1))]
EOC
echo "CgroupAutomount=no" >"$dir/etc/cgroup.conf"
# The configuration that cgroup1 alone has.
sed "s|task/none|task/cgroup|; /OverMemoryKill/d" "$dir/etc/slurm.conf" >"$dir/etc/cgroup1/slurm.conf"
cp "$dir/etc/gres.conf" "$dir/etc/cgroup1"
printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no ConstrainRAMSpace=yes >"$dir/etc/cgroup1/cgroup.conf"
for ((gpu = 0; gpu < gpus; gpu++)); do
    [[ -e $dir/dev/gpu$gpu ]] || mknod "$dir/dev/gpu$gpu" c 1 3
done

# SLURM's commands find this cluster at the usual place: a variable that names another does not reach every one of them.
mkdir -p /etc/slurm
for file in slurm.conf gres.conf cgroup.conf; do
    if [[ -e /etc/slurm/$file && ! /etc/slurm/$file -ef $dir/etc/$file ]]; then
        echo "error: /etc/slurm/$file belongs to another cluster" >&2
        exit 1
    fi
    ln -sfn "$dir/etc/$file" "/etc/slurm/$file"
done

runs "$dir/run/slurmctld.pid" || slurmctld
controller_answers() { scontrol ping 2>/dev/null | grep -q "is UP"; }
wait_until 30 controller_answers
for node in "${nodes[@]}"; do
    mkdir -p "$dir/spool/$node"
    config=$dir/etc/$node/slurm.conf
    [[ -e $config ]] || config=$dir/etc/slurm.conf
    runs "$dir/run/slurmd-$node.pid" || slurmd -N "$node" -f "$config"
done

nodes_serve() {
    local node state
    for node in "${nodes[@]}"; do
        state=$(sinfo -h -n "$node" -o %T | head -1)
        case $state in
            idle | mixed | allocated) ;;
            *down* | *drain* | *fail*)
                scontrol update nodename="$node" state=resume 2>/dev/null || true
                return 1
                ;;
            *) return 1 ;;
        esac
    done
}
wait_until 60 nodes_serve
sinfo -o "%10P %.10l %.6D %.8T %N %G"

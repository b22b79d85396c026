#!/usr/bin/env bash
# A real Slurm cluster on one Linux machine for trying and testing segdist: munge, slurmctld, slurmdbd with its
# database, and two or more nodes with fake GPUs. No systemd, no cgroups; everything is in one folder.
#
#   slurm/mini_cluster.sh start  [DIR] [--nodes N] [--cpus C] [--gpus G]   start the cluster, or its missing parts
#   slurm/mini_cluster.sh stop   [DIR]         cancel all jobs and stop all daemons; keeps the folder
#   slurm/mini_cluster.sh status [DIR]         show what is running; exit code 0 if everything is
#   slurm/mini_cluster.sh crash  [DIR] NODE    simulate a power loss: everything on the node dies immediately
#   slurm/mini_cluster.sh boot   [DIR] NODE    boot a crashed node again
#
# DIR defaults to $SEGDIST_CLUSTER or /tmp/segdist-cluster. `start` prints the one variable that Slurm's commands need:
#
#   eval "$(slurm/mini_cluster.sh start)" && sinfo
#
# Needs root and these packages of Debian or Ubuntu:
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge slurmdbd \
#       mariadb-server-core mariadb-client-core iproute2 procps
#
# A node is a slurmd in its own namespaces: it has its own host name, process tree and /etc/hosts, and shares network
# and files with the machine. It can claim more CPUs and memory than the machine has.
# Partitions: jobs in `urgent` preempt those in `main` (signal, 20 s of grace, requeue).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

# Settings of another cluster, or of an enclosing job, must not leak in.
for variable in $(compgen -e | grep -E '^(SLURM|SBATCH|SRUN|SALLOC|SACCT|SQUEUE|SINFO|MYSQL)_' || true); do
    unset "$variable"
done

fail() {
    echo "mini_cluster: $*" >&2
    exit 1
}

usage() {
    sed -n '2,/^set -euo/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
    exit 2
}

# daemons
# A daemon is identified by process id and start time, so that a recycled id is never mistaken for it.

start_time() { # of process $1; empty if it is gone or a zombie
    local fields
    # The command name is in parentheses and can contain spaces; the other fields can't.
    fields=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) || return 0
    [[ ${fields:0:1} == [ZX] ]] || cut -d' ' -f20 <<<"$fields"
}

runs() {
    local id started
    read -r id started 2>/dev/null <"$DIR/run/$1.process" || return 1
    [[ -n $started && $(start_time "$id") == "$started" ]]
}

launch() { # launch NAME COMMAND...
    local name=$1 id
    shift
    # Close the lock (9), which a daemon would otherwise hold forever.
    setsid "$@" </dev/null >>"$DIR/log/$name.out" 2>&1 9>&- &
    id=$!
    disown
    echo "$id $(start_time "$id")" >"$DIR/run/$name.process"
}

halt() { # halt NAME: terminate, wait up to 10 s, kill
    local name=$1 id
    if runs "$name"; then
        read -r id _ <"$DIR/run/$name.process"
        kill -TERM "$id" 2>/dev/null || true
        for _ in $(seq 200); do
            runs "$name" || break
            sleep 0.05
        done
        if runs "$name"; then kill -KILL "$id" 2>/dev/null || true; fi
    fi
    rm -f "$DIR/run/$name.process"
}

wait_for() { # wait_for SECONDS WHAT COMMAND...
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then
            tail -n 12 "$DIR"/log/* >&2 || true
            fail "$what did not start in time; the logs are in $DIR/log"
        fi
        sleep 0.05
    done
}

listens() { [[ -n $(ss --no-header --listening --tcp --numeric "sport = :$1") ]]; }

# configuration

pick_ports() { # PORT: controller, PORT+1: accounting, PORT+1+i: node i. Below 20000, where training's ports start.
    local candidate offset
    for candidate in $(seq 15000 50 19900 | shuf); do
        for ((offset = 0; offset < NODES + 2; offset++)); do
            if listens $((candidate + offset)); then continue 2; fi
        done
        PORT=$candidate
        return
    done
    fail "no free ports between 15000 and 20000"
}

write_configuration() {
    local i gpus=""
    # Loopback entries come first, because the machine's own list may already have these names.
    echo "127.0.0.1 accounting" >"$DIR/etc/hosts"
    for ((i = 1; i <= NODES; i++)); do echo "127.0.0.1 node$i" >>"$DIR/etc/hosts"; done
    cat /etc/hosts >>"$DIR/etc/hosts"
    : >"$DIR/etc/gres.conf"
    if ((GPUS > 0)); then
        # Only character devices make Slurm set CUDA_VISIBLE_DEVICES; these behave like /dev/null.
        for ((i = 0; i < GPUS; i++)); do
            [[ -c $DIR/dev/nvidia$i ]] || mknod "$DIR/dev/nvidia$i" c 1 3
        done
        echo "NodeName=node[1-$NODES] Name=gpu File=$DIR/dev/nvidia[0-$((GPUS - 1))]" >"$DIR/etc/gres.conf"
        gpus="Gres=gpu:$GPUS"
    fi
    # Slurm loads a plugin although nothing uses it; version 1 has no requirements until it is used.
    echo "CgroupPlugin=cgroup/v1" >"$DIR/etc/cgroup.conf"
    cat >"$DIR/etc/slurm.conf" <<END
ClusterName=mini
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired, by default after 120 s.
AuthInfo=socket=$DIR/run/munge.socket,cred_expire=8
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$DIR/state
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmdLogFile=$DIR/log/slurmd.%n.log
SlurmdSpoolDir=$DIR/spool/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdTimeout=10
MessageTimeout=10
KillWait=10
JobRequeue=1
ReturnToService=2
# Random, because training derives its port from the job id, and two new clusters should not collide.
FirstJobId=$((RANDOM % 20000 + 1000))
MaxArraySize=1001
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$DIR/run/munge.socket
AccountingStorageTRES=gres/gpu
END
    for ((i = 1; i <= NODES; i++)); do
        echo "NodeName=node$i NodeAddr=127.0.0.1 Port=$((PORT + 1 + i)) CPUs=$CPUS RealMemory=64000 $gpus State=UNKNOWN"
    done >>"$DIR/etc/slurm.conf"
    cat >>"$DIR/etc/slurm.conf" <<END
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
END
    (
        umask 077
        cat >"$DIR/etc/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$DIR/run/munge.socket
CommunicationParameters=NoInAddrAny
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_accounting
END
    )
}

# parts

start_munge() {
    [[ -s $DIR/munge/key ]] || (umask 077 && head -c 128 /dev/urandom >"$DIR/munge/key")
    if ! runs munged; then
        rm -f "$DIR"/run/munge.socket*
        # --force: the parent folders may be inaccessible to other users, like pytest's.
        launch munged munged --foreground --force --key-file="$DIR/munge/key" --socket="$DIR/run/munge.socket" \
            --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed"
    fi
    wait_for 20 munge munge --no-input --socket "$DIR/run/munge.socket"
}

start_accounting() {
    local where=(--no-defaults "--socket=$DIR/run/database.socket")
    # Don't wait for the disk at each row; losing one does no harm here.
    local how=(--user=root "--datadir=$DIR/database" --innodb-log-file-size=8M --innodb-buffer-pool-size=64M
        --innodb-flush-log-at-trx-commit=0)
    if [[ ! -f $DIR/database/complete ]]; then
        rm -rf "$DIR/database"
        mariadb-install-db --no-defaults "${how[@]}" --auth-root-authentication-method=normal --skip-test-db \
            >"$DIR/log/database-set-up.out" 2>&1 9>&- || fail "no database: see $DIR/log/database-set-up.out"
        touch "$DIR/database/complete"
    fi
    runs mariadbd || launch mariadbd mariadbd "${where[@]}" "${how[@]}" --pid-file="$DIR/run/mariadbd.pid" \
        --skip-networking --skip-log-bin --innodb-lock-wait-timeout=900
    wait_for 60 "the database" mariadb "${where[@]}" --user=root --execute "select 1"
    # It listens on the address of its host name, so that name must resolve to the loopback.
    # shellcheck disable=SC2016  # expanded by the inner shell
    runs slurmdbd || launch slurmdbd unshare --uts --mount bash -c '
        hostname accounting
        mount --bind "$1/etc/hosts" /etc/hosts
        MYSQL_UNIX_PORT=$1/run/database.socket exec slurmdbd -D' slurmdbd "$DIR"
    wait_for 60 slurmdbd listens $((PORT + 1))
    wait_for 60 slurmdbd timeout 5 sacctmgr --noheader show cluster
}

launch_node() {
    runs "$1" && return
    mkdir -p "$DIR/spool/$1"
    # bash is the first process in the node's process tree: it adopts orphans, and when it dies, the kernel kills the
    # rest of the tree. --kill-child makes it die with the process recorded here.
    # shellcheck disable=SC2016  # expanded by the inner shell
    launch "$1" unshare --uts --mount --pid --fork --kill-child --mount-proc bash -c '
        hostname "$1"
        mount --bind "$2/etc/hosts" /etc/hosts
        slurmd -D -N "$1" -f "$2/etc/slurm.conf" &
        trap "kill -TERM $!" TERM
        until wait; do :; done' "$1" "$1" "$DIR"
}

halt_node() {
    local outside inside
    if runs "$1"; then
        read -r outside _ <"$DIR/run/$1.process"
        # unshare forwards no signals, so signal its child, the node's first process.
        for inside in $(pgrep --parent "$outside" || true); do kill -TERM "$inside" 2>/dev/null || true; done
        for _ in $(seq 60); do
            runs "$1" || break
            sleep 0.05
        done
    fi
    halt "$1"
}

node_state() { sinfo --noheader --Node --partition main --nodes "$1" --format %T; }

resume_node() { # slurmctld may still consider it down or drained
    local state
    state=$(node_state "$1")
    if [[ $state == down* || $state == drained* ]]; then
        scontrol update "nodename=$1" state=resume || true
    fi
    [[ $(node_state "$1") =~ ^(idle|mixed|allocated|completing)$ ]]
}

check_machine() {
    local tool
    [[ $EUID == 0 ]] || fail "start needs root: it makes namespaces and device files"
    for tool in munged slurmctld slurmd slurmdbd mariadbd mariadb mariadb-install-db sinfo sacctmgr ss pgrep; do
        command -v "$tool" >/dev/null || fail "$tool is missing; install the packages listed at the top of $0"
    done
    unshare --uts --mount --pid --fork --mount-proc true 2>/dev/null ||
        fail "this machine doesn't allow namespaces (in a container, use --privileged)"
    ((${#DIR} <= 80)) || fail "$DIR: the path is too long for a Unix socket; use at most 80 characters"
}

# commands

start() {
    local node
    NODES=2 CPUS=8 GPUS=4
    check_machine
    mkdir -p "$DIR"/{database,dev,etc,log,munge,run,spool,state}
    chmod 711 "$DIR" "$DIR/run" && chmod 700 "$DIR/munge" "$DIR/database"
    exec 9>"$DIR/lock" && flock 9
    # shellcheck source=/dev/null
    if [[ -f $DIR/settings ]]; then source "$DIR/settings"; fi
    while (($#)); do
        case $1 in
        --nodes) NODES=${2:?} ;;
        --cpus) CPUS=${2:?} ;;
        --gpus) GPUS=${2:?} ;;
        *) usage ;;
        esac
        shift 2
    done
    export SLURM_CONF=$DIR/etc/slurm.conf
    if ! runs slurmctld && ! runs slurmdbd; then
        pick_ports
        printf '%s\n' "NODES=$NODES" "CPUS=$CPUS" "GPUS=$GPUS" "PORT=$PORT" >"$DIR/settings"
        write_configuration
    fi
    start_munge
    start_accounting
    runs slurmctld || launch slurmctld slurmctld -D -f "$SLURM_CONF"
    wait_for 60 slurmctld listens "$PORT"
    for node in $(nodes); do launch_node "$node"; done
    for node in $(nodes); do wait_for 60 "$node" resume_node "$node"; done
    echo "mini_cluster: $NODES nodes are up" >&2
    echo "export SLURM_CONF=$SLURM_CONF"
}

nodes() { seq --format "node%.0f" 1 "$NODES"; }

load() {
    [[ -f $DIR/settings ]] || fail "$DIR: no cluster here; start one first"
    # shellcheck source=/dev/null
    source "$DIR/settings"
    export SLURM_CONF=$DIR/etc/slurm.conf
}

stop() {
    local node
    load
    exec 9>"$DIR/lock" && flock 9
    if runs slurmctld; then
        timeout 20 squeue --noheader --format %A | sort --unique | xargs --no-run-if-empty timeout 20 scancel || true
        for _ in $(seq 150); do
            [[ -n $(timeout 10 squeue --noheader 2>/dev/null) ]] || break
            sleep 0.1
        done
    fi
    for node in $(nodes); do halt_node "$node"; done
    for node in slurmctld slurmdbd mariadbd munged; do halt "$node"; done
    echo "mini_cluster: stopped" >&2
}

status() {
    local part missing=0
    load
    for part in munged mariadbd slurmdbd slurmctld $(nodes); do
        if runs "$part"; then
            echo "up    $part"
        else
            echo "DOWN  $part"
            missing=1
        fi
    done
    if runs slurmctld; then timeout 20 sinfo --Node --partition main --format "%8N %12T %5c %8m %G"; fi
    return $missing
}

crash() {
    local id
    load
    runs "$1" || fail "$1 is not up"
    read -r id _ <"$DIR/run/$1.process"
    kill -KILL "$id"
    rm -f "$DIR/run/$1.process"
}

boot() {
    load
    runs "$1" && return
    # Boot it drained and resume it a second after it has registered: a job started at that moment can lose its step
    # (seen with 22.05).
    scontrol update "nodename=$1" state=drain reason=boot
    launch_node "$1"
    wait_for 60 "$1" test_drained "$1"
    sleep 1
    wait_for 60 "$1" resume_node "$1"
}

test_drained() { [[ $(node_state "$1") == drained ]]; }

(($#)) || usage
COMMAND=$1
shift
DIR=${SEGDIST_CLUSTER:-/tmp/segdist-cluster}
if [[ ${1:-} == */* || ${1:-} == . ]]; then
    DIR=$1
    shift
fi
DIR=$(realpath --canonicalize-missing "$DIR")
case $COMMAND in
start) start "$@" ;;
stop) stop ;;
status) status ;;
crash) crash "${1:?which node?}" ;;
boot) boot "${1:?which node?}" ;;
*) usage ;;
esac

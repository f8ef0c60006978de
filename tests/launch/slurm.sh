#!/usr/bin/env bash
# A Slurm cluster of two nodes that are both this host, for tests: slurm.sh start FOLDER | stop FOLDER. As root only.
# FOLDER (empty, outside the run directories) holds its state, logs and settings: use it with SLURM_CONF=FOLDER/slurm.conf.
set -euo pipefail
action=$1 place=$(realpath -m "$2")
export SLURM_CONF=$place/slurm.conf

start() {
  mkdir -p "$place/state" "$place/n1" "$place/n2"
  chmod 755 "$place"
  local host munge=$place/munge
  host=$(hostname -s)
  # A key and a socket of its own, so that a munge daemon that the host may run is left alone. Its folders are the user's
  # of the daemon, and munged asks that nobody else can write there.
  mkdir -p "$munge"
  head -c 128 /dev/urandom >"$munge/key"
  chmod 700 "$munge" && chmod 400 "$munge/key"
  munged --force --key-file="$munge/key" --socket="$munge/socket" --pid-file="$munge/pid" --log-file="$munge/log" \
    --seed-file="$munge/seed"
  # Node names differ from the host's on purpose: nothing resolves them, as on clusters without name service for nodes.
  cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$3
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/%n
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd-%n.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SwitchType=switch/none
JobRequeue=1
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MinJobAge=300
KillWait=10
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$(($3 + 1))-$(($3 + 2))] CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
  slurmctld
  slurmd -N n1
  slurmd -N n2
  for _ in $(seq 100); do
    if [ "$(sinfo --noheader --format=%D --states=idle 2>/dev/null)" = 2 ]; then return; fi
    sleep 0.2
  done
  tail -n 20 "$place"/*.log >&2
  exit 1
}

stop() {
  local file id
  for file in "$place"/slurmd-n1.pid "$place"/slurmd-n2.pid "$place/slurmctld.pid" "$place/munge/pid"; do
    if [ -f "$file" ]; then
      id=$(cat "$file")
      kill "$id" 2>/dev/null || true
      for _ in $(seq 50); do kill -0 "$id" 2>/dev/null || break; sleep 0.1; done
      kill -KILL "$id" 2>/dev/null || true
    fi
  done
}

"$action" "$@"

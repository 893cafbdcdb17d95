#!/usr/bin/env bash
# A real Slurm of one node and two pretended GPUs, for tests: one_node.sh up FOLDER | down FOLDER; away FOLDER | back FOLDER its controller
# ACCOUNTING=1: with slurmdbd and MariaDB, so that sacct answers. INSTALL=1: install Debian's packages first. Needs root.
# Afterwards, `. FOLDER/env.sh` lets sbatch and the others find it. Tried on Debian 12 with Slurm 22.05.
set -euo pipefail
action=$1 home=$2 host=$(hostname -s)

start() { # name, command: in the background; its process id is kept
  local name=$1
  shift
  setsid "$@" </dev/null >"$home/log/$name.out" 2>&1 &
  echo $! >"$home/run/$name.pid"
}

wait_for() { # what it is, seconds, command
  local what=$1 end=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { echo "$what did not come up: see $home/log" >&2; exit 1; }
    sleep 0.2
  done
}

settings() {
  cat >"$home/etc/slurm.conf" <<EOF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$home/run/munge.socket
StateSaveLocation=$home/spool/ctld
SlurmdSpoolDir=$home/spool/d
SlurmctldPidFile=$home/run/slurmctld.own.pid
SlurmdPidFile=$home/run/slurmd.own.pid
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
MinJobAge=3600
KillWait=10
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=20000 Gres=gpu:2 State=UNKNOWN
PartitionName=work Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=9
AccountingStorageType=accounting_storage/$([ -n "${ACCOUNTING:-}" ] && echo slurmdbd || echo none)
EOF
  for gpu in 0 1; do [ -e "$home/dev/nvidia$gpu" ] || mknod -m 666 "$home/dev/nvidia$gpu" c 1 3; done
  echo "NodeName=$host Name=gpu File=$home/dev/nvidia[0-1]" >"$home/etc/gres.conf"
  # the executor's inner srun loses SLURM_CONF; a configuration in Slurm's default place needs none of this
  printf '#!/bin/sh\nSLURM_CONF=%s/etc/slurm.conf exec /usr/bin/srun "$@"\n' "$home" >"$home/bin/srun"
  chmod 755 "$home/bin/srun"
  printf 'export SLURM_CONF=%s/etc/slurm.conf PATH=%s/bin:$PATH\n' "$home" "$home" >"$home/env.sh"
}

accounting() { # a database of its own, and slurmdbd
  cat >"$home/etc/slurmdbd.conf" <<EOF
AuthType=auth/munge
AuthInfo=socket=$home/run/munge.socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
LogFile=$home/log/slurmdbd.log
PidFile=$home/run/slurmdbd.own.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StoragePort=13306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
EOF
  chmod 600 "$home/etc/slurmdbd.conf"
  printf 'AccountingStorageHost=127.0.0.1\nAccountingStoragePort=16819\nAccountingStoragePass=%s\n' "$home/run/munge.socket" >>"$home/etc/slurm.conf"
  chown mysql "$home/db"
  mariadb-install-db --user=mysql --datadir="$home/db" --auth-root-authentication-method=socket >"$home/log/install-db.out" 2>&1
  start mariadbd mariadbd --no-defaults --user=mysql --datadir="$home/db" --socket=/run/mysqld/mysqld.sock --port=13306 \
    --bind-address=127.0.0.1 --innodb-buffer-pool-size=64M
  wait_for MariaDB 30 mariadb --no-defaults --socket=/run/mysqld/mysqld.sock -e 'select 1'
  mariadb --no-defaults --socket=/run/mysqld/mysqld.sock -e \
    "create database slurm; create user slurm@localhost identified by 'slurm'; grant all on slurm.* to slurm@localhost"
  SLURM_CONF=$home/etc/slurm.conf start slurmdbd slurmdbd -D
  wait_for slurmdbd 30 bash -c "echo >/dev/tcp/127.0.0.1/16819"
}

up() {
  if [ -n "${INSTALL:-}" ]; then
    apt-get install -y --no-install-recommends slurm-wlm munge ${ACCOUNTING:+slurmdbd mariadb-server} >/dev/null
  fi
  umask 022
  mkdir -p "$home"/{etc,run,log,dev,bin,db,spool/ctld,spool/d} /run/mysqld
  dd if=/dev/urandom of="$home/etc/munge.key" bs=1024 count=1 status=none
  chmod 400 "$home/etc/munge.key"
  settings
  start munged munged --foreground --key-file="$home/etc/munge.key" --socket="$home/run/munge.socket" \
    --pid-file="$home/run/munged.own.pid" --log-file="$home/log/munged.log" --seed-file="$home/run/munged.seed"
  wait_for munge 10 test -S "$home/run/munge.socket"
  [ -z "${ACCOUNTING:-}" ] || { chown mysql /run/mysqld; accounting; }
  . "$home/env.sh"
  start slurmd slurmd -D -N "$host"
  back
  wait_for Slurm 30 bash -c '[ "$(timeout 5 sinfo -h -p work -o %T)" = idle ]'
}

back() { # the controller
  . "$home/env.sh"
  start slurmctld slurmctld -D
  wait_for slurmctld 30 scontrol ping
}

end() { # name
  [ -s "$home/run/$1.pid" ] || return 0
  kill "$(cat "$home/run/$1.pid")" 2>/dev/null || true
  wait_for "the end of $1" 20 bash -c "! kill -0 $(cat "$home/run/$1.pid")"
}

away() { end slurmctld; }

down() {
  local name
  for name in slurmd slurmctld slurmdbd mariadbd munged; do end "$name"; done
}

"$action"

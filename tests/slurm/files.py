"""The configuration files of a one-machine SLURM, as pure functions of a folder, its user and its ports."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ports:
    """Where the daemons listen, on loopback."""

    database: int
    slurmdbd: int
    slurmctld: int
    slurmd: int


def slurm_conf(folder: Path, user: str, ports: Ports, max_array_size: int) -> str:
    """Return ``slurm.conf``: eight pretended CPUs, two pretended GPUs, and partitions that preempt each other.

    ``batch`` is the default; a job in ``low`` is requeued by one in ``high``, which nothing preempts.
    """
    return f"""
ClusterName=dst
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munged.socket
SlurmctldPort={ports.slurmctld}
SlurmdPort={ports.slurmd}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MaxArraySize={max_array_size}

# Jobs start, and end, at once.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=1,bf_interval=1
KillWait=30

JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports.slurmdbd}
AccountingStoragePass={folder}/munged.socket

# A preempted job gets the signal of its --signal option at once and is requeued after the grace time.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

# With config_overrides the node has what its line says, not what the machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
NodeName=localhost CPUs=8 RealMemory=65536 Gres=gpu:2 State=UNKNOWN
PartitionName=batch Nodes=localhost Default=YES MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def gres_conf(folder: Path) -> str:
    """Return ``gres.conf``: the GPUs are the empty files ``gpu0`` and ``gpu1``."""
    return f"NodeName=localhost Name=gpu File={folder}/gpu[0-1]\n"


def slurmdbd_conf(folder: Path, user: str, ports: Ports) -> str:
    """Return ``slurmdbd.conf``."""
    return f"""
AuthType=auth/munge
AuthInfo=socket={folder}/munged.socket
DbdHost=localhost
DbdPort={ports.slurmdbd}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports.database}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


def database_cnf(folder: Path, user: str, ports: Ports) -> str:
    """Return the options of ``mariadbd``: small, and in no hurry to reach the disk."""
    return f"""
[mariadbd]
user={user}
datadir={folder}/database
socket={folder}/mariadbd.socket
pid-file={folder}/mariadbd.pid
log-error={folder}/mariadbd.log
bind-address=127.0.0.1
port={ports.database}
skip-name-resolve
init-file={folder}/database.sql
innodb_buffer_pool_size=64M
innodb_log_file_size=16M
innodb_flush_log_at_trx_commit=0
innodb_lock_wait_timeout=900
performance_schema=off
"""


DATABASE_SQL = """\
CREATE DATABASE IF NOT EXISTS slurm;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1';
"""

#!/bin/bash
# Runs train.py on this machine as docs/clusters.md starts it on a cluster: under Slurm and under Open MPI, with two tasks.
#   apt-get install slurm-wlm munge openmpi-bin; sudo PYTHON=.venv/bin/python bash benchmarks/clusters.sh
# Slurm runs in a temporary folder with a configuration of its own: a controller and one node with two processors. Root is
# needed to start its daemons. The script checks the exit codes and prints what happened; it ends at the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHON=$(realpath -s "${PYTHON:-python}") JAX_PLATFORMS=cpu FOLDER=$(mktemp -d)
OPTIONS="--config=configs/lenet5_digits.py --config.num_steps=60 --config.log_every_steps=5 --config.evaluate_every_epochs=0 --config.compilation_cache_dir="

say() { echo "$(date +%T) $*"; }

openmpi() {
  say "Open MPI: two processes"
  mpirun --allow-run-as-root --oversubscribe -n 2 "$PYTHON" train.py $OPTIONS --workdir="$FOLDER/openmpi" | tail -1
  say "Open MPI: SIGTERM to mpirun, then the same command again"
  long="$OPTIONS --config.num_steps=200 --workdir=$FOLDER/stopped"
  mpirun --allow-run-as-root --oversubscribe -n 2 "$PYTHON" train.py $long > "$FOLDER/openmpi.out" 2>&1 &
  until grep -q "step 20/" "$FOLDER/openmpi.out"; do sleep 0.2; done
  kill -TERM $!
  wait $! || say "mpirun ended with exit code $?; checkpoints: $(ls "$FOLDER/stopped/checkpoints" | tr '\n' ' ')"
  mpirun --allow-run-as-root --oversubscribe -n 2 "$PYTHON" train.py $long > "$FOLDER/openmpi.out" 2>&1
  say "resumed: first $(grep -oE "step [0-9]+/[0-9]+" "$FOLDER/openmpi.out" | sed -n 1p), then $(grep -oE "done: .*" "$FOLDER/openmpi.out")"
}

start_slurm() {
  export SLURM_CONF="$FOLDER/slurm.conf"
  local host
  host=$(hostname -s)
  mkdir -p "$FOLDER/munge" "$FOLDER/state" "$FOLDER/spool"
  dd if=/dev/urandom of="$FOLDER/munge/key" bs=128 count=1 status=none
  chmod 700 "$FOLDER/munge"; chmod 600 "$FOLDER/munge/key"; chmod 711 "$FOLDER"
  cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$FOLDER/munge/socket
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerParameters=requeue_delay=1
MinJobAge=600
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host CPUs=$(nproc) State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=2 State=UP
CONF
  munged --force --key-file="$FOLDER/munge/key" --socket="$FOLDER/munge/socket" --pid-file="$FOLDER/munge/pid" \
    --log-file="$FOLDER/munge/log" --seed-file="$FOLDER/munge/seed" 
  slurmctld
  slurmd
  trap stop_slurm EXIT
  until sinfo --noheader --format=%T | grep -q idle; do sleep 0.5; done
  say "Slurm: $(sinfo --version), the node is idle"
}

stop_slurm() {
  kill "$(cat "$FOLDER/slurmd.pid")" "$(cat "$FOLDER/slurmctld.pid")" "$(cat "$FOLDER/munge/pid")" || true
}

state() { squeue --noheader --jobs="$1" --format="%T" 2> /dev/null; }

slurm() {
  start_slurm
  say "Slurm: srun with two tasks"
  srun --ntasks=2 "$PYTHON" train.py $OPTIONS --workdir="$FOLDER/srun" | tail -1

  say "Slurm: sbatch, then a job of a higher priority that needs the node"
  long="$OPTIONS --config.num_steps=200 --workdir=$FOLDER/batch"
  job=$(sbatch --parsable --ntasks=2 --output="$FOLDER/batch.out" docs/clusters/slurm.sbatch $long)
  until grep -q "step 20/" "$FOLDER/batch.out" 2> /dev/null; do sleep 0.2; done
  sbatch --parsable --partition=high --ntasks=2 --output=/dev/null --wrap="sleep 5" > /dev/null
  until [ "$(state "$job")" = PENDING ]; do sleep 0.2; done
  say "preempted; checkpoints: $(ls "$FOLDER/batch/checkpoints" | tr '\n' ' ')"
  until [ "$(state "$job")" = "" ] || [ "$(state "$job")" = COMPLETED ]; do sleep 0.5; done
  say "$(scontrol show job "$job" | grep -oE '(JobState|Restarts|ExitCode)=[^ ]*' | tr '\n' ' ')"
  grep -E "done: " "$FOLDER/batch.out"

  say "Slurm: SIGKILL to one of the tasks"
  long="$OPTIONS --config.num_steps=200 --config.checkpoint_every_steps=10 --workdir=$FOLDER/killed"
  job=$(sbatch --parsable --ntasks=2 --output="$FOLDER/killed.out" docs/clusters/slurm.sbatch $long)
  until grep -q "step 20/" "$FOLDER/killed.out" 2> /dev/null; do sleep 0.2; done
  kill -KILL "$(pgrep -f "^$PYTHON train.py.*$FOLDER/killed" | tail -1)"
  until [ "$(state "$job")" = "" ] || [ "$(state "$job")" = COMPLETED ]; do sleep 0.5; done
  say "$(scontrol show job "$job" | grep -oE '(JobState|Restarts|ExitCode)=[^ ]*' | tr '\n' ' ')"
  grep -E "error: |done: " "$FOLDER/killed.out"

  say "Slurm: scancel"
  long="$OPTIONS --config.num_steps=2000 --workdir=$FOLDER/cancelled"
  job=$(sbatch --parsable --ntasks=2 --output="$FOLDER/cancelled.out" docs/clusters/slurm.sbatch $long)
  until grep -q "step 20/" "$FOLDER/cancelled.out" 2> /dev/null; do sleep 0.2; done
  scancel "$job"
  until [ "$(state "$job")" = "" ] || [ "$(state "$job")" = CANCELLED ]; do sleep 0.5; done
  say "$(scontrol show job "$job" | grep -oE '(JobState|Restarts|ExitCode)=[^ ]*' | tr '\n' ' ')"
  say "checkpoints: $(ls "$FOLDER/cancelled/checkpoints" | tr '\n' ' ')"
}

for part in ${*:-openmpi slurm}; do $part; done
say "all ended as they should; the files are in $FOLDER"

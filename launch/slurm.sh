#!/usr/bin/env bash
# A jaxlm run as a Slurm batch job that continues by itself after preemption and at its time limit. `jaxlm launch --on slurm`
# submits it; by hand, with the same settings in the environment:
#
#   export JAXLM_RUN_DIR=/shared/runs/mine JAXLM_STEPS=1000 JAXLM_PYTHON=/shared/venv/bin/python
#   sbatch --nodes=2 --time=04:00:00 launch/slurm.sh
#
# JAXLM_RUN_DIR    the run's directory, seen by every node under this path; holds launch/config.json
# JAXLM_STEPS      the run's last step: when its checkpoint is there, the run is complete
# JAXLM_PYTHON     the Python that has jaxlm, under the same path on every node (python3)
# JAXLM_SETUP      a shell script to read on the first node before anything starts, for example with `module load` (none)
# JAXLM_ENV_FILE   a file of NAME=VALUE lines that only you can read: the place for secrets (none)
# JAXLM_TRAIN_ARGS more arguments of `jaxlm train` (none)
#
#SBATCH --job-name=jaxlm
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail
: "${JAXLM_RUN_DIR:?the run directory}" "${JAXLM_STEPS:?the last step of the run}"
python=${JAXLM_PYTHON:-python3}
if [ -n "${JAXLM_SETUP:-}" ]; then source "$JAXLM_SETUP"; fi
if [ -n "${JAXLM_ENV_FILE:-}" ]; then set -a; source "$JAXLM_ENV_FILE"; set +a; fi

# Process 0 runs on the first node. Its address comes from Slurm, for a node's name need not resolve; the port from the job's
# number, so that jobs that share nodes differ.
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
  read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
  export JAXLM_COORDINATOR=${address:-$first}:$((20000 + SLURM_JOB_ID % 10000))
fi
echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): ${SLURM_NTASKS:-1} processes on $SLURM_JOB_NODELIST," \
  "coordinator ${JAXLM_COORDINATOR:-none}"

# Shortly before the time limit Slurm sends USR1 to this shell alone: the steps are told to save, and the job queues again.
limit=
trap 'limit=near; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

# shellcheck disable=SC2086  # JAXLM_TRAIN_ARGS is a list of words
srun --export=ALL --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "$python" -m jaxlm train "$JAXLM_RUN_DIR/launch/config.json" --run-dir "$JAXLM_RUN_DIR" ${JAXLM_TRAIN_ARGS:-} &
step=$!
status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do  # the trap ended the wait, not the step
  status=0
  wait "$step" || status=$?
done

# Told to stop, by the trap or by Slurm ahead of a preemption, training saves and ends well, but not at its last step.
if [ "$status" -eq 0 ] && [ ! -d "$JAXLM_RUN_DIR/checkpoints/$JAXLM_STEPS" ]; then
  echo "job $SLURM_JOB_ID stopped${limit:+ near its time limit} before step $JAXLM_STEPS: queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

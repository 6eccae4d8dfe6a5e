#!/usr/bin/env bash
# Trains on the GPUs of several Slurm nodes, and goes on by itself after it was stopped.
#
#   sbatch --nodes=4 docs/launch/slurm.sh --config=configs/imagenet2012.py \
#     --config.data_dir=/shared/imagenet --workdir=/shared/runs/imagenet
#
# One task per GPU: JAX tells from Slurm's variables who the others are, and gives a task
# the GPU whose number is its SLURM_LOCALID. So each task must see all GPUs of its node: do
# not ask for --gpus-per-task. What stands below, the command line of sbatch overrides.
#SBATCH --job-name=googlenet_flax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# To the tasks and not to this script, 300 s before the end: for a step and a save.
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

PYTHON=${PYTHON:-python} # Of an environment that all nodes see.
MAX_RESTARTS=${MAX_RESTARTS:-20}

# A process that ends in error takes the others with it in its own time, saving first if it
# can; --wait is for one that hangs. srun exits with the highest code of its tasks.
code=0
srun --gpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  --kill-on-bad-exit=0 --wait=180 \
  "$PYTHON" -m googlenet_flax.main "$@" --config.distributed=True || code=$?

case $code in
  0 | 2 | 3 | 4) exit "$code" ;; # Done, or for a person to mend.
esac
if ((${SLURM_RESTART_COUNT:-0} >= MAX_RESTARTS)); then
  echo "slurm.sh: exit code $code after $MAX_RESTARTS restarts: not again" >&2
  exit "$code"
fi
# 143: stopped and saved. Others: a process was lost, and the last checkpoint counts.
echo "slurm.sh: exit code $code: requeued" >&2
scontrol requeue "$SLURM_JOB_ID"

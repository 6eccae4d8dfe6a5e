#!/usr/bin/env bash
# Trains on the GPUs of several Slurm nodes and requeues itself after a stop.
#
#   sbatch --nodes=4 docs/launch/slurm.sh --config=configs/imagenet2012.py \
#     --config.data_dir=/shared/imagenet --workdir=/shared/runs/imagenet
#
# Starts one task per GPU. JAX finds the other tasks through Slurm's environment variables
# and gives each task the GPU with the number SLURM_LOCALID. Each task must therefore see
# all GPUs of its node: do not use --gpus-per-task. Options of sbatch override the lines
# below.
#SBATCH --job-name=googlenet_flax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Sends SIGTERM to the tasks, not to this script, 300 s before the time limit, so that they
# can finish a step and save.
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

PYTHON=${PYTHON:-python} # Must be in an environment that all nodes see.
MAX_RESTARTS=${MAX_RESTARTS:-20}

# After an error in one process the others end by themselves, and save first if possible;
# --wait ends those that hang. srun exits with the highest exit code of its tasks.
code=0
srun --gpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  --kill-on-bad-exit=0 --wait=180 \
  "$PYTHON" -m googlenet_flax.main "$@" --config.distributed=True || code=$?

case $code in
  0 | 2 | 3 | 4) exit "$code" ;; # Complete, or an error that the user must fix.
esac
if ((${SLURM_RESTART_COUNT:-0} >= MAX_RESTARTS)); then
  echo "slurm.sh: exit code $code after $MAX_RESTARTS restarts: not requeued" >&2
  exit "$code"
fi
# 143: stopped and saved. Other codes: a process was lost, and the next start continues from
# the last checkpoint.
echo "slurm.sh: exit code $code: requeued" >&2
scontrol requeue "$SLURM_JOB_ID"

#!/usr/bin/env bash
#SBATCH --job-name=instructjax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --exclusive
#SBATCH --time=1-00:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#
# GPUs of several nodes under Slurm, from the root of a clone that all nodes see:
#
#   experiments/gpu/install.sh
#   SIZE=1.3b REWARD_SIZE=6b MESH=data=1,fsdp=32,model=1 DATA=data RUNS=runs/big POLICY_BASE=models/policy \
#     REWARD_BASE=models/reward CACHE=cache sbatch --nodes=4 experiments/gpu/slurm.sh
#
# There is one process for each GPU: jax finds the others in Slurm's variables, and takes the GPU of its number on the
# node, so each process must see all GPUs of its node (no --gpus-per-task).  For fewer GPUs a node give both
# --gpus-per-node=N and --ntasks-per-node=N.
#
# Five minutes before the time is up Slurm sends SIGTERM to all processes of the step.  They save and end with 143, and
# the job is queued again.  `scancel --signal=INT JOB` lets them save and ends the job for good.
#
# With DRY_RUN=1, and bash in the place of sbatch, it prints what would run.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy that lies elsewhere
source experiments/gpu/settings.sh

# Processes that have saved may end before the others have: none is killed for that.  A process that is lost ends the
# others within two minutes, as jax misses it.
processes=${SLURM_NTASKS_PER_NODE:-8}
command=(srun --kill-on-bad-exit=0 --wait=0 --label "--cpus-per-task=$((${SLURM_CPUS_ON_NODE:-$processes} / processes))"
  env DISTRIBUTED=1 "PATH=$PWD/.venv/bin:$PATH" bash experiments/tpu/stages.sh)
if [ "${DRY_RUN:-0}" = 1 ]; then
  printf '%q ' "${command[@]}"
  printf '\n'
  exit
fi
[ -x .venv/bin/instructjax ] || { echo "$PWD has no .venv/bin/instructjax: run experiments/gpu/install.sh first" >&2; exit 2; }

# The script never signals srun: on SIGTERM srun kills its processes.
code=0
"${command[@]}" || code=$?
if [ "$code" = 143 ]; then
  echo "the state is saved; the job is queued again" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

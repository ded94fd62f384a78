#!/usr/bin/env bash
# One host with several GPUs, from clone to report: jax with CUDA in a virtual environment, then the stages.
#
#   SIZE=1.3b REWARD_SIZE=1.3b MESH=data=1,fsdp=8,model=1 DATA=data RUNS=runs/big \
#     POLICY_BASE=models/policy REWARD_BASE=models/reward experiments/gpu/host.sh
#
# Several hosts without Slurm: the same line on each of them, with DISTRIBUTED=HOST:PORT,HOSTS,INDEX before it.  HOST is
# the first one, whose INDEX is 0, and all of them see the folders under the same names.
#
# With DRY_RUN=1 it prints what would run.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "${DRY_RUN:-0}" = 1 ] || experiments/gpu/install.sh
source experiments/gpu/settings.sh
PATH="$PWD/.venv/bin:$PATH" exec bash experiments/tpu/stages.sh

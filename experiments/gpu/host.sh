#!/usr/bin/env bash
# One host with several GPUs, from clone to report: jax with CUDA in a virtual environment, then the stages.
#
#   SIZE=1.3b REWARD_SIZE=1.3b MESH=data=1,fsdp=8,model=1 DATA=data RUNS=runs/big \
#     POLICY_BASE=models/policy REWARD_BASE=models/reward experiments/gpu/host.sh
#
# With DRY_RUN=1 it prints what would run.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "${DRY_RUN:-0}" != 1 ]; then
  make .venv/.runtime
  version=$(.venv/bin/python -c 'import importlib.metadata as m; print(m.version("jax"))')
  .venv/bin/python -m pip install --quiet "jax[cuda13]==$version"
fi
PATH="$PWD/.venv/bin:$PATH" exec bash experiments/tpu/stages.sh

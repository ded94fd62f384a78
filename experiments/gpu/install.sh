#!/usr/bin/env bash
# InstructJAX and jax with CUDA in .venv of this clone.  CUDA=12 is for a driver older than 580.
set -euo pipefail
cd "$(dirname "$0")/../.."
make .venv/.runtime
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[cuda${CUDA:-13},gcs]"

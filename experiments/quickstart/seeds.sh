#!/usr/bin/env bash
# Three quickstarts and the table of all of them; run again, it goes on where it stopped.
set -euo pipefail
here=$(dirname "$0")
for seed in 0 1 2; do
  instructjax quickstart --seed="$seed" --workdir="runs/seed$seed"
done
python "$here/pool.py" runs/seed0 runs/seed1 runs/seed2

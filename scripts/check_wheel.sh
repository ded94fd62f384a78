#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment, and runs every kind of stage from another folder.
# Usage: scripts/check_wheel.sh PYTHON
set -euo pipefail
python="$(realpath -s "${1:-.venv/bin/python}")"
root="$(cd "$(dirname "$0")/.." && pwd)"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT

# The build leaves folders beside its sources, so it works on a copy of what git tracks.
mkdir "$place/source"
git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents -t "$place/source")
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$place" "$place/source"
"$python" -m venv "$place/venv"
pip() { "$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }
pip --require-hashes -r "$root/requirements.lock"
pip --no-deps "$place"/instructjax-*.whl

# Nothing of the clone may help from here on.
mkdir "$place/work"
cd "$place/work"
unset PYTHONPATH
instructjax() { "$place/venv/bin/instructjax" "$@"; }
instructjax --version
instructjax quickstart --help > help.txt
grep -q "config.iterations" help.txt
instructjax config ppo:6b > config.txt
grep -q "config.ppo.clip" config.txt
instructjax plan --config=sft:1.3b --topology=h100:8 --arithmetic > plan.txt

cat > my_ppo.py <<'PYTHON'
from instructjax.configs import ppo


def get_config():
  config = ppo.get_config("tiny")
  config.iterations = 1
  config.ppo.clip = 0.1
  config.kl.coef = 0.05
  return config
PYTHON

instructjax data tone --out=data > /dev/null
short=(--config.steps=2 --config.checkpoint_every=0)
instructjax pretrain "${short[@]}" --workdir=runs/pretrain
instructjax sft --model=runs/pretrain "${short[@]}" --workdir=runs/sft
instructjax rl_init --model=runs/pretrain "${short[@]}" --workdir=runs/rl_init
instructjax reward --model=runs/sft "${short[@]}" --workdir=runs/reward
instructjax ppo --config=my_ppo.py --model=runs/rl_init --config.reward_model=runs/reward --workdir=runs/ppo
instructjax sample --model=runs/ppo --config.prompts=2 --workdir=runs/sample > /dev/null
instructjax bestofn --model=runs/sft --config.rewards=runs/reward --config.prompts=2 --config.n=2 \
  --config.batch=2 --workdir=runs/bestofn > /dev/null
instructjax eval --models=sft=runs/sft,ppo=runs/ppo --suite=behaviours --config.limit=1 \
  --config.model.dtype=float32 --config.tokens=1024 --workdir=runs/eval > /dev/null
instructjax report --workdir=runs/ppo > /dev/null
instructjax export --model=runs/ppo --out=public > /dev/null
test -s runs/ppo/report.html
test -s public/config.json
echo "the wheel works: $(ls "$place"/instructjax-*.whl | xargs basename)"

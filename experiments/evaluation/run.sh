#!/usr/bin/env bash
# The quickstart's models through `instructjax eval`: make quickstart first, then this from the folder with runs/quickstart.
set -euo pipefail
here=$(dirname "$0")
models=runs/quickstart/models
instructjax data tone --out=data
instructjax eval --models "base=${BASE:?the .gguf file that the quickstart fetched},sft=$models/sft,ppo=$models/ppo,ptx=$models/ptx" \
  --suite preference,behaviours,hallucination --workdir=runs/eval --config.limit="${LIMIT:-24}" --config.behaviours.perturbations="" \
  --config.preference.prompts="data/test_prompts_movies.jsonl" --config.preference.judges="python:$here/judge.py:tone" \
  --config.preference.response=24 --config.preference.temperature=0.7 --config.model.unroll=6 --config.tokens=4096
instructjax card --model=$models/ptx --eval=runs/eval --name=ptx --out=model_card.md

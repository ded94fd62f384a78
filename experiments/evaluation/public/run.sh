#!/usr/bin/env bash
# The quickstart's models on real data: make quickstart first, then this from the folder with runs/quickstart.
# Needs pip install -e '.[toxicity,harness]'.
set -euo pipefail
here=$(dirname "$0")
models=runs/quickstart/models
base=${BASE:?the .gguf file that the quickstart fetched}
all="base=$base,sft=$models/sft,ppo=$models/ppo,ptx=$models/ptx"
instructjax data benchmarks --out=data
instructjax eval --models "$all" \
  --suite truthfulqa,toxicity,bias --workdir=runs/public --config.limit="${LIMIT:-24}" \
  --config.truthfulqa.data=data/truthfulqa.jsonl --config.truthfulqa.prompts="qa,qa+instruction" \
  --config.toxicity.prompts=data/toxicity.jsonl --config.toxicity.scorer=stand-in \
  --config.bias.crows=data/crows_pairs.jsonl --config.bias.pairs="WinoBias=data/winobias.jsonl; StereoSet=data/stereoset.jsonl" \
  --config.model.unroll=6
instructjax eval --models "$all" \
  --suite hallucination,nlp --workdir=runs/public_texts --config.limit="${LIMIT:-24}" \
  --config.hallucination.own=data/closed_domain.jsonl --config.hallucination.labelled=data/grounded.jsonl \
  --config.hallucination.tokens=64 --config.nlp.quac=data/quac.jsonl --config.model.unroll=6
instructjax lm_eval --model="$base" --tasks=piqa_file --include="$here" --limit="${PIQA:-300}" --workdir=runs/piqa \
  --config.model.unroll=6 --config.tokens=4096

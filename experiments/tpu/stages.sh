#!/usr/bin/env bash
# The stages of a run in their order, on one host or on every worker of a slice.  Run again, it goes on where it stopped.
set -euo pipefail
: "${DATA:?the folder of the data}" "${RUNS:?the folder of the runs}" "${SIZE:?1.3b, 6b or 175b}" "${REWARD_SIZE:?6b}"
: "${MESH:?data=1,fsdp=8,model=1}" "${POLICY_BASE:?a pretrained model}" "${REWARD_BASE:?a pretrained model}"

mesh=()
for axis in ${MESH//,/ }; do mesh+=("--config.mesh.$axis"); done
[ "${DISTRIBUTED:-0}" = 1 ] && mesh+=(--distributed)

# stage NAME OPTIONS...: one stage; a preemption (exit code 143) is gone on with at once, as the state was saved.
stage() {
  local name=$1 code=0
  shift
  [ -d "$RUNS/$name/checkpoints/final" ] && return
  while true; do
    code=0
    if [ "${DRY_RUN:-0}" = 1 ]; then
      printf '%q ' instructjax "${name%-*}" "$@" "${mesh[@]}" "--workdir=$RUNS/$name"
      printf '\n'
    else
      instructjax "${name%-*}" "$@" "${mesh[@]}" "--workdir=$RUNS/$name" || code=$?
    fi
    [ "$code" = 143 ] || return "$code"
  done
}

demonstrations=(--config.data.demonstrations="$DATA/demonstrations.jsonl")
text=(--config.data.text="$DATA/text.jsonl")

stage sft --config="sft:$SIZE" --model="$POLICY_BASE" "${demonstrations[@]}"
stage rl_init --config="rl_init:$SIZE" --model="$POLICY_BASE" "${demonstrations[@]}" "${text[@]}"
stage sft-reward --config="sft:$REWARD_SIZE" --model="$REWARD_BASE" "${demonstrations[@]}"
stage reward --config="reward:$REWARD_SIZE" --model="$RUNS/sft-reward" \
  --config.data.comparisons="$DATA/comparisons.jsonl" "${demonstrations[@]}"
stage ppo --config="ppo:$SIZE" --model="$RUNS/rl_init" --config.reward_model="$RUNS/reward" \
  --config.data.prompts="$DATA/prompts.jsonl" "${text[@]}"
[ "${DRY_RUN:-0}" = 1 ] || instructjax report --workdir="$RUNS/ppo"

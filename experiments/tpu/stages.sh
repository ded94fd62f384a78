#!/usr/bin/env bash
# The stages of a run in their order, on one host or on every worker of a slice.  Run again, it goes on where it stopped.
# On SIGTERM or Ctrl-C the running stage saves, and the script leaves with its exit code.
set -euo pipefail
: "${DATA:?the folder of the data}" "${RUNS:?the folder of the runs}" "${SIZE:?1.3b, 6b or 175b}" "${REWARD_SIZE:?6b}"
: "${MESH:?data=1,fsdp=8,model=1}" "${POLICY_BASE:?a pretrained model}" "${REWARD_BASE:?a pretrained model}"
[ -z "${CACHE:-}" ] || export JAX_COMPILATION_CACHE_DIR="$CACHE"

mesh=() distributed=()
for axis in ${MESH//,/ }; do mesh+=("--config.mesh.$axis"); done
case "${DISTRIBUTED:-0}" in
  0) ;;
  1) distributed=(--distributed) ;;                # a TPU slice, or Slurm: jax finds the others
  *) distributed=("--distributed=$DISTRIBUTED") ;; # HOST:PORT,PROCESSES,INDEX
esac

child='' stopped=0 signals=0
stop() { stopped=$1 signals=$((signals + 1)); }
pass_on() { [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true; }
trap 'stop 143; pass_on' TERM
trap 'stop 130' INT # a terminal sends it to the stage too

# supervised COMMAND...: runs it in the background and waits, as bash handles no signal before a command in the
# foreground has ended.  A signal ends the waiting, and not the command: only then is it waited for again.
supervised() {
  local code=0 seen=$signals
  [ "$stopped" = 0 ] || return "$stopped"
  (trap - INT TERM && exec "$@") &
  child=$!
  [ "$stopped" = 0 ] || pass_on # it came before the number of the process was known
  wait "$child" || code=$?
  while [ "$signals" != "$seen" ]; do
    seen=$signals code=0
    wait "$child" || code=$?
  done
  child=''
  return "$code"
}

# stage NAME OPTIONS...: one stage, which ends at once if it is finished.  Where it alone was preempted (exit code 143)
# it is gone on with at once, as the state was saved.
stage() {
  local name=$1 code=0
  shift
  local command=(instructjax "${name%-*}" "$@" "${mesh[@]}" "--workdir=$RUNS/$name" --unless-finished "${distributed[@]}")
  if [ "${DRY_RUN:-0}" = 1 ]; then
    printf '%q ' "${command[@]}"
    printf '\n'
    return
  fi
  while true; do
    code=0
    supervised "${command[@]}" || code=$?
    if [ "$stopped" != 0 ]; then
      [ "$code" = 0 ] && exit "$stopped" # this stage is finished, the run is not
      exit "$code"
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
[ "${DRY_RUN:-0}" = 1 ] || supervised instructjax report --workdir="$RUNS/ppo" "${distributed[@]}"

#!/usr/bin/env bash
# One TPU VM or a whole slice, from clone to report.  TYPE says which (settings.sh).
#
#   DRY_RUN=1 experiments/tpu/pod.sh create     prints what would run
#   experiments/tpu/pod.sh create               asks for the slice and waits for it
#   experiments/tpu/pod.sh start                installs and starts the stages on all workers, and shows their logs
#   experiments/tpu/pod.sh watch                the same, again and again: a preempted slice is asked for anew
#   experiments/tpu/pod.sh stop                 lets the stages save and end
#   experiments/tpu/pod.sh logs | report | delete
#
# The stages run on when the connection or this script ends; another `start` or `watch` shows them again.
set -euo pipefail
here=$(dirname "$0")
source "$here/settings.sh"
at=(--project="$PROJECT" --zone="$ZONE")

on_all() { run gcloud compute tpus tpu-vm ssh "$NAME" "${at[@]}" --worker=all --command="$1"; }

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${at[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
  local spot=()
  [ "$SPOT" = 1 ] && spot=(--spot)
  run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${at[@]}" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "${spot[@]}"
  [ "${DRY_RUN:-0}" = 1 ] && return
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in FAILED | SUSPENDED) echo "the request ended as $(state)" >&2; return 1 ;; esac
    sleep 30
  done
}

delete() { run gcloud compute tpus queued-resources delete "$NAME" "${at[@]}" --force --quiet; }

# What has been started runs detached under a lock: a second start shows it and starts nothing (worker.sh).
start() {
  run gcloud compute tpus tpu-vm scp "$here/worker.sh" "$here/stages.sh" "$NAME:" "${at[@]}" --worker=all
  on_all "$(exported) bash worker.sh"
}

watch() {
  local code
  while true; do
    [ "$(state)" = ACTIVE ] || { delete || true; create; }
    start && return
    code=$?
    [ "$code" = 2 ] && { echo "stopped by an error that you can mend; see above, then delete or watch again" >&2; return 2; }
    [ "${DRY_RUN:-0}" = 1 ] && return
    echo "the run stopped; the slice is $(state)" >&2
    sleep 30
  done
}

stop() { on_all "bash worker.sh stop"; }

# The runs as an address, where they are in the mounted bucket; else as they are named.
address() {
  case "$RUNS" in
    "/mnt/$BUCKET"/*) echo "gs://$BUCKET/${RUNS#"/mnt/$BUCKET/"}" ;;
    *) echo "$RUNS" ;;
  esac
}

# A folder that is in no bucket is read on the first worker.
logs() {
  case "$(address)" in
    gs://*) run gcloud storage cat --range=-8000 "$(address)/*/metrics.jsonl" ;;
    *) run gcloud compute tpus tpu-vm ssh "$NAME" "${at[@]}" --worker=0 --command="tail -n 40 $RUNS/*/metrics.jsonl" ;;
  esac
}

report() {
  case "$(address)" in
    gs://*) run gcloud storage cp "$(address)/ppo/report.html" "$NAME.html" ;;
    *) run gcloud compute tpus tpu-vm scp "$NAME:$RUNS/ppo/report.html" "$NAME.html" "${at[@]}" --worker=0 ;;
  esac
}

case "${1:-}" in
  create | start | watch | stop | logs | report | delete) "$1" ;;
  *) sed -n '2,12p' "$0" >&2; exit 2 ;;
esac

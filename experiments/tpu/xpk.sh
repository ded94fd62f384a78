#!/usr/bin/env bash
# The same run on GKE through xpk (pip install xpk): the image, the cluster, the workload.
#
#   DRY_RUN=1 experiments/tpu/xpk.sh image      prints what would run
#   experiments/tpu/xpk.sh image | cluster | start | logs | delete
#
# `start` restarts the workload up to RESTARTS times, after preemption too; each start goes on from the last checkpoint.
# An exit code below 127 is an error, which xpk does not restart.  The stages have GRACE seconds to save.
# The nodes need access to the bucket, which the Cloud Storage FUSE driver mounts (`xpk storage attach`).
set -euo pipefail
source "$(dirname "$0")/settings.sh"
: "${CLUSTER:=$NAME}" "${SLICES:=1}" "${RESTARTS:=100}" "${GRACE:=300}" "${IMAGE:=gcr.io/$PROJECT/instructjax:$REVISION}"
at=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")

image() {
  run docker build --file="$(dirname "$0")/Dockerfile" --tag="$IMAGE" "$(dirname "$0")/../.."
  run docker push "$IMAGE"
}

cluster() {
  local spot=()
  [ "$SPOT" = 1 ] && spot=(--spot)
  run xpk cluster create "${at[@]}" --tpu-type="$TYPE" --num-slices="$SLICES" --enable-gcsfuse-csi-driver "${spot[@]}"
  run xpk storage attach "$NAME-runs" "${at[@]}" --type=gcsfuse --bucket="$BUCKET" --mount-point="/mnt/$BUCKET" \
    --readonly=false --size=1000 --auto-mount=true
}

# xpk signals the process of the command.  `exec` makes that the script, which passes SIGTERM on.
start() {
  run xpk workload create "${at[@]}" --workload="$NAME" --tpu-type="$TYPE" --num-slices="$SLICES" \
    --max-restarts="$RESTARTS" --termination-grace-period-seconds="$GRACE" --docker-image="$IMAGE" \
    --command="exec env $(exported) DISTRIBUTED=1 bash experiments/tpu/stages.sh"
}

logs() { run kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$NAME" --tail=40; }

delete() { run xpk workload delete "${at[@]}" --workload="$NAME"; }

case "${1:-}" in
  image | cluster | start | logs | delete) "$1" ;;
  *) sed -n '2,9p' "$0" >&2; exit 2 ;;
esac

#!/usr/bin/env bash
# A bucket for data and runs.  Its hierarchical namespace makes the renaming of a folder atomic: a checkpoint is there
# whole or not at all, on the mounted bucket as on a disk.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
run gcloud storage buckets create "gs://$BUCKET" --project="$PROJECT" --location="${ZONE%-*}" \
  --uniform-bucket-level-access --enable-hierarchical-namespace

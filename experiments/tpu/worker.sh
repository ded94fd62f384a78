#!/usr/bin/env bash
# On every worker of a slice: Python, InstructJAX at REVISION, the bucket as a folder, then the stages.
#
# All of it runs detached, so that it outlives the connection, and one at a time.  Its log is shown here until it ends;
# where it runs already, the log is shown and nothing is started.  The exit code is that of the run.
set -euo pipefail

# The run itself, from a copy of the scripts: bash reads them while it runs, and the next start may bring others.
install() {
  : "${NAME:?}" "${BUCKET:?}" "${REPOSITORY:?}" "${REVISION:?}"
  export PATH="$HOME/.local/bin:$PATH"

  python3 -m pip install --quiet --user uv
  [ -d instructjax ] || git clone --quiet "$REPOSITORY" instructjax
  git -C instructjax fetch --quiet origin "$REVISION"
  git -C instructjax checkout --quiet FETCH_HEAD
  [ -d venv ] || uv venv --quiet --python 3.12 venv
  uv pip install --quiet --python venv/bin/python --require-hashes -r instructjax/requirements.lock
  # What is pinned there stays, and the rest comes: libtpu, and the clients of buckets.
  uv pip install --quiet --python venv/bin/python -e "./instructjax[tpu,gcs]"

  if ! mountpoint -q "/mnt/$BUCKET"; then
    command -v gcsfuse >/dev/null || {
      echo "deb [signed-by=/usr/share/keyrings/gcsfuse.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null
      sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse
    }
    sudo mkdir -p "/mnt/$BUCKET" && sudo chown "$(id -un)" "/mnt/$BUCKET"
    gcsfuse --implicit-dirs "$BUCKET" "/mnt/$BUCKET" 9>&- # it stays, and must not keep the lock
  fi
}

# The lock is file 9, which every process of the run has inherited: it is free when the last of them has ended.
start() {
  mkdir -p run
  exec 9>>run/lock
  if flock --nonblock 9; then
    rm -f run/code
    cp worker.sh stages.sh run/
    : >run/log
    setsid bash run/worker.sh detached >>run/log 2>&1 </dev/null &
    local lines=+1
  else
    echo "$(hostname): a run is going on here, and nothing is started; this is the end of its log" >&2
    local lines=40
  fi
  exec 9>&-
  flock --shared run/lock true &
  tail --lines="$lines" --follow --pid=$! run/log
  [ -s run/code ] || { echo "$(hostname): the run was killed" >&2; return 1; }
  local code
  code=$(cat run/code)
  echo "$(hostname): the run ended with exit code $code" >&2
  return "$code"
}

# SIGTERM goes to all processes of the run; this one stays to write the exit code.
detached() {
  trap : TERM INT HUP
  echo $$ >run/pid
  local code=0
  bash run/worker.sh stages || code=$?
  echo "$code" >run/code
}

stop() {
  mkdir -p run
  if flock --nonblock run/lock true; then
    echo "$(hostname): no run is going on here" >&2
  else
    kill -TERM -- "-$(cat run/pid)"
  fi
}

case "${1:-start}" in
  start | detached | stop) "${1:-start}"; exit ;;
  stages) install; PATH="$PWD/venv/bin:$PATH" DISTRIBUTED=1 exec bash run/stages.sh ;;
esac

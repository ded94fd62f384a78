#!/usr/bin/env bash
# On every worker of a slice: Python, InstructJAX at REVISION, the bucket as a folder, then the stages.
set -euo pipefail
: "${NAME:?}" "${BUCKET:?}" "${REPOSITORY:?}" "${REVISION:?}"
export PATH="$HOME/.local/bin:$PATH"

python3 -m pip install --quiet --user uv
[ -d instructjax ] || git clone --quiet "$REPOSITORY" instructjax
git -C instructjax fetch --quiet origin "$REVISION" && git -C instructjax checkout --quiet FETCH_HEAD
[ -d venv ] || uv venv --quiet --python 3.12 venv
uv pip install --quiet --python venv/bin/python --require-hashes -r instructjax/requirements.lock
version=$(venv/bin/python -c 'import importlib.metadata as m; print(m.version("jax"))')
uv pip install --quiet --python venv/bin/python "jax[tpu]==$version"
uv pip install --quiet --python venv/bin/python --no-deps -e instructjax

if ! mountpoint -q "/mnt/$BUCKET"; then
  command -v gcsfuse >/dev/null || {
    echo "deb [signed-by=/usr/share/keyrings/gcsfuse.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/gcsfuse.asc >/dev/null
    sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse
  }
  sudo mkdir -p "/mnt/$BUCKET" && sudo chown "$USER" "/mnt/$BUCKET"
  gcsfuse --implicit-dirs "$BUCKET" "/mnt/$BUCKET"
fi

PATH="$PWD/venv/bin:$PATH" DISTRIBUTED=1 bash stages.sh

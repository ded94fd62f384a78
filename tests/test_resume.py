"""A run that is killed and started again ends where an uninterrupted one does, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import chain
import numpy as np
import pytest
from test_stages import data, leaves  # noqa: F401

PLANS = [
  "pretrain:write:3", "final:commit:5", "sft:step:2", "rl_init:commit:3", "reward:line:2", "ppo:step:2", "ppo:write:3",
  "ppo:committed:4", "ppo:term:5", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def launch(data, tmp_path_factory):  # noqa: F811
  """Starts `chain.py` and returns how it ended."""
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
  env = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    "JAX_COMPILATION_CACHE_DIR": cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
  }

  def start(runs, plan=""):
    command = [sys.executable, "-W", "error::ResourceWarning", chain.__file__, str(data), str(runs), plan]
    return subprocess.run(command[: 6 + bool(plan)], capture_output=True, text=True, env=env, check=False)

  return start


@pytest.mark.slow  # ten launches of a process, about 90 s
def test_killed_anywhere_it_ends_where_it_would_have(launch, tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert launch(whole).returncode == 0
  for plan in PLANS:
    run = launch(parts, plan)
    expected = 0 if not plan else 128 + signal.SIGTERM if ":term:" in plan else -signal.SIGKILL
    assert run.returncode == expected, f"{plan}: {run.returncode}\n{run.stderr[-3000:]}"
    assert "Traceback" not in run.stderr, plan
    if ":term:" in plan:
      assert "ppo: stopped at step 5 of 6; run the same command again to go on from there" in run.stderr
  for stage in chain.STAGES:
    same(whole / stage, parts / stage, stage)


def same(whole: Path, parts: Path, stage: str) -> None:
  """The same bytes of metrics, the same checkpoints kept, the same arrays in the last one and in what is left."""
  lines = (whole / "metrics.jsonl").read_text()
  assert (parts / "metrics.jsonl").read_text() == lines
  steps = [json.loads(line)["step"] for line in lines.splitlines() if "eval/" not in line]
  assert steps == list(range(1, len(steps) + 1))
  names = lambda folder: sorted(str(path.relative_to(folder)) for path in (folder / "checkpoints").glob("*/*"))
  assert names(whole) == names(parts)
  for kind in (stage, "final"):
    one, other = leaves(whole, kind), leaves(parts, kind)
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name], err_msg=f"{stage} {kind} {name}")
  if stage == "ppo":
    assert leaves(whole, stage)["kl_coef"] != np.float32(0.02)
    assert any(name.startswith("ema/") for name in leaves(whole, stage))

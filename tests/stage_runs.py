"""Stages through the command line on tiny files, for the tests: how one is run, what it left, and
finished runs to start from.

The finished runs are made once for all tests of a process, which read them and change nothing in
them.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from instructjax.commands import cli
from instructjax.runs.loop import OF_MACHINE

SMALL = ["--config.data.prompt=12", "--config.data.response=12"]
TUNE = [*SMALL, "--config.epochs=1", "--config.batch=4"]
WORDS = ["good", "bad", "fine", "poor", "great"]


def written(folder: Path) -> Path:
  """Twelve demonstrations, eight comparisons, eight prompts and some text."""
  rows = {
    "demonstrations": [{"prompt": f"say {i}", "completion": WORDS[i % 5]} for i in range(12)],
    "comparisons": [
      {"prompt": f"say {i}", "completions": WORDS[: 2 + i % 3], "ranks": [1, 2, 2, 4][: 2 + i % 3]}
      for i in range(8)
    ],
    "prompts": [{"prompt": f"say {i}"} for i in range(8)],
    "text": [{"text": "the quick brown fox jumps over the lazy dog " * 4} for _ in range(8)],
  }
  for name, part in rows.items():
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
  return folder


def run(stage: str, workdir: Path, *options: str) -> int:
  return cli.main([stage, f"--config={stage}:tiny", f"--workdir={workdir}", *options])


def files(data: Path, *names: str) -> list[str]:
  return [f"--config.data.{name}={data / name}.jsonl" for name in names]


def metrics(workdir: Path) -> list[dict]:
  """The lines of metrics.jsonl, without what the machine did: two equal runs differ in it."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [{name: row[name] for name in row if not name.startswith(OF_MACHINE)} for row in rows]


def leaves(workdir: Path, stage: str) -> dict[str, np.ndarray]:
  """Every array of the last checkpoint, as Orbax stored it, from however many processes."""
  import orbax.checkpoint as ocp

  from instructjax.runs.checkpoint import Checkpoints

  folder = Checkpoints(workdir / "checkpoints" / stage)
  with ocp.CheckpointManager(
    folder.folder, item_handlers={"state": ocp.StandardCheckpointHandler()}
  ) as manager:
    found = manager.item_metadata(folder.latest())["state"]
    whole = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), dict(found))
    restored = manager.restore(
      folder.latest(), args=ocp.args.Composite(state=ocp.args.StandardRestore(whole))
    )["state"]
  return {name: np.asarray(leaf) for name, leaf in restored.items()}


def pretrain(data, workdir, *options):
  text = f"--config.data.valid={data / 'text.jsonl'}"
  size = [
    "--config.data.length=24",
    "--config.batch=4",
    "--config.steps=6",
    "--config.optimizer.warmup=2",
  ]
  return run("pretrain", workdir, *files(data, "text"), text, *size, *options)


def ppo(data, workdir, init, judge, *options):
  size = [
    "--config.batch=8",
    "--config.iterations=4",
    "--config.ppo.minibatches=2",
    "--config.sampling.response=6",
  ]
  size += ["--config.data.prompt=12", "--config.data.length=24", "--config.ptx_ratio=1"]
  models = [f"--model={init}", f"--config.reward_model={judge}"]
  return run("ppo", workdir, *files(data, "prompts", "text"), *models, *size, *options)


def stop_after(monkeypatch, count):
  """Ctrl-C while the batch after step `count` is prepared."""
  from instructjax.runs import loop
  from instructjax.stages import running

  def interrupted(step, state, batches, **settings):
    def limited(i):
      if i == count:
        raise KeyboardInterrupt
      return batches(i)

    return loop.fit(step, state, limited, **settings)

  monkeypatch.setattr(running, "fit", interrupted)


# --- finished runs ---


@pytest.fixture(scope="session")
def data(tmp_path_factory):
  return written(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """The folder of the runs below, each under the name of its stage."""
  return tmp_path_factory.mktemp("finished")


@pytest.fixture(scope="session")
def base(data, finished):
  assert pretrain(data, finished / "pretrain") == 0
  return finished / "pretrain"


@pytest.fixture(scope="session")
def sft_run(data, finished, base):
  options = [*files(data, "demonstrations"), f"--model={base}", *TUNE, "--config.model.dropout=0.1"]
  assert run("sft", finished / "sft", *options) == 0
  return finished / "sft"


@pytest.fixture(scope="session")
def init_run(data, finished, base):
  options = [
    *files(data, "demonstrations", "text"),
    f"--model={base}",
    *TUNE,
    "--config.top=1",
    "--config.trunk_dtype=float32",
    f"--config.data.valid={data / 'demonstrations.jsonl'}",
    f"--config.data.valid_text={data / 'text.jsonl'}",
    "--config.best=eval/nll_mixed",
  ]
  assert run("rl_init", finished / "rl_init", *options) == 0
  return finished / "rl_init"


@pytest.fixture(scope="session")
def reward_run(data, finished, sft_run):
  options = [*files(data, "comparisons", "demonstrations"), f"--model={sft_run}", *TUNE]
  assert (
    run(
      "reward", finished / "reward", *options, f"--config.data.valid={data / 'comparisons.jsonl'}"
    )
    == 0
  )
  return finished / "reward"

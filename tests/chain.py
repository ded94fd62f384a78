"""All five stages in one process, which ends itself where the plan says: `python tests/chain.py
DATA RUNS STAGE:POINT:STEP`.

`python tests/chain.py DATA RUNS PLAN wide` runs shorter ones on a mesh of 2 x 2 x 2 devices, and
then samples; with `--distributed=...` after it, as one of several processes.  With `ppo` for
`wide` PPO runs alone, from models that are there.

Points, at a step of a stage (or of `final`, the model that pretraining leaves):
  step       the step is running (PPO samples first)
  line       half of the step's line is in metrics.jsonl
  write      half of the files of its checkpoint are written
  commit     all files are written, the checkpoint is not yet renamed
  committed  the checkpoint is complete, the one before is not yet deleted
  term       SIGTERM instead of SIGKILL while the step runs
Without a plan it runs to the end.  Finished stages are passed over, as by anyone who runs a
script again.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

SMALL = [
  "--config.data.prompt=12",
  "--config.data.response=12",
  "--config.epochs=1",
  "--config.batch=4",
  "--config.micro=2",
]
KEPT = ["--config.checkpoint_every=1", "--config.keep=1"]


def options(stage: str, data: Path, runs: Path) -> list[str]:
  """Adaptive KL, averages, pretraining text and accumulation are on."""
  files = lambda *names: [f"--config.data.{name}={data / name}.jsonl" for name in names]
  size = ["--config.data.length=24", "--config.batch=4", "--config.steps=5", "--config.micro=2"]
  valid = lambda name: f"--config.data.valid={data / name}.jsonl"
  ppo = {
    "batch": 8,
    "iterations": 6,
    "sampling.response": 6,
    "data.prompt": 12,
    "data.length": 24,
    "ptx_ratio": 1,
    "ppo.epochs": 2,
    "ppo.minibatches": 2,
    "ppo.micro": 2,
    "ppo.ptx_micro": 2,
    "kl.control": "adaptive",
    "kl.horizon": 20.0,
    "kl.target": 0.01,
    "missing_eos.kind": "subtract",
    "best": "objective/scores",
  }
  return {
    "pretrain": [*files("text"), valid("text"), *size, "--config.best=eval/nll"],
    "sft": [
      *files("demonstrations"),
      f"--model={runs / 'pretrain'}",
      *SMALL,
      "--config.model.dropout=0.1",
    ],
    "rl_init": [
      *files("demonstrations", "text"),
      f"--model={runs / 'pretrain'}",
      *SMALL,
      "--config.text_share=0.5",
    ],
    "reward": [
      *files("comparisons", "demonstrations"),
      f"--model={runs / 'sft'}",
      *SMALL,
      valid("comparisons"),
    ],
    "ppo": [
      *files("prompts", "text"),
      f"--model={runs / 'rl_init'}",
      f"--config.reward_model={runs / 'reward'}",
      *(f"--config.{name}={value}" for name, value in ppo.items()),
    ],
  }[stage]


def wide(stage: str, data: Path, runs: Path) -> list[str]:
  """What differs on eight devices; no average is compared here, so the steps are few."""
  mesh = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "model")]
  prompts = [
    f"--config.data.prompts={data / 'prompts.jsonl'}",
    "--config.prompts=3",
    "--config.data.prompt=12",
  ]
  draw = [
    *prompts,
    f"--model={runs / 'sft'}",
    "--config.batch=4",
    "--config.n=2",
    "--config.sampling.response=4",
  ]
  few = ["--config.batch=8", "--config.micro=1"]
  return (
    mesh
    + {
      "pretrain": [*few, "--config.steps=2", "--config.checkpoint_every=0"],
      "sft": [*few, "--config.steps=2", "--config.checkpoint_every=0"],
      "rl_init": [*few, "--config.steps=2", "--config.checkpoint_every=0"],
      "reward": [*few, "--config.steps=3"],
      "ppo": ["--config.batch=32", "--config.iterations=2", "--config.ppo.epochs=1"],
      "sample": draw,
      "bestofn": [*draw, f"--config.rewards={runs / 'reward'}"],
    }[stage]
  )


STAGES = ("pretrain", "sft", "rl_init", "reward", "ppo")


def end(number: int = signal.SIGKILL) -> None:
  os.kill(os.getpid(), number)


def arm(stage: str, point: str, step: int) -> None:
  """Sets the trap of a stage."""
  from orbax.checkpoint._src.path import atomicity

  from instructjax.runs import writers
  from instructjax.stages import running

  fit, append, finalize = running.fit, writers.append, atomicity.AtomicRenameTemporaryPath.finalize

  def trapped(one, state, batches, **settings):  # batch i is asked for while step i runs
    trap = lambda i: batches(
      i if i != step else end(signal.SIGTERM if point == "term" else signal.SIGKILL) or i
    )
    return fit(one, state, trap, **settings)

  def half(path, rows):
    rows = list(rows)
    if rows[0].get("stage") == stage and rows[0]["step"] == step:
      with path.open("a") as file:
        file.write(writers.json.dumps(rows[0])[:20])
      end()
    append(path, rows)

  async def commit(self, *args, **kwargs):
    mine = Path(self.get_final()).parts[-2:] == (stage, str(step))
    if mine and point == "write":
      files = sorted(path for path in Path(self.get()).rglob("*") if path.is_file())
      for path in files[::2]:
        path.unlink()
    if mine and point != "committed":
      end()
    await finalize(self, *args, **kwargs)
    if mine:
      end()

  if point in ("step", "term"):
    running.fit = trapped
  elif point == "line":
    writers.append = half
  else:
    atomicity.AtomicRenameTemporaryPath.finalize = commit


def impatient() -> None:
  """The processes beside one that was killed miss it, and end, after 60 seconds without a sign of
  it, not after 100.
  """
  import jax

  jax.distributed.initialize = partial(jax.distributed.initialize, heartbeat_timeout_seconds=60)


def main(data: str, runs: str, plan: str = "", size: str = "", *more: str) -> int:
  from instructjax.commands import cli

  if more:
    impatient()
  stage, point, step = plan.split(":") if plan else ("", "", "0")
  for name in {"": STAGES, "wide": (*STAGES, "sample", "bestofn"), "ppo": ("ppo",)}[size]:
    if name == stage or (stage == "final" and name == "pretrain"):
      arm(stage, point, int(step))
    given = [*options(name, Path(data), Path(runs)), *KEPT] if name in STAGES else []
    given += wide(name, Path(data), Path(runs)) if size else []
    given += ["--config.iterations=3", "--config.sampling.response=4"] if size == "ppo" else []
    code = cli.main(
      [name, f"--config={name}:tiny", f"--workdir={Path(runs) / name}", *given, *more]
    )
    if code:
      return code
  return 0


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))

"""Every field of every stage with odd values, through the command line on tiny data.

A value that the settings take must matter: the run leaves something else than the run without it,
or it ends with one line that names the field. `test_fields.py` has the values that are refused.
"""

import shutil

import jax
import pytest
from stage_runs import leaves, written

from instructjax import models, settings
from instructjax.commands import cli
from instructjax.errors import UserError
from instructjax.models import heads
from instructjax.runs import origin
from instructjax.settings import fields

ODD = ("-1", "0", "nan", "1e30", "x", "maybe")
SCORE = """
def f(prompts, responses):
  return [len(text) + 0.1 * sum(map(ord, text)) for text in responses]
"""
SMALL_MODEL = {"model.dtype": "float32", "model.remat": "none"}
TRAINING = {
  **SMALL_MODEL,
  "seed": 1,
  "steps": 3,
  "batch": 4,
  "checkpoint_every": 2,
  "keep": 2,
  "evaluate_every": 1,
  "model.dropout": 0.1,
  "optimizer.lr": 0.01,
  "optimizer.warmup": 1,
  "optimizer.start": 0.5,
  "optimizer.final": 0.5,
  "optimizer.decay": 5,
  "optimizer.weight_decay": 0.1,
}
LENGTHS = {"data.prompt": 12, "data.response": 12}
DRAWS = {
  **SMALL_MODEL,
  "model.source": "policy",
  "data.prompts": "prompts.jsonl",
  "data.prompt": 12,
  "seed": 1,
  "prompts": 3,
  "batch": 2,
  "n": 2,
  "rewards": "python:mine.py:f",
  "sampling.response": 4,
  "sampling.top_k": 5,
}
# The settings of each stage under which every field matters, in a folder that holds these files.
RICH = {
  "pretrain": {
    **TRAINING,
    "model.source": "policy",
    "lora.rank": 2,
    "data.text": "text.jsonl",
    "data.valid": "text.jsonl",
    "data.length": 24,
  },
  "sft": {
    **TRAINING,
    **LENGTHS,
    "data.demonstrations": "demonstrations.jsonl",
    "data.valid": "demonstrations.jsonl",
    "select.reward": "python:mine.py:f",
    "select.prompts": "prompts.jsonl",
    "select.count": 2,
    "select.batch": 4,
    "select.response": 4,
  },
  "rl_init": {
    **TRAINING,
    **LENGTHS,
    "data.demonstrations": "demonstrations.jsonl",
    "data.text": "text.jsonl",
    "data.valid": "demonstrations.jsonl",
  },
  "reward": {
    **TRAINING,
    **LENGTHS,
    "data.comparisons": "comparisons.jsonl",
    "data.demonstrations": "demonstrations.jsonl",
    "data.valid": "comparisons.jsonl",
  },
  "ppo": {
    **SMALL_MODEL,
    "rl_init": "policy",
    "reward_model": "reward",
    "rewards": "python:mine.py:f",
    "data.prompts": "prompts.jsonl",
    "data.text": "text.jsonl",
    "data.prompt": 12,
    "data.length": 24,
    "sampling.response": 4,
    "seed": 1,
    "iterations": 2,
    "batch": 4,
    "ptx_ratio": 1,
    "ppo.minibatches": 2,
    "missing_eos.kind": "subtract",
    "kl.control": "adaptive",
    "policy_optimizer.lr": 0.01,
    "policy_optimizer.warmup": 0,
    "policy_optimizer.start": None,
    "checkpoint_every": 1,
    "keep": 2,
  },
  "bestofn": {**DRAWS, "gold": "python:mine.py:f"},
  "sample": {**DRAWS, "k": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A working directory with data, a policy, a reward model and a reward of one's own."""
  place = written(tmp_path_factory.mktemp("values"))
  (place / "mine.py").write_text(SCORE)
  config = origin.SHAPES["tiny"]
  params = models.build(config).init(jax.random.key(0))
  about = origin.describe(config, "bytes")
  origin.finish(place / "policy", 1, params, about, "policy")
  head = heads.init_head(jax.random.key(1), config.width)
  origin.finish(place / "reward", 1, {"lm": params, "head": head}, about, "reward")
  return place


def once_each():
  """{stage: its fields}, with a field of settings that stages share at the first of them alone."""
  seen, wanted = set(), {}
  for stage in RICH:
    loaded = settings.load(stage)
    wanted[stage] = []
    for field in fields.walk(loaded):
      parent, _, name = field.path.rpartition(".")
      owner = type(fields.getattr_path(loaded, parent)) if parent else type(loaded)
      if (owner, name) not in seen and name != "stage":
        seen.add((owner, name))
        wanted[stage].append(field)
  return wanted


FIELDS = once_each()


def accepted(config, field):
  """The odd values that the settings take for a field, and that are not what it has already."""
  for text in ("x",) if field.kind is str else ODD:
    try:
      changed = settings.override(config, [(field.path, text)])
    except UserError:
      continue
    if changed != config:
      yield text


def run(stage, workdir, values, capsys):
  """(exit code, what the command printed on stderr)."""
  shutil.rmtree(workdir, ignore_errors=True)
  options = [f"--config.{name}={fields.show(value)}" for name, value in values.items()]
  code = cli.main([stage, f"--config={stage}:tiny", f"--workdir={workdir}", *options])
  return code, capsys.readouterr().err


def left(workdir, stage):
  """What a run left: its lines, the names of its checkpoints, and the last parameters."""
  names = ("metrics.jsonl", "samples.jsonl", "draws.jsonl")
  lines = {name: (workdir / name).read_text() for name in names if (workdir / name).exists()}
  steps = sorted(path.name for path in workdir.glob(f"checkpoints/{stage}/*"))
  params = {}
  if (workdir / "checkpoints").exists():
    params = {name: leaf.tobytes() for name, leaf in leaves(workdir, "final").items()}
  return lines, steps, params


@pytest.mark.slow
@pytest.mark.parametrize("stage", RICH)
def test_a_value_that_is_taken_matters_or_is_named(stage, folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  config = settings.replaced(settings.load(f"{stage}:tiny"), RICH[stage])
  code, error = run(stage, folder / "run", RICH[stage], capsys)
  assert code == 0, error
  baseline = left(folder / "run", stage)
  wrong = []
  for field in FIELDS[stage]:
    for text in accepted(config, field):
      case = f"config.{field.path}={text}"
      code, error = run(stage, folder / "run", {**RICH[stage], field.path: text}, capsys)
      last = error.rstrip("\n").rpartition("error: ")[2]
      if code == 0 and left(folder / "run", stage) == baseline:
        wrong.append(f"{case}: nothing changed")
      elif code == 2 and ("\n" in last or not last.startswith(f"config.{field.path}")):
        wrong.append(f"{case}: {last}")
  assert not wrong, "\n".join(wrong)

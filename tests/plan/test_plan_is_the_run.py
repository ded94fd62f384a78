"""What `instructjax plan` counts is what a run holds: its state and frozen models, leaf by leaf.

A command is run until it has made them, or, for models that no machine here holds, until it is
about to. `programs.plan_stage` gives the shapes, types and shardings that are compared with them.
"""

import dataclasses
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from instructjax import models, settings
from instructjax.commands import stages
from instructjax.data.batches import branches, corpora
from instructjax.models import gpt, heads
from instructjax.plan import estimate, programs
from instructjax.runs import origin
from instructjax.settings.subjects import MeshSettings
from instructjax.stages import running

STAGES = ("pretrain", "sft", "rl_init", "reward", "ppo", "dpo", "grpo")
SIZES = ("1.3b", "6b", "175b")
FILES = {
  "pretrain": ("text",),
  "sft": ("demonstrations",),
  "rl_init": ("demonstrations", "text"),
  "reward": ("comparisons", "demonstrations"),
  "ppo": ("prompts", "text"),
  "dpo": ("comparisons",),
  "grpo": ("prompts",),
}
ROWS = {"data.prompt": 12, "data.response": 12, "batch": 8}
SMALL = {
  "pretrain": {"data.length": 24, "data.valid": "", "batch": 8},
  "sft": {**ROWS, "epochs": 1},
  "rl_init": {**ROWS, "epochs": 1},
  "reward": {**ROWS, "data.valid": ""},
  "dpo": {**ROWS, "data.valid": ""},
  "ppo": {"data.prompt": 12, "data.length": 24, "sampling.response": 6, "ptx_ratio": 1},
  "grpo": {"data.prompt": 12, "sampling.response": 6, "batch": 8},
}
COMPLETIONS = 4  # of a prompt in the tests' comparisons, at most
MESHES = {
  "one device": {},
  "fsdp": {"mesh.fsdp": 8},
  "data, fsdp and model": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.model": 2},
}
DTYPES = ("float32", "bfloat16", None)
PARTS = [
  {},
  *({"top": 1, "trunk_dtype": dtype} for dtype in DTYPES),
  *({"lora.rank": 2, "trunk_dtype": dtype} for dtype in DTYPES),
]
OUTSIDE = {"rewards": "python:length.py:score"}  # a score that no reward model gives
OF_PPO = [
  {"frozen_dtype": "bfloat16"},
  {"frozen_dtype": "bfloat16", "top": 1},
  {"frozen_dtype": "bfloat16", "lora.rank": 2, "lora.targets": "q,v"},
  {"ppo.ema_decay": None},
  {"ppo.ptx_coef": 0.0},
  OUTSIDE,
  {**OUTSIDE, "lora.rank": 2},
  {**OUTSIDE, "top": 1, "reward_model": ""},
]
WIDER = "125M"  # the name of a shape of the paper, under which the tests have a small one


class EndedError(Exception):
  """Ends a command where it has what the tests compare."""


def words(changes):
  """The name of a case."""
  return " ".join(f"{name}={value}" for name, value in changes.items()) or "all weights"


# --- what the command makes ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A working directory with a reward of one's own and finished runs of random weights.

  The policy and the reward model have the same weights, so that a trunk of theirs is held once.
  """
  place = tmp_path_factory.mktemp("models")
  (place / "length.py").write_text(
    "def score(prompts, responses):\n  return [0.0] * len(prompts)\n"
  )
  leave(place / "policy", "policy", origin.SHAPES["tiny"])
  leave(place / "reward", "reward", origin.SHAPES["tiny"])
  return place


def leave(place, kind, config):
  """A finished run with random weights."""
  params = models.build(config).init(jax.random.key(0))
  if kind == "reward":
    params = {"lm": params, "head": heads.init_head(jax.random.key(1), config.width)}
  origin.finish(place, 1, params, origin.describe(config, "bytes"), kind)


def settings_of(stage, preset, data, changes):
  """The settings of a stage on the tests' files."""
  files = {f"data.{name}": str(data / f"{name}.jsonl") for name in FILES[stage]}
  return settings.replaced(settings.load(f"{stage}:{preset}"), {**files, **changes})


def small_settings(stage, data, folder, changes):
  """The settings of a stage on small files and the models of `folder`."""
  sources = {"model.source": str(folder / "policy")}
  if stage == "ppo":
    sources = {"rl_init": str(folder / "policy"), "reward_model": str(folder / "reward")}
  if stage == "grpo":
    sources = {"rl_init": str(folder / "policy"), "rewards": f"python:{folder}/length.py:score"}
  return settings_of(stage, "tiny", data, {**SMALL[stage], **sources, **changes})


def made_by_the_command(config, monkeypatch, tmp_path):
  """What the command of a stage hands to its loop."""
  made = []

  def end(*arguments, **named):
    made.append(training(*arguments, **named))
    raise EndedError

  training = running.Training
  with monkeypatch.context() as patch:
    patch.setattr(running, "Training", end)
    with pytest.raises(EndedError):
      stages.stage_of(config.stage)(config, tmp_path / "run")
  return made[0]


def wired_by_the_command(config, monkeypatch, tmp_path):
  """(stage, the parameters that it starts from) as the command of a stage wires it.

  No parameter is made: a model is opened as the shapes of its table.
  """
  wired = []

  def end(stage, seed, *params):
    wired.append((stage, params))
    raise EndedError

  open_model = origin.open_model

  def open_policy(source, model_settings, seed):
    return open_model("", model_settings, seed)

  def open_reward_model(source, model_settings, opened=None):
    judge = open_model("", dataclasses.replace(model_settings, shape="6B"), 0)
    return judge._replace(params=judge.params, head=programs.scalar_head(judge.lm))

  with monkeypatch.context() as patch:
    patch.setattr(origin, "random_params", lambda lm, seed: programs.parameters(lm))
    patch.setattr(origin, "open_model", open_policy)
    patch.setattr(origin, "open_reward_model", open_reward_model)
    patch.setattr(running, "start", end)
    with pytest.raises(EndedError):
      stages.stage_of(config.stage)(config, tmp_path / "run")
  return wired[0]


# --- comparing ---


def described(tree):
  """{path: (shape, dtype, how it is split over the mesh)} of arrays or of their shapes."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path): (x.shape, x.dtype, spec_of(x)) for path, x in leaves}


def spec_of(x):
  """The mesh axes of each axis of an array; all None where it is whole on every device."""
  if not jax.sharding.get_abstract_mesh().axis_names:
    return ()
  where = jax.typeof(x).sharding if isinstance(x, jax.Array) else x.sharding
  spec = () if where is None else where.spec  # a constant of a traced function lies on no mesh
  return (*spec, *[None] * (len(x.shape) - len(spec)))


def planned_for(config, stage, shape, reward_shape):
  """The plan of a configuration, for packed comparisons of the lengths that a run's have.

  Without data a plan takes all of them to be as long as can be, which is the most that a run needs.
  """
  plan = partial(programs.plan_stage, config, shape, reward_shape, completions=COMPLETIONS)
  if config.stage not in ("reward", "dpo"):
    return plan()
  batch = stage.batch["comparisons"]
  learnt = batch.predictions.token.shape[-1] if batch.predictions else 0
  layout = branches.Layout(*batch.tokens.shape, *batch.rank.shape[2:], learnt)
  longest = plan().stage.batch["comparisons"]
  assert longest.tokens.shape[-1] >= layout.length
  assert longest.rank.shape[-1] == layout.completions
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(programs.reward, "planned_layout", lambda *args, **kwargs: layout)
    return plan()


def assert_planned(config, training, shape="tiny", reward_shape="tiny"):
  """The plan of a configuration has the state, the frozen models and the batch of a run."""
  planned = planned_for(config, training.stage, shape, reward_shape)
  state, frozen = planned.start()
  assert described(state) == described(training.state)
  assert described(frozen) == described(training.frozen)
  batch = corpora.place_batches(training.batches)(0)
  assert described(planned.stage.batch) == described(batch)


def every_case():
  """Each stage with each part that it may train; daily where the wiring or the part is another."""
  for stage in STAGES:
    for changes in PARTS:
      usual = changes.get("trunk_dtype", "bfloat16") == "bfloat16"
      daily = not changes or (usual and stage in ("sft", "reward", "ppo", "dpo", "grpo"))
      marks = () if daily else pytest.mark.slow
      yield pytest.param(stage, changes, id=f"{stage} {words(changes)}", marks=marks)


@pytest.mark.parametrize(("stage", "changes"), list(every_case()))
def test_every_stage_and_part_on_a_mesh(stage, changes, data, folder, monkeypatch, tmp_path):
  monkeypatch.chdir(folder)
  mesh = MESHES["data, fsdp and model"]
  config = small_settings(stage, data, folder, {**changes, **mesh})
  with running.devices(config.mesh):
    assert_planned(config, made_by_the_command(config, monkeypatch, tmp_path))


@pytest.mark.parametrize("changes", OF_PPO, ids=words)
def test_what_ppo_alone_has(changes, data, folder, monkeypatch, tmp_path):
  monkeypatch.chdir(folder)
  config = small_settings("ppo", data, folder, {**changes, **MESHES["data, fsdp and model"]})
  with running.devices(config.mesh):
    assert_planned(config, made_by_the_command(config, monkeypatch, tmp_path))


@pytest.mark.parametrize("mesh", ["one device", "fsdp"])
@pytest.mark.parametrize("changes", [{"top": 1}, {"lora.rank": 2}], ids=words)
@pytest.mark.parametrize("stage", ["sft", pytest.param("ppo", marks=pytest.mark.slow)])
def test_other_meshes(stage, changes, mesh, data, folder, monkeypatch, tmp_path):
  config = small_settings(stage, data, folder, {**changes, **MESHES[mesh]})
  with running.devices(config.mesh):
    assert_planned(config, made_by_the_command(config, monkeypatch, tmp_path))


@pytest.mark.parametrize("changes", [{}, {"top": 1}], ids=words)
def test_a_reward_model_of_another_shape(changes, data, folder, monkeypatch, tmp_path):
  """Its trunk is another one, and is held beside that of the policy."""
  config = gpt.GPTConfig(vocab_size=257, context=256, width=48, depth=3, heads=4)
  monkeypatch.setitem(origin.SHAPES, WIDER, config)
  leave(tmp_path / "wider", "reward", config)
  changes = {**changes, "reward_model": str(tmp_path / "wider"), "mesh.fsdp": 2}
  config = small_settings("ppo", data, folder, changes)
  with running.devices(config.mesh):
    training = made_by_the_command(config, monkeypatch, tmp_path)
    assert_planned(config, training, reward_shape=WIDER)
    assert bool(jax.tree.leaves(training.frozen.reward_trunk)) == (len(changes) > 2)


@pytest.mark.parametrize("changes", [{"top": 1}, {"lora.rank": 2}], ids=words)
def test_a_trunk_that_models_share_is_counted_once(changes, data):
  """The bytes of the frozen models, policy and reward model having the same trunk and not."""
  config = settings_of("ppo", "tiny", data, {**changes, "trunk_dtype": "float32"})
  with running.devices(MeshSettings(fsdp=2)):
    shared = programs.plan_stage(config, "tiny", "tiny").start()[1]
    apart = programs.plan_stage(config, "tiny", "gpt2-124M").start()[1]
    trunk = programs.per_device(shared.trunk)
    assert shared.reward_trunk is None and apart.reward_trunk is not None
    assert programs.per_device(apart.trunk) == trunk
    program, *_ = programs.build(config, "tiny", "tiny")
    assert estimate.shares(program)["frozen"] == trunk + programs.per_device(
      (shared.ref, shared.reward)
    )


# --- models that no machine here holds ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_the_presets(stage, size, data, folder, monkeypatch, tmp_path):
  changes = {"model.tokenizer": "bytes", "mesh.fsdp": 8}
  if stage == "ppo":
    changes |= {"rl_init": "policy", "reward_model": "reward"}
  elif stage == "grpo":
    changes |= {"rl_init": "policy", "rewards": f"python:{folder}/length.py:score"}
  else:
    changes["steps"] = 1
  if "text" in FILES[stage]:
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "a row of the paper " * 200}) + "\n")
    changes["data.text"] = str(tmp_path / "long.jsonl")
  config = settings_of(stage, size, data, changes)
  with running.devices(config.mesh):
    stage_of_run, params = wired_by_the_command(config, monkeypatch, tmp_path)
    planned = planned_for(config, stage_of_run, config.model.shape, "6B")
    state, frozen = jax.eval_shape(stage_of_run.init, programs.key_of(), *params)
    planned_state, planned_frozen = planned.start()
    assert described(planned_state) == described(state)
    assert described(planned_frozen) == described(frozen)
    assert described(planned.stage.batch) == described(stage_of_run.batch)


def numbers_of(shape):
  """(all parameters, those in matrices of the blocks) of a GPT, counted by hand."""
  config = origin.SHAPES[shape]
  width = config.width
  matrices = config.depth * 12 * width**2  # q, k, v, o, and up and down of four times the width
  small = config.depth * 13 * width + 2 * width  # their biases and two norms a layer; the last norm
  embeddings = (config.vocab_size + config.context) * width
  return matrices + small + embeddings, matrices


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_bytes_by_kind_equal_a_sum_by_hand(stage, size, data):
  config = settings_of(stage, size, data, {})
  shape = config.model.shape
  policy, policy_matrices = numbers_of(shape)
  judge, judge_matrices = numbers_of("6B")
  head = origin.SHAPES["6B"].width + 1
  trained, frozen, average = policy, 0, 0
  if stage == "reward":
    trained = judge + head
  if stage in ("dpo", "grpo"):
    frozen = 4 * policy - 2 * policy_matrices  # the reference
  if stage == "ppo":
    trained, average = policy + judge + head, policy
    # The reference and the reward model have their matrices in bfloat16.
    frozen = 4 * (policy + judge + head) - 2 * (policy_matrices + judge_matrices)
  with running.devices(MeshSettings()):
    state, frozen_models = programs.plan_stage(config, shape, "6B").start()
    kinds = jax.tree.leaves(programs.kinds_of_state(state))
    total = dict.fromkeys(estimate.KINDS, 0)
    for kind, leaf in zip(kinds, jax.tree.leaves(state), strict=True):
      total[kind] += programs.local_bytes(leaf)
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert total["params"] == 4 * trained
    assert total["optimizer"] == 8 * trained + 4 * len(counts)
    assert total["ema"] == 4 * average
    assert programs.per_device(frozen_models) == frozen


def test_the_sums_by_hand_are_those_of_the_paper():
  """Brown et al. 2020, Table 2.1, whose names are rounded; of 175B they print 174.6 billion."""
  billions = [numbers_of(shape)[0] / 1e9 for shape in ("1.3B", "6B", "175B")]
  assert billions[2] == pytest.approx(174.6, abs=0.1)
  assert all(math.isfinite(value) and value > 1 for value in billions)
  assert jnp.dtype("bfloat16").itemsize == 2

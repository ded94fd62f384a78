"""The trips of loops at drawn lengths are those of the functions that have the loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from instructjax import packs, ppo, settings, sharding
from instructjax.plan import lengths, programs, trips
from instructjax.plan.lengths import Lengths

CONFIGS = {
  # One row at once, where the accelerator of a plan would compute all of these small batches.
  "ppo": settings.replaced(settings.load("ppo:tiny"), {"ppo.rows_at_once": 1}),
  "sft": settings.replaced(settings.load("sft:tiny"), {"rows_at_once": 1}),
  "rl_init": settings.replaced(settings.load("rl_init:tiny"), {"batch": 24, "rows_at_once": 1}),
  "reward": settings.load("reward:tiny"),
  "dpo": settings.load("dpo:tiny"),
}
COMPLETIONS = 4


def parts_of(stage, fsdp=1):
  """The parts of a stage, and the mesh that they are wired for."""
  mesh = AbstractMesh((1, fsdp, 1), sharding.AXES, axis_types=(AxisType.Explicit,) * 3)
  with jax.sharding.use_abstract_mesh(mesh):
    planned = programs.plan_stage(CONFIGS[stage], "tiny", "tiny", completions=COMPLETIONS)
  return planned.stage.parts, mesh


def expected(stage, source, fsdp=1):
  """The trips of each part at these lengths, and those at full length that the part has."""
  parts, mesh = parts_of(stage, fsdp)
  batches = trips.batches_of(CONFIGS[stage], source, COMPLETIONS)
  with jax.sharding.use_abstract_mesh(mesh):
    return [(trips.expected(CONFIGS[stage], part, batches), part.trips) for part in parts]


@pytest.mark.parametrize("fsdp", [1, 4])
@pytest.mark.parametrize("stage", CONFIGS)
def test_full_lengths_give_the_trips_of_a_part(stage, fsdp):
  for at_lengths, full in expected(stage, "full", fsdp):
    assert at_lengths == full
    assert full  # every stage here has loops


@pytest.mark.parametrize("stage", CONFIGS)
def test_lengths_as_in_the_paper_need_fewer_parts(stage):
  for at_lengths, full in expected(stage, "paper"):
    assert set(at_lengths) == set(full)
    if "parts" in full:
      # Rows of text are full, whatever the demonstrations are.
      assert 1 <= at_lengths["parts"] < (0.8 if stage == "rl_init" else 0.6) * full["parts"]


def test_text_has_no_loops_whose_trips_vary():
  config = settings.replaced(CONFIGS["sft"], {"data.pack": False})
  mesh = AbstractMesh((1, 1, 1), sharding.AXES, axis_types=(AxisType.Explicit,) * 3)
  with jax.sharding.use_abstract_mesh(mesh):
    (part,) = programs.plan_stage(config, "tiny", "tiny").stage.parts
  assert trips.expected(config, part, trips.batches_of(config, "paper", 1)) == {}


def test_demonstrations_by_hand():
  """Packed rows of 224 tokens, one a part: 16 rows of 112 fill 8 of them, and one more token 16."""
  (part,), _ = parts_of("sft")
  half = np.full(16, 56)
  assert trips.of_batch(CONFIGS["sft"], part, Lengths(half, half)) == {"parts": 8}
  assert trips.of_batch(CONFIGS["sft"], part, Lengths(half + 1, half)) == {"parts": 16}


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("source", ["paper", "uniform"])
def test_episodes_are_packed_as_in_a_run(source, n, monkeypatch):
  # Rows of a prompt and two responses, so that some groups do not fit into one.
  monkeypatch.setattr(sharding, "positions_at_once", lambda *, learnt: 80)
  config = settings.replaced(CONFIGS["ppo"], {"batch": CONFIGS["ppo"].batch // n, "n": n})
  prompt_columns, response_columns = config.data.prompt, config.sampling.response
  length = prompt_columns + response_columns
  minibatch = config.episodes // config.ppo.minibatches
  (_, scoring, update), _ = parts_of("ppo")
  form = ppo.form_of(prompt_columns, response_columns, minibatch, config.n)
  scored = ppo.rows_at_once(minibatch, form, config.ppo, learnt=False)
  learnt = ppo.rows_at_once(minibatch, form, config.ppo, learnt=True)
  for number in range(3):
    batch = lengths.draws(source, prompt_columns, response_columns)(number, config.episodes)
    batch = batch._replace(prompt=np.repeat(batch.prompt[::n], n))
    columns = np.arange(length)
    valid = (columns >= prompt_columns - batch.prompt[:, None]) & (
      columns < prompt_columns + batch.response[:, None]
    )
    mask = valid[:, prompt_columns:]

    def count(episodes, rows, valid=valid, mask=mask):
      valid, mask = jnp.asarray(valid[episodes]), jnp.asarray(mask[episodes])
      layout = packs.lay_out(valid.astype(jnp.int32), valid, mask, rows, form)
      return int(layout.count)

    assert trips.of_batch(config, scoring, batch) == {"parts": count(slice(None), scored)}
    minibatches = [slice(i, i + minibatch) for i in range(0, config.episodes, minibatch)]
    assert trips.of_batch(config, update, batch) == {
      "parts": np.mean([count(m, learnt) for m in minibatches])
    }

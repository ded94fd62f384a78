"""The loops of a rollout, played on a host: by hand, and against those that really run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax import rollout, sharding
from instructjax.models import cache
from instructjax.plan import lengths
from instructjax.rollout import Sampling
from instructjax.stages import trips
from instructjax.types import Prompts


def of_rollout(cfg, columns, prompt, response):
  return trips.of_rollout(cfg, columns, np.asarray(prompt), np.asarray(response))


def test_two_slots_and_three_prompts_by_hand():
  """The prompts of 8 and 5 tokens are read first. The response to the latter ends with its first
  token, so that the third prompt is read before any step. Then rows of 3 and of 2 tokens need 2
  steps. A block has 8 columns: one holds prompts, another responses.
  """
  cfg = Sampling(response=3, slots=2)
  assert of_rollout(cfg, 8, [5, 3, 8], [1, 2, 3]) == {
    "refills": 2,
    "chunks": 1,
    "steps": 1,
    "tail": 0,
    "blocks": 2,
  }


def test_rows_of_a_prompt_wait_for_as_many_slots_by_hand():
  """Two slots, two rows a prompt. The first prompt, of 17 tokens, is read in 3 parts of 8 columns.

  One of its responses ends at once, and the other takes 2 steps until the second prompt, of 9
  tokens in 2 parts, is read. Its rows take a step. Prompts lie in 3 blocks and then in 2.
  """
  cfg = Sampling(response=3, slots=2, n=2)
  assert of_rollout(cfg, 20, [17, 9], [1, 3, 2, 2]) == {
    "refills": 2,
    "chunks": 2.5,
    "steps": 1.5,
    "tail": 0,
    "blocks": pytest.approx((4 + 4 + 3) / 3),
  }


def test_the_last_rows_move_together_by_hand():
  """Eight slots for eight rows, which two groups of 4 fill. After a step 4 rows are left, which
  take 4 steps more in 4 slots.
  """
  cfg = Sampling(response=6)
  made = of_rollout(cfg, 8, [8] * 8, [6, 6, 6, 6, 2, 2, 2, 2])
  assert made == {"refills": 2, "chunks": 1, "steps": 0.5, "tail": 4, "blocks": 2}


def test_blocks_of_the_cache_in_use_by_hand():
  """Blocks of 8 columns, 20 of a prompt and a ring of 12 from column 20 on: to column 31."""
  shape = rollout.Shape(prompts=1, slots=1, group=1, chunk=8, prompt=20, response=12, block=8)
  assert trips.blocks_in_use(shape, prompt=4, response=1, step=0) == 1  # 16 to 20
  assert trips.blocks_in_use(shape, prompt=5, response=4, step=3) == 2  # 15 to 23
  assert trips.blocks_in_use(shape, prompt=4, response=5, step=4) == 2  # 16 to 24
  assert trips.blocks_in_use(shape, prompt=4, response=2, step=12) == 2  # 16 to 20, and 31
  assert trips.blocks_in_use(shape, prompt=20, response=12, step=30) == 4  # all


def test_no_step_runs_where_every_response_ends_at_once():
  made = of_rollout(Sampling(response=3, slots=2), 8, [5, 3, 8], [1, 1, 1])
  assert made == {"refills": 2, "chunks": 1, "steps": 0, "tail": 0, "blocks": 0}


def counting_model(calls):
  """A model that computes nothing, and notes what it is asked for.

  `calls` gets (rows, columns, blocks of the cache in use) of each call.
  """
  lm = tiny.lm("gpt")

  def note(shape, blocks):
    calls.append((*shape, int(blocks)))

  def decode(params, tokens, valid, cached):
    place = jnp.where(valid, 0, cache.EMPTY)[..., None]
    position = cache.write(cached["position"][..., None], place, cached["index"])[..., 0]
    if calls is not None:
      _, blocks = cache.in_use(position)
      jax.debug.callback(lambda blocks: note(tokens.shape, blocks), blocks)
    split = sharding.spec("batch", None, None)
    hidden = jnp.zeros((*tokens.shape, lm.width), jnp.float32, out_sharding=split)
    return hidden, cached | {"position": position}

  def init_cache(rows, length, block, int8_cache):
    position = cache.empty_positions(rows, length, block)
    return {"position": position, "index": jnp.int32(0)}

  return lm._replace(context=256, decode=decode, init_cache=init_cache)


def sampled(lm, cfg, columns, prompt, response):
  """The positions that a real rollout computes, whose rows end by a schedule."""
  valid = np.arange(columns) >= columns - prompt[:, None]
  ends = jnp.asarray(response, jnp.int32)
  prompts = Prompts(jnp.asarray(valid, jnp.int32), jnp.asarray(valid), ends)
  params = tiny.lm("gpt").init(jax.random.key(0))
  if sharding.is_sharded():
    params = sharding.place(params, sharding.shardings(lm.table))
    prompts = sharding.place_batch(prompts)
  run = jax.jit(lambda params, prompts, key: rollout.sample(lm, params, prompts, key, cfg))
  rows = jax.block_until_ready(run(params, prompts, jax.random.key(1)))
  np.testing.assert_array_equal(rows.mask.sum(1), response)
  return float(rows.computed.sum())


def positions(made, shape, shards):
  """The positions of so many trips; with up to 8 slots there is one tail, in half as many."""
  read = made["refills"] * made["chunks"] * shape.chunk * shape.group
  steps = made["refills"] * made["steps"] * shape.slots + made["tail"] * (shape.slots // 2)
  return shards * (read + steps)


@pytest.mark.parametrize("source", ["paper", "full"])
@pytest.mark.parametrize("slots", [3, 8])
def test_trips_are_those_of_a_real_rollout(slots, source):
  cfg = Sampling(response=40, slots=slots)
  prompt, response = lengths.draws(source, 40, 40)(0, 24)
  calls = []
  computed = sampled(counting_model(calls), cfg, 40, prompt, response)
  made = trips.of_rollout(cfg, 40, prompt, response)
  shape = rollout.shape_of(cfg, 24, 40)
  assert positions(made, shape, shards=1) == pytest.approx(computed)
  jax.effects_barrier()
  reads = [call for call in calls if call[1] == shape.chunk]
  steps = [call for call in calls if call[:2] == (slots, 1)]
  tail = [call for call in calls if call[:2] == (slots // 2, 1) and slots == 8]
  assert len(reads) + len(steps) + len(tail) == len(calls)
  assert made["refills"] * made["chunks"] == pytest.approx(len(reads))
  assert made["refills"] * made["steps"] == pytest.approx(len(steps))
  assert made["tail"] == len(tail)
  assert made["blocks"] == pytest.approx(np.mean([count for *_, count in steps + tail]))


def test_devices_refill_together():
  """Each device of the batch has a queue, and reads where another takes prompts."""
  cfg = Sampling(response=12, slots=8)
  prompt, response = lengths.draws("uniform", 20, 12)(0, 48)
  # The queue of the first device is empty long before that of the others.
  response[:12] = 1
  prompt[:12] = np.arange(9, 21)
  lm = counting_model(None)
  with jax.set_mesh(sharding.make_mesh(1, 4, 2)):
    computed = sampled(lm, cfg, 20, prompt, response)
    made = trips.of_rollout(cfg, 20, prompt, response)
    shape = rollout.shape_of(cfg, 48, 20)
  assert positions(made, shape, shards=4) == pytest.approx(computed)

"""Every collective of a compiled step is intended: what each stage exchanges on a 2x2x2 mesh, by
kind and mesh axes.

A new row is either a mistake (an array that lost its sharding) or belongs into the table with
its reason.
"""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
import tiny

from instructjax import optim, ppo, reward, rollout, sft, sharding, steps
from instructjax.plan import collectives
from instructjax.rollout import Sampling

LM = tiny.lm("llama")
ADAM = optim.adamw(1e-3)


def params():
  return sharding.place(LM.init(jax.random.key(0)), sharding.shardings(LM.table))


def judge():
  table = {name: leaf for name, leaf in LM.table.items() if name != "head"}
  reward_model = tiny.reward_model(LM, 7)
  return {
    "lm": sharding.place(reward_model["lm"], sharding.shardings(table)),
    "head": sharding.replicate(reward_model["head"]),
  }


def sft_step():
  state = steps.init_state(jax.random.key(0), params(), ADAM)
  step = steps.compiled(partial(sft.sft_step, lm=LM, tx=ADAM), state)
  return step.lower(state, {}, sharding.place_batch(tiny.demonstrations(LM, rows=8)))


def reward_step():
  state = steps.init_state(jax.random.key(0), judge(), ADAM)
  step = steps.compiled(partial(reward.reward_step, lm=LM, tx=ADAM), state)
  return step.lower(state, {}, sharding.place_batch(tiny.comparisons(LM, rows=8, k=3, shards=8)))


def sampling():
  run = jax.jit(partial(rollout.sample, LM, cfg=Sampling(response=4, eos=(3,))))
  return run.lower(params(), sharding.place_batch(tiny.prompts(LM, rows=8)), jax.random.key(0))


def ppo_parts():
  tx = optim.by_subtree(policy=ADAM, value=ADAM)
  config = ppo.PPO(
    LM, tx, Sampling(response=4, eos=(3,)), ppo.PPOConfig(minibatches=2, ptx_coef=1.0)
  )
  frozen = ppo.Frozen({}, params(), judge())
  trained = ppo.init_params(frozen.ref, frozen.reward)
  state = steps.init_state(
    jax.random.key(0), trained, tx, ema={"policy": trained["policy"]}, kl_coef=0.02
  )
  prompts = sharding.place_batch(tiny.prompts(LM, rows=16))
  rows = jax.eval_shape(
    partial(ppo.rollout, ppo=config), state.params, frozen, prompts, jax.random.key(0)
  )
  return config, state, frozen, rows


def credit():
  config, state, frozen, rows = ppo_parts()
  score = sharding.place_batch(jnp.zeros(16))
  return jax.jit(partial(ppo.credit, ppo=config)).lower(
    state.params, frozen, rows, score, state.kl_coef
  )


def improve():
  config, state, frozen, rows = ppo_parts()
  run = partial(ppo.credit, ppo=config)
  exp, _ = jax.eval_shape(run, state.params, frozen, rows, jnp.zeros(16), state.kl_coef)
  text = sharding.place_batch(tiny.text(LM, rows=32))
  step = steps.compiled(partial(ppo.improve, ppo=config), state)
  return step.lower(state, frozen, exp, text)


PARAMETERS = ("all-gather", ("fsdp",))  # made whole along fsdp just before use
BATCH = (
  "all-reduce",
  ("data", "fsdp"),
)  # sums over the rows: token counts, losses, metrics, gradients
PRODUCTS = (
  "all-reduce",
  ("model",),
)  # partial sums of products over heads, hidden units and the vocabulary
NORMS = (
  "all-reduce",
  ("data", "fsdp", "model"),
)  # the norm of a gradient; in the sampler: has every row ended?
# The gradient of a matrix is summed along one axis after the other: in parts along fsdp, then what
# a device keeps of it along data. On a CPU each step is an all-reduce, of which a device takes its
# part.
PARTS = ("all-reduce", ("fsdp",))
KEPT = ("all-reduce", ("data",))
MASSES = ("all-gather", ("model",))  # of the blocks of the vocabulary, one of which is drawn
SHUFFLE = ("all-gather", ("data",))  # rows of a random minibatch come from every device
LENGTHS = ("all-gather", ("data", "fsdp"))  # of all episodes, by which they are dealt to devices
TABLE = {
  sft_step: {PARAMETERS, BATCH, PRODUCTS, NORMS, PARTS, KEPT},
  reward_step: {PARAMETERS, BATCH, PRODUCTS, NORMS, PARTS, KEPT},
  sampling: {PARAMETERS, BATCH, PRODUCTS, NORMS, MASSES},
  credit: {PARAMETERS, BATCH, PRODUCTS},
  improve: {PARAMETERS, BATCH, PRODUCTS, NORMS, PARTS, KEPT, SHUFFLE, LENGTHS},
}


@pytest.mark.parametrize("mesh", [(2, 2, 2)], indirect=True, ids=str)
@pytest.mark.parametrize("stage", list(TABLE), ids=lambda stage: stage.__name__)
def test_the_collectives_are_those_listed(mesh, stage):
  text = stage().compile().as_text()
  exchanged = {(c.kind, c.axes) for c in collectives.read(text, dict(mesh.shape))}
  assert not exchanged - TABLE[stage]
  assert not TABLE[stage] - exchanged - {NORMS, PARTS, KEPT}

"""With `JAX_ENABLE_X64=1` every stage runs, and stays in float32 and int32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from instructjax import dpo, optim, ppo, reward, rollout, sft, steps
from instructjax.models import heads
from instructjax.ppo import PPOConfig
from instructjax.rollout import Sampling

ADAM = optim.adamw(optim.cosine(1e-3, 10), clip=1.0)
SAMPLING = Sampling(response=4, eos=(3,))


def types_of(tree):
  return [str(leaf.dtype) for leaf in jax.tree.leaves(tree)]


def shapes_of_stages(family):
  """What each stage gives: (the state before, the state after, metrics), as shapes and types.

  A type is decided while a function is traced, and so is a mismatch of types an error: nothing
  has to run for it.
  """
  lm = tiny.lm(family, dropout=0.1)
  params = lm.init(jax.random.key(0))

  def shapes(step, state, *inputs, **settings):
    return state, *jax.eval_shape(partial(step, **settings), state, *inputs)

  fresh = partial(steps.init_state, jax.random.key(1))
  demonstrations = tiny.demonstrations(lm, rows=4)
  for packed in (False, True):
    cfg = sft.SFTConfig(micro=2, packed=packed, text_rows=1, text_share=0.1)
    yield shapes(sft.sft_step, fresh(params, ADAM), {}, demonstrations, lm=lm, tx=ADAM, cfg=cfg)
  model = reward.init(jax.random.key(2), lm, params)
  compared = tiny.comparisons(lm, 2, 3)
  for cfg in (reward.RewardConfig(), reward.RewardConfig(loss="best_of_k", centering=0.1)):
    yield shapes(reward.reward_step, fresh(model, ADAM), {}, compared, lm=lm, tx=ADAM, cfg=cfg)
  ranked = tiny.comparisons(lm, 2, 3, learnt=True)
  trunk = ppo.Frozen({}, params, {})
  yield shapes(dpo.dpo_step, fresh(params, ADAM), trunk, ranked, lm=lm, tx=ADAM)
  experiment = ppo.PPO(
    lm=lm,
    tx=optim.by_subtree(policy=ADAM, value=ADAM),
    sampling=SAMPLING,
    cfg=PPOConfig(minibatches=2, epochs=2, ptx_coef=1.0),
  )
  start = ppo.init_params(params, model)
  state = fresh(start, experiment.tx, ema={"policy": params}, kl_coef=0.02)
  frozen = ppo.Frozen(trunk={}, ref=params, reward=model)
  prompts, text = tiny.prompts(lm, rows=4), tiny.text(lm, rows=4)
  yield shapes(ppo.iteration, state, frozen, prompts, text, ppo=experiment)


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_every_stage_stays_in_float32(family):
  with jax.enable_x64(True):
    for before, after, metrics in shapes_of_stages(family):
      assert types_of(after) == types_of(before)
      assert "float64" not in types_of(after)
      assert "float64" not in types_of(metrics)


def test_a_step_runs():
  lm = tiny.lm("gpt", dropout=0.1)
  with jax.enable_x64(True):
    state = steps.init_state(jax.random.key(1), lm.init(jax.random.key(0)), ADAM)
    cfg = sft.SFTConfig(micro=2, packed=True, text_rows=1, text_share=0.1)
    step = jax.jit(partial(sft.sft_step, lm=lm, tx=ADAM, cfg=cfg))
    after, _ = step(state, {}, tiny.demonstrations(lm, rows=4))
    assert np.isfinite(float(optax.tree.norm(after.params)))


def test_samples_are_those_of_32_bits():
  lm = tiny.lm("llama")
  params, prompts = lm.init(jax.random.key(0)), tiny.prompts(lm, rows=3)
  sample = lambda: rollout.sample(lm, params, prompts, jax.random.key(5), SAMPLING)
  as_usual = sample()
  with jax.enable_x64(True):
    wide = sample()
  assert types_of(wide) == types_of(as_usual)
  tiny.assert_trees_close(as_usual, wide, atol=1e-5)


def test_the_head_is_float32_too():
  with jax.enable_x64(True):
    head = heads.init_head(jax.random.key(0), 8)
    assert types_of(head) == ["float32", "float32"]
    assert heads.values(head, jnp.ones((1, 2, 8), jnp.float32)).dtype == jnp.float32

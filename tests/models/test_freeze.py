"""A frozen trunk: the same model in two parts, and a backward pass that stops between them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from instructjax import sft, steps
from instructjax.errors import UserError
from instructjax.models import freeze
from instructjax.plan import counting

FAMILIES = {family: tiny.lm(family, depth=3) for family in ("gpt", "llama")}
TOKENS = jax.random.randint(jax.random.key(1), (2, 6), 0, tiny.VOCAB)
VALID = jnp.asarray(np.array([[1] * 6, [0, 0, 1, 1, 1, 1]], bool))


@pytest.fixture(params=FAMILIES)
def model(request):
  lm = FAMILIES[request.param]
  return lm, lm.init(jax.random.key(0))


def test_the_two_parts_are_the_model(model):
  lm, params = model
  expected = lm.hidden(params, TOKENS, VALID)
  trunk, trained = freeze.split(params, 1)
  assert not set(trunk) & set(trained)
  joined = trunk | trained
  np.testing.assert_allclose(lm.hidden(joined, TOKENS, VALID), expected, atol=1e-6)
  stem = jax.jit(lm.stem)(trunk, TOKENS, VALID)
  np.testing.assert_allclose(lm.hidden(joined, TOKENS, VALID, stem=stem), expected, atol=1e-6)
  decoded, _ = lm.decode(lm.unstack(joined), TOKENS, VALID, lm.init_cache(2, 6))
  np.testing.assert_allclose(np.asarray(decoded)[VALID], np.asarray(expected)[VALID], atol=1e-5)
  assert freeze.split(params, None) == ({}, params)


def test_the_backward_pass_stops_at_the_trained_blocks(model):
  """Gradients of the trained part run one reversed scan, over the top block alone; those of the
  model over all.
  """
  lm, params = model

  def backward(params, top):
    trunk, trained = freeze.split(params, top)
    loss = lambda p: lm.logits(trunk | p, lm.hidden(trunk | p, TOKENS, VALID)).sum()
    eqns = list(tiny.equations(jax.make_jaxpr(jax.grad(loss))(trained).jaxpr))
    scans = [eqn for eqn in eqns if eqn.primitive.name == "scan"]
    return sorted((eqn.params["length"], eqn.params["reverse"]) for eqn in scans)

  assert backward(params, 1) == [(1, False), (1, True), (2, False)]
  assert backward(params, None) == [(3, False), (3, True)]


def test_gradients_of_the_trained_part_are_those_of_the_whole_model(model):
  lm, params = model
  trunk, trained = freeze.split(params, 1)
  loss = lambda p: (lm.hidden(p, TOKENS, VALID) ** 3).sum()
  whole = jax.jit(jax.grad(loss))(params)
  top, below = jax.jit(jax.grad(lambda p, t: loss(t | p), (0, 1)))(trained, trunk)
  last = jax.tree.map(lambda x: x[-1:], whole["blocks"])
  tiny.assert_trees_close(top, {"blocks": last, "norm": whole["norm"]}, rtol=1e-4, atol=1e-4)
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(below))


def test_the_trunk_is_cast_and_an_untied_head_is_trained():
  lm = tiny.lm("llama", depth=3, tied=False)
  trunk, trained = freeze.split(lm.init(jax.random.key(0)), 2, dtype="bfloat16")
  assert {x.dtype for x in jax.tree.leaves(trunk)} == {jnp.dtype("bfloat16")}
  assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
  assert set(trained) == {"blocks", "norm", "head"}
  hidden = jax.eval_shape(lm.hidden, trunk | trained, TOKENS, VALID)
  assert hidden.dtype == jnp.float32


def test_a_split_model_splits_again(model):
  _, params = model
  once = freeze.split(params, 1)
  twice = freeze.split(freeze.split(params, 2)[0] | freeze.split(params, 2)[1], 1)
  tiny.assert_trees_equal(once, twice)


@pytest.mark.parametrize("top", [0, 4, -1])
def test_impossible_splits_say_what_is_possible(model, top):
  with pytest.raises(UserError, match=rf"top {top} blocks of a model with 3: choose 1 to 3"):
    freeze.split(model[1], top)


def test_only_float32_matrices_are_cast():
  lm = tiny.lm("gpt")
  params = lm.init(jax.random.key(0)) | {"head": {"w": jnp.ones(32), "b": jnp.float32(0)}}
  cast = freeze.cast(params, "bfloat16")
  half = {
    jax.tree_util.keystr(path)
    for path, x in jax.tree.leaves_with_path(cast)
    if x.dtype == jnp.bfloat16
  }
  assert half == {f"['blocks']['{name}']['w']" for name in ("q", "k", "v", "o", "up", "down")}
  tiny.assert_trees_equal(freeze.cast(params, "float32"), params)


def test_a_step_pays_nothing_backward_below_the_trained_blocks():
  """FLOPs of a whole SFT step, off its jaxpr: forward b a block and u for logits, backward 2 b a
  trained block.

  The blocks below cost one forward pass. The gradient of the tied embedding, which is not trained,
  stands in the jaxpr unused: the counter drops it, as the compiler does. The step with one trained
  block also keeps less for its backward pass.
  """
  tx = optax.sgd(0.1)

  def step_of(depth, top):
    lm = tiny.lm("gpt", depth=depth)
    trunk, trained = freeze.split(lm.init(jax.random.key(0)), top)
    state = steps.init_state(jax.random.key(0), trained, tx)
    step = jax.jit(
      lambda state, batch: sft.sft_step(
        state, trunk, batch, lm=lm, tx=tx, cfg=sft.SFTConfig(dropout=False)
      )
    )
    batch = tiny.demonstrations(lm, 4)
    jaxpr = jax.make_jaxpr(step)(state, batch)
    forward = jax.make_jaxpr(lambda p, b: sft.evaluate(p, b, lm=lm))(trunk | trained, batch)
    flops = lambda jaxpr: counting.count(jaxpr, (), {}).flops
    return flops(jaxpr), flops(forward), counting.peak(jaxpr)

  whole, forward, memory = step_of(3, None)
  _, shallower, _ = step_of(2, None)
  block, unembed = forward - shallower, forward - 3 * (forward - shallower)
  assert whole == 9 * block + 3 * unembed
  frozen, again, less = step_of(3, 1)
  assert again == forward
  assert frozen == 5 * block + 2 * unembed
  assert less < 0.6 * memory


@pytest.mark.parametrize("top", [None, 1])
def test_whole_is_the_inverse_of_split(model, top):
  _, params = model
  tiny.assert_trees_equal(freeze.whole(*freeze.split(params, top)), params)
  rounded = freeze.whole(*freeze.split(params, top, dtype="bfloat16"))
  tiny.assert_trees_close(rounded, params, rtol=1e-2, atol=1e-6)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(rounded))

"""LoRA: the arithmetic of one product, the adapter as a part of a model, and its gradient against
that of the matrices.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax.errors import UserError
from instructjax.models import blocks, freeze, lora
from instructjax.models.lora import Adapter, Lora

FAMILIES = {family: tiny.lm(family, depth=3) for family in ("gpt", "llama")}
TOKENS = jax.random.randint(jax.random.key(1), (2, 6), 0, tiny.VOCAB)
VALID = jnp.asarray(np.array([[1] * 6, [0, 0, 1, 1, 1, 1]], bool))
SIZES = {
  "q": {"rank": 2, "scale": 3.0},
  "o": {"rank": 1, "scale": 0.5},
  "down": {"rank": 2, "scale": 2.0},
}


def adapted(lm, sizes=SIZES, scale=0.2):
  """(base, base with an adapter that changes something)."""
  base = lm.init(jax.random.key(0))
  return base, base | {
    "adapter": tiny.perturb(lora.init(jax.random.key(1), lm.table, sizes), scale)
  }


@pytest.fixture(params=FAMILIES)
def model(request):
  return FAMILIES[request.param]


def test_a_product_by_hand():
  """x = (1, 2), W = [[1, 0], [0, 1]], a = (1, -1), b = (10, 20), s = 2: y = (1, 2) + 2 * (-1) *
  (10, 20) + (5, 5).
  """
  adapter = Adapter(jnp.array([[1.0], [-1.0]]), jnp.array([[10.0, 20.0]]), 2.0)
  p = {"w": jnp.eye(2), "b": jnp.array([5.0, 5.0]), "lora": adapter}
  np.testing.assert_array_equal(blocks.linear(p, jnp.array([[1.0, 2.0]]), "float32"), [[-14, -33]])
  np.testing.assert_array_equal(lora.fold(p)["w"], [[21, 40], [-20, -39]])
  assert set(lora.fold(p)) == {"w", "b"}


def test_a_new_adapter_changes_no_bit(model):
  base = model.init(jax.random.key(0))
  sizes = lora.sizes(model.table, Lora(rank=4))
  new = base | {"adapter": lora.init(jax.random.key(1), model.table, sizes)}
  np.testing.assert_array_equal(model.hidden(new, TOKENS, VALID), model.hidden(base, TOKENS, VALID))
  tiny.assert_trees_equal(lora.merge(new), base)
  assert lora.merge(base) is base


def test_initial_values_are_those_of_peft():
  """a is uniform within 1 / sqrt(inputs), here 32 and for `down` 128; b is 0."""
  adapter = lora.init(
    jax.random.key(1), FAMILIES["gpt"].table, lora.sizes(FAMILIES["gpt"].table, Lora(rank=64))
  )
  assert set(adapter) == {"q", "k", "v", "o", "up", "down"}
  for name, inputs in [("q", 32), ("o", 32), ("down", 128)]:
    a = np.asarray(adapter[name].a)
    assert a.shape == ((3, 4, 8, 64) if name == "o" else (3, inputs, 64))
    np.testing.assert_allclose(
      [a.min(), a.max(), a.std()], np.array([-1, 1, 3**-0.5]) / inputs**0.5, rtol=0.03
    )
    assert not np.asarray(adapter[name].b).any()
    assert adapter[name].scale == 16 / 64


def test_merged_and_apart_are_one_model(model):
  base, params = adapted(model)
  expected = model.hidden(params, TOKENS, VALID)
  assert float(jnp.abs(expected - model.hidden(base, TOKENS, VALID)).max()) > 0.1
  np.testing.assert_allclose(model.hidden(lora.merge(params), TOKENS, VALID), expected, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float32 over bfloat16"])
def test_decoding_is_the_model_that_is_trained(family, dtype):
  """In bfloat16 a change too small for its rounding is still sampled: the adapter stays apart."""
  lm = tiny.lm(family, depth=3, dtype=dtype.split()[0])
  base, params = adapted(lm)
  if "over" in dtype:
    params = freeze.base(base, "bfloat16") | {"adapter": params["adapter"]}
  layers = lm.unstack(params)
  apart = [name for name in SIZES if "lora" in layers["layers"][0][name]]
  assert apart == ([] if dtype == "float32" else list(SIZES))
  hidden = lm.hidden(params, TOKENS, VALID)
  decoded, _ = lm.decode(layers, TOKENS, VALID, lm.init_cache(2, 6))
  tolerance = 2e-5 if dtype.startswith("float32") else 0.05
  np.testing.assert_allclose(np.asarray(decoded)[VALID], np.asarray(hidden)[VALID], atol=tolerance)


def test_gradients_are_those_of_the_matrices_by_the_chain_rule(model):
  """dA = s dW B^T and dB = s A^T dW, with dW the gradient of the merged model."""
  _, params = adapted(model)
  trunk, trained = lora.without(params), {"adapter": params["adapter"]}
  loss = lambda p: (model.hidden(p, TOKENS, VALID) ** 3).sum()
  got = jax.jit(jax.grad(lambda p: loss(trunk | p)))(trained)["adapter"]
  whole = jax.jit(jax.grad(loss))(lora.merge(params))["blocks"]
  for name, adapter in trained["adapter"].items():
    rank = adapter.a.shape[-1]
    dw = np.asarray(whole[name]["w"]).reshape(3, np.prod(adapter.a.shape[1:-1]), -1)
    a, b = np.asarray(adapter.a).reshape(3, -1, rank), np.asarray(adapter.b).reshape(3, rank, -1)
    da, db = (
      adapter.scale * np.einsum("lio,lro->lir", dw, b),
      adapter.scale * np.einsum("lir,lio->lro", a, dw),
    )
    np.testing.assert_allclose(
      np.asarray(got[name].a).reshape(a.shape), da, rtol=1e-3, atol=1e-3 * np.abs(da).max()
    )
    np.testing.assert_allclose(
      np.asarray(got[name].b).reshape(b.shape), db, rtol=1e-3, atol=1e-3 * np.abs(db).max()
    )


def test_the_backward_pass_computes_no_gradient_of_a_matrix(model):
  """Of the products of the compiled gradient none has the shape of a matrix; a whole model's has
  one for each.
  """
  _, params = adapted(model)
  trunk, trained = lora.without(params), {"adapter": params["adapter"]}
  loss = lambda p: (model.hidden.__wrapped__(p, TOKENS, VALID) ** 3).sum()
  matrices = [p["w"] for p in trunk["blocks"].values() if "w" in p]
  flat = {
    (w.shape[1], w.size // 3 // w.shape[1]) if w.shape[-1] != 32 else (w.size // 3 // 32, 32)
    for w in matrices
  }
  shaped = re.compile("|".join(rf"f32\[{rows},{columns}\]\S* dot\(" for rows, columns in flat))

  def products(function, argument):
    return len(shaped.findall(jax.jit(jax.grad(function)).lower(argument).compile().as_text()))

  assert products(loss, trunk) == len(matrices)
  assert products(lambda p: loss(trunk | p), trained) == 0


def test_the_optimizer_knows_the_adapter_alone(model):
  from instructjax import optim

  sizes = lora.sizes(model.table, Lora(rank=2, targets=("q", "v")))
  adapter = {"adapter": lora.init(jax.random.key(1), model.table, sizes)}
  state = optim.adamw(1e-3).init(adapter)
  count = sum(x.size for x in jax.tree.leaves(adapter))
  inner = (
    32 if "gate" not in model.table["blocks"] else 16
  )  # outputs of v: the key heads are half as many
  assert count == 3 * 2 * (32 + 32 + 32 + inner)
  assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2 * count


def test_unknown_targets_are_refused(model):
  products = ", ".join(lora.products(model.table))
  with pytest.raises(UserError, match=f"names key, proj: this model has {products}"):
    lora.sizes(model.table, Lora(rank=2, targets=("q", "key", "proj")))
  with pytest.raises(UserError, match=f"names none: this model has {products}"):
    lora.sizes(model.table, Lora(rank=2, targets=()))
  with pytest.raises(UserError, match="the rank of an adapter is -1: choose 1 or more"):
    lora.sizes(model.table, Lora(rank=-1))
  assert list(lora.sizes(model.table, Lora(rank=8, alpha=4.0, targets=("v", "q")))) == ["q", "v"]
  assert lora.sizes(model.table, Lora(rank=8, alpha=4.0, targets=("q",))) == {
    "q": {"rank": 8, "scale": 0.5}
  }

"""Both families as one transformer: decoding, padding, packing, dropout, remat and limits."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from families import FAMILIES

from instructjax import models, sharding
from instructjax.errors import UserError
from instructjax.models import cache as model_cache
from instructjax.models import freeze, gpt, llama, transformer
from instructjax.models.cache import check_context


def jitted(lm):
  """The same model, compiled once for each shape."""
  return lm._replace(hidden=jax.jit(lm.hidden), decode=jax.jit(lm.decode))


LMS = {family: tiny.lm(family) for family in ("gpt", "llama")}


@pytest.fixture(params=LMS)
def model(request):
  """(lm, parameters far from their initial values, so that attention is not uniform)."""
  lm = LMS[request.param]
  return lm, tiny.perturb(lm.init(jax.random.key(0)), 0.2)


def text(rows, length, seed=1):
  return jax.random.randint(jax.random.key(seed), (rows, length), 0, tiny.VOCAB)


def test_cached_decoding_equals_the_full_forward_pass(model):
  """A left-padded prefill, then steps of one, two and three tokens, with padding among them."""
  lm, params = model
  lengths = np.array([6, 2, 4])
  valid = jnp.asarray(
    np.concatenate([np.arange(6) >= 6 - lengths[:, None], np.ones((3, 6), bool)], 1)
  )
  valid = valid.at[1, 8:].set(False)  # a row that ended
  tokens = jnp.where(valid, text(3, 12), 0)
  full = lm.hidden(params, tokens, valid)
  layers, cache, parts = lm.unstack(params), lm.init_cache(3, 12), []
  for start, end in [(0, 6), (6, 7), (7, 9), (9, 12)]:
    hidden, cache = lm.decode(layers, tokens[:, start:end], valid[:, start:end], cache)
    parts.append(hidden)
  got = jnp.concatenate(parts, 1)
  assert cache["index"] == 12
  np.testing.assert_allclose(np.asarray(got)[valid], np.asarray(full)[valid], atol=1e-5)
  np.testing.assert_allclose(lm.logits(layers, got)[:, 5], lm.logits(params, full)[:, 5], atol=1e-5)


def test_a_longer_cache_and_later_junk_change_nothing(model):
  lm, params = model
  tokens, valid = text(2, 5), jnp.ones((2, 5), bool)
  short, _ = lm.decode(lm.unstack(params), tokens, valid, lm.init_cache(2, 5))
  cache = lm.init_cache(2, 9)
  dirty = cache | {
    "keys": jax.tree.map(lambda x: x + 9, cache["keys"]),
    "values": jax.tree.map(lambda x: x - 9, cache["values"]),
  }
  long, _ = lm.decode(lm.unstack(params), tokens, valid, dirty)
  np.testing.assert_allclose(short, long, atol=1e-5)


def test_padding_changes_nothing_wherever_it_is(model):
  lm, params = model
  tokens = text(2, 6)
  plain = lm.hidden(params, tokens, jnp.ones((2, 6), bool))
  for left, right in [(0, 4), (4, 0), (3, 1)]:
    sides = ((0, 0), (left, right))
    valid = jnp.pad(jnp.ones((2, 6), bool), sides)
    padded = lm.hidden(params, jnp.pad(tokens, sides, constant_values=5), valid)
    np.testing.assert_allclose(padded[:, left : left + 6], plain, atol=1e-5)


def test_later_tokens_are_not_seen(model):
  lm, params = model
  tokens, valid = text(1, 6), jnp.ones((1, 6), bool)
  changed = tokens.at[0, 4:].set((tokens[0, 4:] + 1) % tiny.VOCAB)
  a, b = lm.hidden(params, tokens, valid), lm.hidden(params, changed, valid)
  np.testing.assert_array_equal(a[:, :4], b[:, :4])
  assert float(jnp.abs(a[:, 4:] - b[:, 4:]).max()) > 1e-3


def test_packed_texts_equal_separate_ones(model):
  lm, params = model
  tokens = text(1, 12)
  packed = lm.hidden(params, tokens, jnp.array([[1] * 4 + [2] * 4 + [5] * 3 + [0]]))
  for start, end in [(0, 4), (4, 8), (8, 11)]:
    alone = lm.hidden(params, tokens[:, start:end], jnp.ones((1, end - start), bool))
    np.testing.assert_allclose(packed[:, start:end], alone, atol=1e-5)


@pytest.fixture(scope="module")
def mixed():
  """Gemma 2: windows in every second layer, soft caps, norms after each half; with parameters."""
  config = dataclasses.replace(FAMILIES["gemma2"], vocab_size=tiny.VOCAB)
  lm = transformer_of(config)
  rng = np.random.default_rng(0)
  draw = lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32))
  return lm, jax.tree.map(draw, lm.table)


def transformer_of(config):
  lm = models.build(config)
  return lm._replace(hidden=jax.jit(lm.hidden), decode=jax.jit(lm.decode), stem=jax.jit(lm.stem))


def test_layers_of_two_kinds_in_one_scan_equal_cached_decoding_layer_by_layer(mixed):
  lm, params = mixed
  tokens, valid = text(2, 14), jnp.asarray(np.arange(14) >= np.array([[0], [3]]))
  full = lm.hidden(params, tokens, valid)
  layers, cache = lm.unstack(params), lm.init_cache(2, 16)
  first, cache = lm.decode(layers, tokens[:, :9], valid[:, :9], cache)
  second, _ = lm.decode(layers, tokens[:, 9:], valid[:, 9:], cache)
  got = np.concatenate([first, second], 1)
  np.testing.assert_allclose(got[valid], np.asarray(full)[valid], atol=1e-5)
  assert float(jnp.abs(lm.logits(params, 100 * full)).max()) <= 3.0  # the soft cap


def test_a_window_is_as_far_as_a_layer_sees():
  """One local layer of window 5: the fifth token before is seen no more."""
  lm = transformer_of(dataclasses.replace(FAMILIES["gemma2"], depth=1, vocab_size=tiny.VOCAB))
  params = lm.init(jax.random.key(0))
  tokens, valid = text(1, 12), jnp.ones((1, 12), bool)
  changed = tokens.at[0, 3].set((tokens[0, 3] + 1) % tiny.VOCAB)
  change = jnp.abs(lm.hidden(params, tokens, valid) - lm.hidden(params, changed, valid)).max(-1)[0]
  np.testing.assert_array_equal(np.asarray(change) > 0, [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize("top", [1, 2, 3])
def test_a_split_model_keeps_the_kind_of_each_layer(mixed, top):
  lm, params = mixed
  tokens, valid = text(2, 14), jnp.ones((2, 14), bool)
  trunk, trained = freeze.split(params, top)
  np.testing.assert_allclose(
    lm.hidden(trunk | trained, tokens, valid), lm.hidden(params, tokens, valid), atol=1e-5
  )


def test_windows_and_soft_caps_on_a_mesh(mixed):
  lm, params = mixed
  tokens, valid = text(4, 14), jnp.asarray(np.arange(14) >= np.array([[0], [3], [5], [0]]))
  loss = lambda p, tokens, valid: jnp.sin(lm.logits(p, lm.hidden(p, tokens, valid))).sum()
  step = jax.jit(jax.value_and_grad(loss))
  expected = jax.tree.map(
    np.asarray, step(params, jnp.where(valid, tokens, 0), jnp.ones_like(valid))
  )
  with jax.set_mesh(sharding.make_mesh(2, 1, 2)):
    rows = sharding.place_batch((jnp.where(valid, tokens, 0), jnp.ones_like(valid)))
    got = step(sharding.place(params, sharding.shardings(lm.table)), *rows)
  tiny.assert_trees_close(got, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_dropout_draws_two_masks_a_layer_and_no_other(family):
  lm = tiny.lm(family, dropout=0.2)
  params = lm.init(jax.random.key(0))
  tokens, valid = text(2, 5), jnp.ones((2, 5), bool)
  draws = lambda lm, key: [
    eqn.outvars[0].aval.shape
    for eqn in tiny.equations(
      jax.make_jaxpr(lambda p: lm.hidden(p, tokens, valid, key=key))(params).jaxpr
    )
    if eqn.primitive.name == "random_bits"
  ]
  assert (
    draws(lm, jax.random.key(0)) == [(2, 5, lm.width)] * 2
  )  # in the one body that the scan repeats
  assert draws(lm, None) == []
  assert draws(LMS[family], jax.random.key(0)) == []


def test_dropout_stands_on_each_half_before_it_is_added():
  """With halves of constant 1 and 10 at rate one half, the stream gains 0, 2, 20 or 22; nothing
  else is dropped.
  """
  lm = tiny.lm("gpt", depth=1, dropout=0.5)
  config = lm.hidden.__wrapped__.args[0]
  blocks = jax.tree.map(jnp.zeros_like, lm.init(jax.random.key(0))["blocks"])
  blocks["o"]["b"] += 1
  blocks["down"]["b"] += 10
  x, valid = jnp.full((8, 16, 32), 100.0), jnp.ones((8, 16), bool)
  run = jax.jit(partial(transformer.run, config))
  out = np.asarray(run(blocks, x, valid, jax.random.key(1)))
  values, counts = np.unique(out, return_counts=True)
  np.testing.assert_array_equal(values, [100, 102, 120, 122])
  np.testing.assert_allclose(counts / out.size, 0.25, atol=0.03)
  assert (run(blocks, x, valid, None) == 111).all()


def test_layers_and_keys_draw_different_masks():
  lm = tiny.lm("gpt", depth=2, dropout=0.5)
  config = lm.hidden.__wrapped__.args[0]
  blocks = jax.tree.map(jnp.zeros_like, lm.init(jax.random.key(0))["blocks"])
  blocks["o"]["b"] = (
    blocks["o"]["b"].at[0].set(1).at[1].set(10)
  )  # layer 0 adds 0 or 2, layer 1 adds 0 or 20
  x, valid = jnp.zeros((4, 16, 32)), jnp.ones((4, 16), bool)
  run = jax.jit(lambda key: transformer.run(config, blocks, x, valid, jax.random.key(key)))
  assert len(np.unique(run(1))) == 4
  np.testing.assert_array_equal(run(1), run(1))
  assert float((run(1) != run(2)).mean()) > 0.4


@cache
def gradient(remat, unroll=1):
  config = gpt.GPTConfig(
    vocab_size=48, context=64, width=32, depth=3, heads=4, dropout=0.3, remat=remat, unroll=unroll
  )
  lm = gpt.gpt(config)
  tokens, valid = text(2, 5), jnp.ones((2, 5), bool)
  loss = lambda p: (lm.hidden(p, tokens, valid, key=jax.random.key(3)) ** 3).sum()
  params = gpt.gpt(config).init(jax.random.key(0))
  names = {eqn.primitive.name for eqn in tiny.equations(jax.make_jaxpr(loss)(params).jaxpr)}
  assert bool(names & {"checkpoint", "remat", "remat2"}) == (remat != "none")
  return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("remat", transformer.REMAT[1:])
def test_rematerialisation_changes_no_gradient(remat):
  tiny.assert_trees_close(gradient("none"), gradient(remat), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mesh", [(1, 2, 4)], indirect=True, ids=str)
def test_a_stream_split_along_the_sequence_changes_no_gradient(mesh):
  """Eight tokens lie on four devices; a row of six, which these do not divide, stays whole."""
  config = llama.LlamaConfig(48, 64, width=32, depth=2, heads=4, kv_heads=2, mlp=64)
  lm = llama.llama(dataclasses.replace(config, sequence=True, remat="blocks"))
  valid = np.ones((2, 8), bool)

  def gradients(params, tokens, valid):
    return jax.grad(lambda params: (lm.hidden(params, tokens, valid) ** 3).sum())(params)

  def run(length):
    tokens = np.asarray(text(2, length))
    params = jax.jit(lm.init)(jax.random.key(0))
    if sharding.is_sharded():
      params = sharding.place(params, sharding.shardings(lm.table))
    batch = sharding.place_batch((tokens, valid[:, :length]))
    return jax.tree.map(np.asarray, jax.jit(gradients)(params, *batch))

  for length in (8, 6):
    expected = tiny.unsharded(partial(run, length))
    tiny.assert_trees_close(run(length), expected, rtol=1e-3, atol=1e-4)
  params = sharding.place(lm.init(jax.random.key(0)), sharding.shardings(lm.table))
  batch = sharding.place_batch((np.zeros((2, 8), np.int32), valid))
  program = str(jax.make_jaxpr(lm.hidden)(params, *batch))
  # What is carried from block to block, and what halves add to it, lies in parts.
  assert "f32[2@(data,fsdp),8@model,32]" in program


@pytest.mark.parametrize("unroll", [2, 8])  # three layers: one step is left over, or one holds all
def test_unrolling_changes_no_gradient(unroll):
  tiny.assert_trees_close(gradient("none"), gradient("none", unroll), rtol=1e-4, atol=1e-4)


def test_bfloat16_products_stay_near_float32():
  """The stream, the norms and the logits are float32; only the operands of products are rounded."""
  config = gpt.GPTConfig(vocab_size=48, context=64, width=32, depth=2, heads=4)
  params = gpt.gpt(config).init(jax.random.key(0))
  half = jitted(gpt.gpt(dataclasses.replace(config, dtype="bfloat16")))
  tokens, valid = text(2, 8), jnp.ones((2, 8), bool)
  a, b = jax.jit(gpt.gpt(config).hidden)(params, tokens, valid), half.hidden(params, tokens, valid)
  assert b.dtype == half.logits(params, b).dtype == jnp.float32
  assert 1e-5 < float(jnp.abs(a - b).max()) < 0.1
  cached, cache = half.decode(half.unstack(params), tokens, valid, half.init_cache(2, 8))
  np.testing.assert_allclose(cached, b, atol=0.05)
  # On a CPU the cache is float32, and holds what bfloat16 can hold.
  keys = cache["keys"][0]
  assert keys.dtype == jnp.float32
  np.testing.assert_array_equal(keys, keys.astype(jnp.bfloat16).astype(jnp.float32))


def narrow(**changes):
  """A small model in bfloat16, with its stream in bfloat16 too where `stream` says so."""
  config = llama.LlamaConfig(
    vocab_size=48, context=64, width=32, depth=2, heads=4, kv_heads=2, mlp=64, dtype="bfloat16"
  )
  return llama.llama(dataclasses.replace(config, **changes))


def test_a_bfloat16_stream_rounds_all_but_norms_logits_and_gradients_of_weights():
  lm = narrow(stream="bfloat16", remat="blocks")
  params = lm.init(jax.random.key(0))
  tokens, valid = text(2, 8), jnp.ones((2, 8), bool)

  def loss(params):
    hidden = lm.hidden(params, tokens, valid)
    logits = lm.logits(params, hidden)
    assert lm.stem(params, tokens, valid).dtype == jnp.bfloat16
    assert hidden.dtype == logits.dtype == jnp.float32
    return jax.nn.logsumexp(logits).sum()

  program = str(jax.make_jaxpr(jax.grad(loss))(params))
  # What a scan carries and keeps of the stream is bfloat16: a float32 stream is nowhere.
  assert "bf16[2,2,8,32]" in program
  assert "f32[2,2,8,32]" not in program
  # Sums of products over devices are made in the type of the product: of `o` and of `down` forward,
  # of q, k, v, gate and up backward. Only the gradient from the logits is float32.
  assert "bf16[16,32] = dot_general" in program
  assert program.count(":f32[16,32] = dot_general") == 1
  assert {g.dtype for g in jax.tree.leaves(jax.grad(loss)(params))} == {jnp.dtype("float32")}


def test_a_bfloat16_stream_stays_near_a_float32_one_in_rows_and_in_decoding():
  params = narrow().init(jax.random.key(0))
  tokens, valid = text(2, 8), jnp.ones((2, 8), bool)
  wide_hidden = jitted(narrow()).hidden(params, tokens, valid)
  lm = jitted(narrow(stream="bfloat16"))
  hidden = lm.hidden(params, tokens, valid)
  assert 1e-5 < float(jnp.abs(hidden - wide_hidden).max()) < 0.1
  decoded, _ = lm.decode(lm.unstack(params), tokens, valid, lm.init_cache(2, 8))
  np.testing.assert_allclose(decoded, hidden, atol=0.05)


def test_a_bfloat16_stream_learns_as_a_float32_one():
  """The loss curves of 80 steps of Adam differ by less than those of two orders of the data."""
  rows = jax.random.randint(jax.random.key(1), (64, 1), 0, 40)
  # Each row counts up from its first token: there is something to learn.
  tokens = (rows + jnp.arange(12)) % 40
  valid = jnp.ones(tokens.shape, bool)

  def curve(stream, order=0):
    lm = narrow(stream=stream)
    tx = optax.adam(3e-3)
    params = lm.init(jax.random.key(0))

    def loss(params, batch):
      logits = lm.logits(params, lm.hidden(params, batch[:, :-1], valid[:8, :-1]))
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    def step(carry, number):
      params, state = carry
      batch = jax.lax.dynamic_slice_in_dim(tokens, 8 * ((number + order) % 8), 8)
      value, grads = jax.value_and_grad(loss)(params, batch)
      updates, state = tx.update(grads, state)
      return (optax.apply_updates(params, updates), state), value

    return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), jnp.arange(80))[1])()

  wide, half, reordered = curve("float32"), curve("bfloat16"), curve("float32", order=3)
  assert float(wide[-8:].mean()) < 0.5 * float(wide[0])
  assert float(jnp.abs(wide - half)[-8:].mean()) < 0.02
  assert float(jnp.abs(wide - half).mean()) < float(jnp.abs(wide - reordered).mean())


def test_a_bfloat16_cache_stays_bfloat16_on_a_tpu():
  planned = jax.sharding.AbstractMesh(
    (1, 1, 1), sharding.AXES, (jax.sharding.AxisType.Explicit,) * 3
  )
  with jax.sharding.use_abstract_mesh(planned):
    assert model_cache.dtype_of("bfloat16") == "bfloat16"
  assert model_cache.dtype_of("bfloat16") == "float32"


def test_a_call_does_not_widen_the_bfloat16_matrices_of_all_layers():
  """Slices of bfloat16 are made in float32 by XLA, which then widens the stack before the loop."""
  config = gpt.GPTConfig(vocab_size=48, context=64, width=32, depth=4, heads=4, dtype="bfloat16")
  lm = gpt.gpt(config)
  trunk, _ = freeze.split(lm.init(jax.random.key(0)), 1, dtype="bfloat16")
  program = jax.jit(lm.stem).lower(trunk, text(2, 8), jnp.ones((2, 8), bool)).compile().as_text()
  stack = trunk["lower"]["up"]["w"]
  assert stack.shape == (3, 32, 128)
  assert "u16[3,32,128]" in program
  assert "f32[3,32,128]" not in program


def test_a_gradient_of_bfloat16_blocks_is_as_without_their_bits(monkeypatch):
  config = gpt.GPTConfig(vocab_size=48, context=64, width=32, depth=3, heads=4, dtype="bfloat16")
  lm = gpt.gpt(config)
  params = tiny.perturb(lm.init(jax.random.key(0)), 0.2)
  half = params | {"blocks": jax.tree.map(lambda w: w.astype(jnp.bfloat16), params["blocks"])}
  tokens, valid = text(2, 8), jnp.ones((2, 8), bool)

  def loss(blocks):
    return jnp.sum(lm.hidden(half | {"blocks": blocks}, tokens, valid) ** 2)

  by_bits = jax.grad(loss)(half["blocks"])
  monkeypatch.setattr(transformer, "bits_of", lambda stack: jax.tree.map(lambda w: None, stack))
  plain = jax.grad(loss)(half["blocks"])
  assert float(jnp.abs(plain["up"]["w"]).max()) > 0.1
  tiny.assert_trees_close(by_bits, plain, rtol=1e-2, atol=1e-2)


def test_too_long_rows_and_caches_say_what_fits(model):
  lm, params = model
  with pytest.raises(UserError, match=r"rows of 65 tokens do not fit the model's context of 64"):
    lm.hidden(params, jnp.zeros((1, 65), jnp.int32), jnp.ones((1, 65), bool))
  with pytest.raises(UserError, match=r"70 positions do not fit the model's context of 64"):
    check_context(lm.context, 70)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"dtype": "float16"}, "dtype is 'float16': choose one of float32, bfloat16"),
    ({"stream": "float16"}, "stream is 'float16': choose one of float32, bfloat16"),
    ({"stream": "bfloat16"}, "stream is 'bfloat16' and dtype 'float32'"),
    ({"remat": "block"}, "remat is 'block': choose one of none, dots, attention, blocks"),
    ({"unroll": 0}, "unroll is 0: choose 1 or more"),
    ({"dropout": 1.0}, "dropout is 1.0"),
  ],
)
def test_unknown_settings_are_refused(change, message):
  with pytest.raises(UserError, match=message):
    gpt.gpt(dataclasses.replace(gpt.GPT_5M, **change))

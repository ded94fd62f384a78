"""Supervised fine-tuning: acceptance list 2.5 of the specification, and gradient accumulation."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from instructjax import optim, sft, sharding, steps
from instructjax.data.batches import packing
from instructjax.types import Demonstrations

LM = tiny.lm("gpt")
SGD, ADAM = optax.sgd(1.0), optim.adamw(1e-2)
DEFAULT = sft.SFTConfig()


def start(lm=LM, tx=SGD, seed=0):
  return steps.init_state(jax.random.key(seed), lm.init(jax.random.key(seed)), tx)


def step(state, batch, trunk=None, *, lm=LM, tx=SGD, cfg=DEFAULT):
  return tiny.jitted(sft.sft_step, lm=lm, tx=tx, cfg=cfg)(state, trunk or {}, batch)


def evaluate(params, batch):
  return tiny.jitted(sft.evaluate, lm=LM)(params, batch)


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_one_batch_is_learned_by_heart(family):
  lm = tiny.lm(family)
  state = start(lm, ADAM)
  batch = tiny.demonstrations(lm, rows=4)
  step = steps.compiled(tiny.traced_once(partial(sft.sft_step, lm=lm, tx=ADAM)), state)
  for _ in range(150):
    state, metrics = step(state, {}, batch)
  assert metrics["loss"] < 0.01


def test_loss_is_the_mean_over_marked_tokens():
  batch = tiny.demonstrations(LM, rows=3)
  params = LM.init(jax.random.key(0))
  hidden = jax.jit(LM.hidden)(params, batch.tokens, batch.valid)
  logits = np.asarray(LM.logits(params, hidden), np.float64)
  total, count = 0.0, 0
  for b, t in zip(*np.nonzero(np.asarray(batch.mask))):
    row = logits[b, t - 1]
    total -= row[batch.tokens[b, t]] - np.log(np.exp(row).sum())
    count += 1
  _, metrics = step(start(), batch)
  assert metrics["loss"] == pytest.approx(total / count, rel=1e-5)
  assert metrics["tokens"] == count
  assert evaluate(params, batch)[0] == pytest.approx(total, rel=1e-5)


def test_a_window_over_the_completions_changes_nothing():
  batch = tiny.demonstrations(LM, rows=6)
  state = start()
  window = int(batch.mask.sum(1).max())
  whole, a = step(state, batch)
  windowed, b = step(state, batch, cfg=sft.SFTConfig(window=window))
  assert a["loss"] == pytest.approx(float(b["loss"]), rel=1e-5)
  tiny.assert_trees_close(whole.params, windowed.params, atol=1e-4)


def test_unmarked_tokens_carry_no_gradient():
  """Changing what is predicted at unmarked, unread positions (the padding) leaves the gradient
  bit-equal.
  """
  batch = tiny.demonstrations(LM, rows=4)
  noise = jax.random.randint(jax.random.key(9), batch.tokens.shape, 0, LM.vocab_size)
  other = batch.replace(tokens=jnp.where(batch.valid, batch.tokens, noise))
  state = start()
  a, _ = step(state, batch)
  b, _ = step(state, other)
  tiny.assert_trees_equal(a.params, b.params)
  prompt_only = batch.replace(mask=batch.mask & False)
  c, metrics = step(state, prompt_only)
  tiny.assert_trees_equal(c.params, state.params)
  assert metrics["loss"] == 0


def test_dropout_is_random_by_step_off_without_it_and_repeatable():
  lm = tiny.lm("gpt", dropout=0.5)
  state = start(lm)
  batch = tiny.demonstrations(lm, rows=4)
  run = lambda state, cfg: float(step(state, batch, lm=lm, cfg=cfg)[1]["loss"])
  on, off = sft.SFTConfig(), sft.SFTConfig(dropout=False)
  assert run(state, on) == run(state, on)
  assert run(state, on) != run(state.replace(step=jnp.int32(1)), on)
  assert run(state, off) == run(state.replace(step=jnp.int32(1)), off)
  assert run(state, off) != run(state, on)


def test_packed_rows_give_the_loss_of_separate_rows():
  single = tiny.demonstrations(LM, rows=2, lengths=[7, 9])
  cut = lambda x: jnp.concatenate([x[0, :7], x[1, :9]])[None]
  segments = jnp.array([[1] * 7 + [2] * 9])
  packed = Demonstrations(cut(single.tokens), segments, cut(single.mask))
  params = LM.init(jax.random.key(0))
  a, n = evaluate(params, single)
  b, m = evaluate(params, packed)
  assert n == m
  assert a == pytest.approx(float(b), rel=1e-5)


@pytest.mark.parametrize("micro", [2, 4])
def test_accumulation_equals_one_large_batch_with_ragged_lengths(micro):
  batch = tiny.demonstrations(LM, rows=8, lengths=[4, 16, 5, 6, 16, 4, 9, 12])
  state = start()
  whole, a = step(state, batch)
  parts, b = step(state, batch, cfg=sft.SFTConfig(micro=micro))
  assert a["loss"] == pytest.approx(float(b["loss"]), rel=1e-5)
  tiny.assert_trees_close(whole.params, parts.params, atol=1e-5)


def test_split_and_merge_are_inverse():
  x = jnp.arange(24).reshape(12, 2)
  np.testing.assert_array_equal(steps.merge(steps.split(x, 3)), x)
  np.testing.assert_array_equal(steps.split(x, 3)[0], x[::3])


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_frozen_blocks_stay_and_the_top_learns(family):
  from instructjax.models import freeze

  lm = tiny.lm(family, depth=3)
  trunk, trained = freeze.split(lm.init(jax.random.key(0)), 1)
  state = steps.init_state(jax.random.key(0), trained, SGD)
  batch = tiny.demonstrations(lm, rows=4)
  with_stem = batch.replace(stem=jax.jit(lm.stem)(trunk, batch.tokens, batch.valid))
  a, m = step(state, batch, trunk, lm=lm)
  b, n = step(state, with_stem, trunk, lm=lm)
  assert m["loss"] == pytest.approx(float(n["loss"]), rel=1e-6)
  tiny.assert_trees_close(a.params, b.params, atol=1e-5)
  assert float(jnp.abs(a.params["norm"]["scale"] - trained["norm"]["scale"]).max()) > 0


@pytest.mark.parametrize("mesh", [(2, 2, 2)], indirect=True, ids=str)
def test_sharded_steps_equal_one_device(mesh):
  lm = tiny.lm("llama")

  def run(place, place_batch):
    batch = tiny.demonstrations(lm, rows=8)
    state = steps.init_state(jax.random.key(0), place(lm.init(jax.random.key(0))), ADAM)
    step = steps.compiled(tiny.traced_once(partial(sft.sft_step, lm=lm, tx=ADAM)), state)
    history = []
    for _ in range(3):
      state, metrics = step(state, {}, place_batch(batch))
      history.append(float(metrics["loss"]))
    return history, jax.tree.map(np.asarray, state.params)

  losses, params = run(
    lambda p: sharding.place(p, sharding.shardings(lm.table)), sharding.place_batch
  )
  expected, single = tiny.unsharded(lambda: run(lambda p: p, lambda b: b))
  np.testing.assert_allclose(losses, expected, atol=1e-4)
  tiny.assert_trees_close(params, single, atol=1e-4)


HALF, SLOW = tiny.lm("gpt", dtype="bfloat16"), optim.adamw(2e-3)


def test_the_loss_curve_in_bfloat16_follows_float32():
  """30 steps over four batches: the loss falls by more than .4 nats, and the two curves stay within
  1 %.
  """
  batches = [tiny.demonstrations(LM, rows=4, seed=seed) for seed in range(4)]
  curves = []
  for lm in (LM, HALF):
    state, losses = start(LM, SLOW), []
    for i in range(30):
      state, metrics = step(state, batches[i % 4], lm=lm, tx=SLOW)
      losses.append(float(metrics["loss"]))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {
      jnp.dtype("float32")
    }  # the masters
    curves.append(losses)
  single, half = np.array(curves)
  assert single[:4].mean() - single[-4:].mean() > 0.4
  assert 0 < np.abs(half / single - 1).max() < 0.01


def test_in_bfloat16_only_operands_of_products_are_rounded():
  """Norms, softmax, log-probabilities, the loss and the update are float32: read off the step,
  backward pass included.
  """
  batch = tiny.demonstrations(LM, rows=4)
  step_jaxpr = jax.make_jaxpr(partial(sft.sft_step, lm=HALF, tx=ADAM))(start(LM, ADAM), {}, batch)
  half = jnp.dtype("bfloat16")
  kinds = {
    eqn.primitive.name
    for eqn in tiny.equations(step_jaxpr.jaxpr)
    for v in eqn.outvars
    if getattr(v.aval, "dtype", 0) == half
  }
  assert "convert_element_type" in kinds
  computed = {
    "exp",
    "exp2",
    "log",
    "reduce_sum",
    "reduce_max",
    "add",
    "sub",
    "mul",
    "div",
    "rsqrt",
    "sqrt",
    "tanh",
    "max",
  }
  assert not kinds & computed
  _, metrics = jax.eval_shape(partial(sft.sft_step, lm=HALF, tx=ADAM), start(LM, ADAM), {}, batch)
  assert metrics["loss"].dtype == metrics["grad/norm"].dtype == jnp.float32


# --- demonstrations beside text ---

LONG, SHORT = 14, 3  # marked tokens of a row of text and of a demonstration


def mixed_batch(text_rows, rows=8, width=16, seed=21):
  """Rows of short demonstrations and, after them, of long texts."""
  lengths = [SHORT + 1] * (rows - text_rows) + [LONG + 1] * text_rows
  batch = tiny.demonstrations(LM, rows=rows, width=width, lengths=lengths, seed=seed)
  # Everything but the first token of a row carries loss.
  return batch.replace(mask=batch.valid & (jnp.arange(width) > 0))


@pytest.mark.parametrize("text_rows", [1, 4])
def test_a_share_of_the_loss_is_of_text_whatever_its_length(text_rows):
  """By hand: (1 - s) times one token mean and s times the other; it was most of the loss before."""
  batch = mixed_batch(text_rows)
  params = LM.init(jax.random.key(0))
  demonstrations = jax.tree.map(lambda x: x[: 8 - text_rows], batch)
  text = jax.tree.map(lambda x: x[8 - text_rows :], batch)
  sums = evaluate(params, demonstrations), evaluate(params, text)
  means = [float(total / count) for total, count in sums]
  cfg = sft.SFTConfig(text_rows=text_rows, text_share=0.1)
  _, metrics = step(start(), batch, cfg=cfg)
  assert metrics["loss"] == pytest.approx(0.9 * means[0] + 0.1 * means[1], rel=1e-5)
  assert metrics["loss/demonstrations"] == pytest.approx(means[0], rel=1e-5)
  assert metrics["loss/text"] == pytest.approx(means[1], rel=1e-5)


def test_the_gradient_of_text_has_its_share():
  """The update by plain gradient descent is .9 of the demonstrations' and .1 of the text's."""
  batch = mixed_batch(text_rows=2)
  parts = jax.tree.map(lambda x: x[:6], batch), jax.tree.map(lambda x: x[6:], batch)
  before = start().params
  moves = [jax.tree.map(jnp.subtract, step(start(), part)[0].params, before) for part in parts]
  expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, *moves)
  cfg = sft.SFTConfig(text_rows=2, text_share=0.1)
  after, _ = step(start(), batch, cfg=cfg)
  move = jax.tree.map(jnp.subtract, after.params, before)
  tiny.assert_trees_close(move, expected, atol=2e-6)


def test_micro_batches_of_a_mixed_batch_add_up():
  batch = mixed_batch(text_rows=3)
  whole, apart = (
    step(start(), batch, cfg=sft.SFTConfig(micro=micro, text_rows=3, text_share=0.25))
    for micro in (1, 4)
  )
  tiny.assert_trees_close(whole[0].params, apart[0].params, atol=2e-6)
  assert whole[1]["loss"] == pytest.approx(float(apart[1]["loss"]), rel=1e-5)
  assert whole[1]["loss/text"] == pytest.approx(float(apart[1]["loss/text"]), rel=1e-5)


# --- packed batches ---

LENGTHS = [16, 9, 4, 5, 3, 7, 12, 3]  # of the demonstrations; text is as long as the rows


def packed_and_apart(texts, *, rows=2, parts=5, most=16, stem=None):
  """One batch packed and not: eight demonstrations, with texts after them or, packed, before."""
  apart = tiny.demonstrations(LM, rows=8 + texts, width=16, lengths=LENGTHS + [16] * texts)
  if stem is not None:
    apart = apart.replace(stem=stem(apart))
  host = jax.tree.map(np.asarray, apart)
  packed = packing.pack_batch(
    jax.tree.map(lambda x: x[:8], host),
    rows=rows,
    parts=parts,
    most=most,
    first=jax.tree.map(lambda x: x[8:], host) if texts else None,
  )
  return packed, apart


def assert_same_step(packed, apart):
  """Equal parameters after one update by plain gradient descent at rate 1, and equal metrics."""
  (packed_state, packed_metrics), (apart_state, apart_metrics) = packed, apart
  tiny.assert_trees_close(packed_state.params, apart_state.params, rtol=1e-5, atol=2e-6)
  names = set(packed_metrics) - {"update/useful"}
  assert names == set(apart_metrics) - {"update/useful"}
  for name in names:
    np.testing.assert_allclose(packed_metrics[name], apart_metrics[name], rtol=1e-5, err_msg=name)
  assert float(packed_metrics["update/useful"]) > 1.1 * float(apart_metrics["update/useful"])


@pytest.mark.parametrize(("family", "texts"), [("gpt", 0), ("llama", 2)])
def test_a_packed_batch_makes_the_same_step(family, texts):
  lm = tiny.lm(family)
  packed, apart = packed_and_apart(texts, most=16 if texts else 13)
  mixed = sft.SFTConfig(dropout=False, text_rows=texts, text_share=0.25 if texts else 0.0)
  of_packed = replace(mixed, packed=True, micro=5, window=None if texts else 13)
  run = lambda batch, cfg: step(start(lm), batch, lm=lm, cfg=cfg)
  assert_same_step(run(packed, of_packed), run(apart, mixed))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_a_packed_batch_makes_the_same_step_on_eight_devices(shape):
  cfg = sft.SFTConfig(dropout=False, text_rows=2, text_share=0.25)
  shards = shape[0] * shape[1]
  packed, apart = packed_and_apart(2, rows=shards, parts=5)
  expected = step(start(), apart, cfg=cfg)
  with jax.set_mesh(sharding.make_mesh(*shape)):
    params = sharding.place(LM.init(jax.random.key(0)), sharding.shardings(LM.table))
    state = steps.init_state(jax.random.key(0), params, SGD)
    rows = sharding.place_batch(packed)
    assert_same_step(step(state, rows, cfg=replace(cfg, packed=True, micro=5)), expected)


def test_batches_of_any_number_of_packed_rows_share_a_program():
  """The share of useful positions by hand: 59 tokens in 4 rows of 16, and 8 in 2."""
  cfg = sft.SFTConfig(packed=True, micro=4)
  many, _ = packed_and_apart(0, parts=4)
  rows = jax.tree.map(np.asarray, tiny.demonstrations(LM, rows=2, width=16, lengths=[5, 3]))
  few = packing.pack_batch(rows, rows=2, parts=4)
  state = start()
  compiled = steps.compiled(tiny.traced_once(partial(sft.sft_step, lm=LM, tx=SGD, cfg=cfg)), state)
  for batch, useful in ((many, 59 / 64), (few, 8 / 32), (many, 59 / 64)):
    state, metrics = compiled(state, {}, batch)
    assert metrics["update/useful"] == pytest.approx(useful)
    assert jnp.isfinite(metrics["loss"])


def test_parts_that_hold_nothing_are_not_computed():
  """Activations that are not a number stand in them, and reach neither loss nor weights."""
  stem = lambda batch: LM.stem(LM.init(jax.random.key(0)), batch.tokens, batch.valid)
  packed, apart = packed_and_apart(0, stem=stem)
  empty = ~(packed.valid > 0).reshape(2, 5, 16).any((0, 2))
  assert empty.tolist() == [False, False, True, True, True]
  nothing = np.tile(empty, 2)[:, None, None]
  packed = packed.replace(stem=np.where(nothing, np.nan, packed.stem))
  cfg = sft.SFTConfig(dropout=False)
  of_packed = replace(cfg, packed=True, micro=5)
  assert_same_step(step(start(), packed, cfg=of_packed), step(start(), apart, cfg=cfg))


def test_held_out_loss_is_lowest_epochs_before_samples_are_best():
  """Why a checkpoint is chosen by reward and not by its loss (App. C.1), on 16 demonstrations.

  A labeler answers with any two of eight good words. The model soon learns which words are good; it
  then learns these answers by heart and grows too sure of them, which costs likelihood on other
  labelers' answers. But what it samples is a good word ever more often, which is what the gold
  reward counts. It is exact here: the probability of good words, position by position.
  """
  good = jnp.arange(8, 16)

  def demonstrations(seed, rows):
    words, prompts = jax.random.split(jax.random.key(seed))
    tokens = jnp.concatenate(
      [
        jax.random.randint(prompts, (rows, 4), 16, LM.vocab_size),
        jax.random.choice(words, good, (rows, 2)),
      ],
      axis=1,
    )
    real = jnp.ones_like(tokens, bool)
    return Demonstrations(tokens, real, real & (jnp.arange(6) >= 4))

  train, held_out = demonstrations(0, 16), demonstrations(1, 128)

  @jax.jit
  def measure(params):
    nll, count = sft.evaluate(params, held_out, lm=LM)
    logits = LM.logits(params, LM.hidden(params, held_out.tokens, held_out.valid))
    p_good = jax.nn.softmax(logits[:, 3:5])[..., good].sum(-1)
    return nll / count, p_good.mean()

  tx = optim.adamw(3e-3)
  state = start(tx=tx)
  losses, gold = [], []
  for _ in range(60):  # an epoch is one batch
    state, _ = step(state, train, tx=tx)
    loss, reward = measure(state.params)
    losses.append(float(loss))
    gold.append(float(reward))
  by_loss, by_gold = int(np.argmin(losses)), int(np.argmax(gold))
  assert by_loss + 5 < by_gold, (by_loss, by_gold)
  # The checkpoint of the lowest loss is a worse sampler, and the best sampler has a worse loss.
  assert gold[by_gold] > gold[by_loss] + 0.01
  assert losses[by_gold] > losses[by_loss] + 0.1


# --- what a step is told ---


def scans(function, *args):
  """The lengths of the loops of a function: one of them runs over the micro-batches."""
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return {eqn.params["length"] for eqn in tiny.equations(jaxpr) if eqn.primitive.name == "scan"}


def test_a_step_has_the_micro_batches_and_the_window_that_it_is_told():
  """Neither changes a number, and without them a batch does not fit."""
  batch = tiny.demonstrations(LM, rows=12)
  split = lambda micro: scans(
    partial(sft.sft_step, lm=LM, tx=SGD, cfg=sft.SFTConfig(micro=micro)), start(), {}, batch
  )
  assert 6 in split(6) and 6 not in split(1)
  loss = partial(sft.sft_loss, lm=LM, trunk={}, cfg=sft.SFTConfig(window=7))
  rows = jax.eval_shape(loss, start().params, (batch, sft.token_shares(batch)), None)[1]
  assert [x.shape for x in rows] == [(12, 7), (12, 7)]


def test_the_share_of_a_token_by_hand():
  """Of 2 + 3 marked tokens. Nothing predicts a first token, so its mark does not count."""
  mask = jnp.array([[True, True, True, False], [False, True, True, True]])
  batch = Demonstrations(jnp.zeros((2, 4), jnp.int32), jnp.ones((2, 4), bool), mask)
  np.testing.assert_allclose(sft.token_shares(batch), [1 / 5, 1 / 5], rtol=1e-6)
  second = jnp.array([False, True])
  np.testing.assert_allclose(sft.token_shares(batch, second, 0.25), [0.75 / 2, 0.25 / 3], rtol=1e-6)


def test_a_step_counts_averages_and_measures_its_gradient():
  """By gradient descent at rate 1 the move is the gradient."""
  batch = tiny.demonstrations(LM, rows=4)
  params = LM.init(jax.random.key(0))
  state = steps.init_state(jax.random.key(0), params, SGD, ema=params)
  new, metrics = step(state, batch, cfg=sft.SFTConfig(ema_decay=0.75))
  assert (new.step, new.iteration) == (1, 1)
  move = jax.tree.map(jnp.subtract, new.params, params)
  assert metrics["grad/norm"] == pytest.approx(float(optax.tree.norm(move)), rel=1e-4)
  expected = jax.tree.map(lambda p, m: p + 0.25 * m, params, move)
  tiny.assert_trees_close(new.ema, expected, atol=1e-6)


def test_an_evaluation_has_no_dropout_and_counts_what_is_marked():
  batch = tiny.demonstrations(LM, rows=4)
  params = LM.init(jax.random.key(0))
  dropping = tiny.lm("gpt", dropout=0.5)
  total, count = sft.evaluate(params, batch, lm=dropping)
  expected, _ = evaluate(params, batch)
  assert float(total) == pytest.approx(float(expected), rel=1e-6)
  assert count == batch.mask[:, 1:].sum()

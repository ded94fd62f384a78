"""The sampler: exact draws, cached decoding against full forward passes, ends, masks, keys."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax import likelihood, losses, rollout
from instructjax.errors import UserError
from instructjax.plan import lengths
from instructjax.rollout import Sampling
from instructjax.types import Prompts

FAMILIES = ["gpt", "llama"]


def sample(lm, params, prompts, key, cfg):
  return tiny.jitted(rollout.sample, lm=lm, cfg=cfg)(
    params=params, prompts=prompts, key=jax.random.key(key)
  )


@pytest.fixture(params=FAMILIES)
def model(request):
  lm = tiny.lm(request.param)
  return lm, lm.init(jax.random.key(0))


def test_two_level_draws_follow_the_softmax():
  logits = jax.random.normal(jax.random.key(1), (3, 700)) * 2  # three blocks, the last one padded
  uniforms = jax.random.uniform(jax.random.key(2), (40_000, 3))
  draws = jax.vmap(rollout.categorical, (0, None))(uniforms, logits)
  expected = np.asarray(jax.nn.softmax(logits))
  for row in range(3):
    counts = np.bincount(np.asarray(draws[:, row]), minlength=700)
    common = expected[row] * 40_000 > 20
    error = (counts - 40_000 * expected[row])[common] / np.sqrt(40_000 * expected[row][common])
    assert np.abs(error).max() < 4.5  # z-scores of about a hundred cells
    assert (error**2).mean() == pytest.approx(1.0, abs=0.4)


def test_an_id_without_mass_is_never_drawn_whatever_the_uniform_number():
  mass = jnp.array([[0.0, 0.3, 0.0, 0.7, 0.0]])
  for u, expected in [(0.0, 1), (0.2999, 1), (0.3, 3), (0.9999999, 3), (1.0, 3), (7.0, 3)]:
    index, rest = rollout.first_above(mass, jnp.array([u]))
    assert index[0] == expected
    assert 0 <= rest[0] < 0.7


def test_truncation_by_hand():
  logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]]))
  kept = lambda logits=logits, **kw: list(
    np.flatnonzero(np.isfinite(rollout.truncate(logits, **kw))[0])
  )
  assert kept(top_k=2, top_p=1.0) == [1, 3]
  assert kept(top_k=0, top_p=0.5) == [1]
  assert kept(top_k=0, top_p=0.51) == [1, 3]
  assert kept(top_k=3, top_p=0.6) == [1, 3]  # after top-k the mass is .9: .5/.9 is below .6
  assert kept(top_k=0, top_p=1.0) == [0, 1, 2, 3]
  tied = jnp.log(jnp.array([[0.2, 0.4, 0.2, 0.2]]))
  assert (
    kept(logits=tied, top_k=2, top_p=1.0) == kept(logits=tied, top_k=0, top_p=0.5) == [0, 1, 2, 3]
  )  # none of equals is cut
  assert kept(logits=tied, top_k=0, top_p=0.4) == [1]


@pytest.mark.parametrize(
  "cut", [{"top_p": 0.0}, {"top_p": 1.01}, {"top_k": -1}, {"top_p": float("nan")}]
)
def test_a_cut_that_means_nothing_is_refused(cut):
  with pytest.raises(UserError, match="top_k is a number of tokens"):
    Sampling(response=1, **cut)


def test_the_score_of_a_draw_is_that_of_the_cut_distribution():
  """p = .5, .25, .15, .1; top-p .7 keeps the first two: 2/3 and 1/3."""
  logits = jnp.tile(jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]])), (4000, 1))
  token, logp = rollout.draw(
    jax.random.uniform(jax.random.key(0), (4000,)), logits, Sampling(response=1, top_p=0.7)
  )
  expected = np.log([2 / 3, 1 / 3])
  assert set(np.unique(token)) == {0, 1}
  np.testing.assert_allclose(logp, expected[np.asarray(token)], atol=1e-6)
  assert (np.asarray(token) == 0).mean() == pytest.approx(2 / 3, abs=0.03)  # four standard errors


@given(st.integers(0, 2**31), st.floats(0.05, 1.0), st.integers(0, 12), st.floats(0.1, 3.0))
@settings(max_examples=30, deadline=None)
def test_nothing_outside_the_cut_is_drawn(seed, top_p, top_k, temperature):
  """Against sorting and adding up in float64; logits are rounded, so that many are equal."""
  rng = np.random.default_rng(seed)
  logits = np.round(2 * rng.standard_normal((3, 20)), 1).astype(np.float32)
  cfg = Sampling(response=1, temperature=temperature, top_k=top_k, top_p=top_p, banned=(7,))
  token, logp = rollout.draw(
    jax.random.uniform(jax.random.key(seed), (3,)), jnp.asarray(logits), cfg
  )
  for row, sampled, scored in zip(logits, np.asarray(token), np.asarray(logp)):
    p = np.exp(row.astype(np.float64) / temperature) * (np.arange(20) != 7)
    p[p < np.sort(p)[::-1][(top_k or 20) - 1]] = 0
    p /= p.sum()
    more = np.array(
      [p[p > one].sum() for one in p]
    )  # the mass of what is likelier: equals go together
    outside = more > top_p + 1e-5
    assert sampled != 7 and not outside[sampled] and p[sampled] > 0
    inside = p * (more < top_p - 1e-5)
    if (np.abs(more - top_p) > 1e-5).all():
      np.testing.assert_allclose(scored, np.log(inside[sampled] / inside.sum()), atol=2e-4)


def test_a_whole_distribution_costs_no_sort():
  lm = tiny.lm("gpt")
  params, prompts = lm.init(jax.random.key(0)), tiny.prompts(lm, rows=2)

  def primitives(**cut):
    run = jax.make_jaxpr(partial(rollout.sample, lm, cfg=Sampling(response=2, **cut)))(
      params, prompts, jax.random.key(0)
    )
    # The numbers of slots and prompts are sorted, which are integers; logits are not.
    sorts = [eqn for eqn in tiny.equations(run.jaxpr) if str(eqn.primitive) in ("sort", "top_k")]
    of_floats = [eqn for eqn in sorts if eqn.invars[0].aval.dtype == jnp.float32]
    return {str(eqn.primitive) for eqn in of_floats}

  assert primitives() == primitives(temperature=0.0, top_p=0.9) == set()
  assert primitives(top_p=0.9) == {"sort"}
  assert primitives(top_k=5) == {"top_k"}


def test_sampler_logp_equals_the_trainers(model):
  lm, params = model
  prompts = tiny.prompts(lm, rows=5)
  cfg = Sampling(response=7, temperature=0.7, eos=(3, 5), banned=(0, 9))
  rows = jax.jit(partial(rollout.sample, lm, cfg=cfg))(params, prompts, jax.random.key(3))
  logp, _ = likelihood.response_logp(
    lm, params, rows.tokens, rows.valid, 7, temperature=0.7, banned=cfg.banned
  )
  np.testing.assert_allclose(rows.logp, logp * rows.mask, atol=2e-5)
  assert float(jnp.abs(rows.logp).max()) > 0.1


def test_greedy_decoding_equals_argmax_of_full_forward_passes(model):
  lm, params = model
  prompts = tiny.prompts(lm, rows=4)
  rows = sample(lm, params, prompts, 0, Sampling(response=6, temperature=0))
  tokens, valid = prompts.tokens, prompts.valid
  for _ in range(6):
    logits = lm.logits(params, lm.hidden(params, tokens, valid)[:, -1])
    tokens = jnp.concatenate([tokens, jnp.argmax(logits, -1)[:, None].astype(jnp.int32)], 1)
    valid = jnp.concatenate([valid, jnp.ones((4, 1), bool)], 1)
  np.testing.assert_array_equal(rows.tokens, tokens)


def test_responses_end_at_any_end_token_and_stay_empty_after_it(model):
  lm, params = model
  prompts = tiny.prompts(lm, rows=64)
  eos = tuple(range(2, 8))
  rows = sample(lm, params, prompts, 4, Sampling(response=9, eos=eos))
  response = np.asarray(rows.tokens[:, -9:])
  assert rows.ended.any()
  assert not rows.ended.all()
  for row, mask, ended in zip(response, np.asarray(rows.mask), np.asarray(rows.ended)):
    ends = np.flatnonzero(np.isin(row, eos) & mask)
    length = ends[0] + 1 if len(ends) else 9
    assert ended == bool(len(ends))
    np.testing.assert_array_equal(mask, np.arange(9) < length)
    assert not row[length:].any()
  np.testing.assert_array_equal(rows.valid[:, -9:], rows.mask)


def test_banned_ids_are_never_sampled(model):
  lm, params = model
  banned = tuple(range(0, lm.vocab_size, 2))
  rows = sample(lm, params, tiny.prompts(lm, rows=32), 5, Sampling(response=8, banned=banned))
  assert (np.asarray(rows.tokens[:, -8:]) % 2 == 1).all()


def test_a_key_repeats_its_samples_and_another_key_does_not(model):
  lm, params = model
  run = lambda key: sample(lm, params, tiny.prompts(lm, rows=8), key, Sampling(response=8))
  np.testing.assert_array_equal(run(1).tokens, run(1).tokens)
  assert (np.asarray(run(1).tokens) != np.asarray(run(2).tokens)).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_read_once_is_continued_as_if_it_stood_there_n_times(model, temperature):
  lm, params = model
  prompts = tiny.prompts(lm, rows=4)
  cfg = Sampling(response=6, temperature=temperature, eos=(3, 5), n=3)
  many = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), prompts)
  rows, expected = (
    sample(lm, params, prompts, 0, cfg),
    sample(lm, params, many, 0, replace(cfg, n=1)),
  )
  # What was computed differs: that is the point of reading a prompt once.
  assert rows.computed.sum() < expected.computed.sum()
  tiny.assert_trees_close(replace(rows, computed=expected.computed), expected, atol=2e-5)
  assert temperature == 0 or len({tuple(row) for row in np.asarray(rows.tokens[:3]).tolist()}) == 3


def test_identical_prompts_in_a_batch_get_different_responses(model):
  lm, params = model
  prompts = jax.tree.map(lambda x: jnp.repeat(x[:1], 16, 0), tiny.prompts(lm, rows=1))
  rows = sample(lm, params, prompts, 0, Sampling(response=8))
  assert len({tuple(r) for r in np.asarray(rows.tokens).tolist()}) > 8


def test_padding_on_the_left_changes_nothing(model):
  lm, params = model
  prompts = tiny.prompts(lm, rows=4)
  wide = Prompts(
    jnp.pad(prompts.tokens, ((0, 0), (5, 0))), jnp.pad(prompts.valid, ((0, 0), (5, 0)))
  )
  cfg = Sampling(response=6)
  a = sample(lm, params, prompts, 6, cfg)
  b = sample(lm, params, wide, 6, cfg)
  np.testing.assert_array_equal(a.tokens[:, -6:], b.tokens[:, -6:])
  np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)


def test_the_loop_stops_when_every_row_has_ended():
  """With every id an end, the first token ends all rows: the loop must not run the other steps."""
  lm = tiny.lm("gpt")
  calls = []

  def decode(params, tokens, valid, cache):
    jax.debug.callback(lambda: calls.append(tokens.shape[1]))
    return lm.decode(params, tokens, valid, cache)

  counting = lm._replace(decode=decode)
  params = lm.init(jax.random.key(0))
  cfg = Sampling(response=20, eos=tuple(range(lm.vocab_size)))
  rows = rollout.sample(counting, params, tiny.prompts(lm, rows=3), jax.random.key(0), cfg)
  jax.block_until_ready(rows)
  jax.effects_barrier()
  assert len(calls) == 1  # the prompts, in one part
  assert rows.mask.sum() == 3


def test_a_schedule_ends_rows_whatever_is_sampled():
  """With n = 2 as well: both responses of a prompt end where its schedule says."""
  lm = tiny.lm("gpt")
  params, prompts = lm.init(jax.random.key(0)), tiny.prompts(lm, rows=3)
  scheduled = replace(prompts, ends=jnp.array([4, 1, 2], jnp.int32))
  for n in (1, 2):
    cfg = Sampling(response=5, n=n)
    rows = sample(lm, params, scheduled, 1, cfg)
    np.testing.assert_array_equal(rows.mask.sum(-1), np.repeat([4, 1, 2], n))
    assert rows.ended.all()
    free = sample(lm, params, prompts, 1, cfg)
    assert not free.ended.any()
    np.testing.assert_array_equal(rows.logp[rows.mask], free.logp[rows.mask])
    np.testing.assert_array_equal(rows.tokens[:, -5:], np.where(rows.mask, free.tokens[:, -5:], 0))


@pytest.mark.parametrize(
  ("mesh", "cut"),
  [((2, 2, 2), {"top_k": 40, "top_p": 0.9}), ((1, 2, 4), {})],
  indirect=["mesh"],
  ids=str,
)
def test_sampling_runs_sharded_and_gives_the_same_tokens(mesh, cut):
  from instructjax import sharding

  lm = tiny.lm("llama")
  cfg = Sampling(response=5, eos=(3,), **cut)
  run = jax.jit(partial(rollout.sample, lm, cfg=cfg))
  inputs = lambda: (lm.init(jax.random.key(0)), tiny.prompts(lm, rows=8))
  expected = tiny.unsharded(lambda: run(*inputs(), jax.random.key(1)))
  params, prompts = inputs()
  placed = sharding.place(params, sharding.shardings(lm.table))
  apart = jax.jit(partial(rollout.sample, lm, cfg=replace(cfg, whole=False)))
  for one in (run, apart):  # weights whole along fsdp, and gathered a layer at a time
    rows = one(placed, sharding.place_batch(prompts), jax.random.key(1))
    np.testing.assert_array_equal(rows.tokens, expected.tokens)
    np.testing.assert_allclose(rows.logp, expected.logp, atol=1e-4)


@pytest.mark.parametrize("mesh", [(1, 1, 8)], indirect=True, ids=str)
def test_a_split_vocabulary_draws_the_same_tokens_and_is_never_gathered(mesh):
  rows, vocab_size = 512, 4096  # two blocks on each device
  logits = jax.random.normal(jax.random.key(0), (rows, vocab_size)) * 3
  # The same likeliest token stands on two devices: the first counts.
  logits = logits.at[0, jnp.array([700, 3500])].set(50.0)
  u = jax.random.uniform(jax.random.key(1), (rows,))
  split = jax.sharding.reshard(logits, jax.P(("data", "fsdp"), "model"))
  u_on_mesh = jax.sharding.reshard(u, jax.P(("data", "fsdp")))
  for temperature in (0.0, 0.7):
    cfg = Sampling(response=1, temperature=temperature, banned=(0,))
    draw = jax.jit(partial(rollout.draw, cfg=cfg))
    expected = tiny.unsharded(lambda draw=draw: draw(np.asarray(u), np.asarray(logits)))
    token, logp = draw(u_on_mesh, split)
    np.testing.assert_array_equal(token, expected[0])
    np.testing.assert_allclose(logp, expected[1], atol=1e-5)
    if temperature == 0:
      assert np.asarray(token)[0] == 700
    program = draw.lower(u_on_mesh, split).compile().as_text()
    gathers = [line for line in program.splitlines() if "= " in line and "all-gather(" in line]
    # The masses of 16 blocks are gathered, of 4096 ids.
    assert all("f32[512,16]" in line for line in gathers)
    assert len(gathers) == (temperature > 0)


def test_temperature_shapes_sampler_and_scorer_alike():
  logits = jnp.array([1.0, 2.0, 4.0])
  np.testing.assert_allclose(losses.temper(logits, 2.0), [0.5, 1.0, 2.0], rtol=1e-6)


def test_more_tokens_to_keep_than_there_are_keep_all():
  logits = jnp.array([[0.0, 1.0, 2.0]])
  np.testing.assert_array_equal(rollout.truncate(logits, 10, 1.0), logits)


def test_large_logits_draw_the_largest():
  """e^1000 is no float32."""
  logits = jnp.array([[0.0, 1000.0, 0.0]])
  assert rollout.categorical(jnp.zeros(1), logits)[0] == 1


def test_greedy_decoding_says_no_banned_id():
  """The likeliest of the rest, scored without the banned one: log(e / (1 + e))."""
  cfg = Sampling(response=1, temperature=0.0, banned=(1,))
  token, logp = rollout.draw(jnp.zeros(1), jnp.array([[0.0, 5.0, 1.0]]), cfg)
  assert token[0] == 2
  np.testing.assert_allclose(logp, [1 - np.log(1 + np.e)], rtol=1e-6)


def test_every_token_and_every_row_has_noise_of_its_own():
  """A model of zeros gives every id the same chance, whatever was said before."""
  lm = tiny.lm("gpt")
  params = jax.tree.map(jnp.zeros_like, lm.init(jax.random.key(0)))
  rows = sample(lm, params, tiny.prompts(lm, rows=4), 0, Sampling(response=8))
  response = np.asarray(rows.tokens[:, -8:])
  assert min(len(set(row)) for row in response.tolist()) > 4
  assert len({tuple(row) for row in response.tolist()}) == 4


def test_nothing_is_written_after_the_end():
  lm = tiny.lm("gpt")
  params = lm.init(jax.random.key(0))
  rows = sample(lm, params, tiny.prompts(lm, rows=16), 4, Sampling(response=9, eos=(2, 3, 4, 5)))
  outside = ~np.asarray(rows.mask)
  assert outside.any()
  assert not np.asarray(rows.logp)[outside].any()
  assert not np.asarray(rows.tokens[:, -9:])[outside].any()


# --- slots ---


def ragged(lm, rows, width=20):
  """Prompts of different lengths, and a schedule of ends from 1 to 12."""
  rng = np.random.default_rng(0)
  length = rng.integers(1, width + 1, rows)
  valid = np.arange(width) >= width - length[:, None]
  tokens = rng.integers(1, lm.vocab_size, (rows, width)) * valid
  ends = jnp.asarray(rng.integers(1, 13, rows), jnp.int32)
  return Prompts(jnp.asarray(tokens, jnp.int32), jnp.asarray(valid), ends)


@pytest.mark.parametrize("n", [1, 2])
def test_slots_change_nothing_but_the_work(model, n):
  """Three slots and forty rows, or a slot a row: the same tokens, and fewer positions."""
  lm, params = model
  prompts = ragged(lm, 40 // n)
  cfg = Sampling(response=12, eos=(3,), n=n)
  few, all_at_once = (sample(lm, params, prompts, 0, replace(cfg, slots=s)) for s in (4, 40))
  np.testing.assert_array_equal(few.tokens, all_at_once.tokens)
  np.testing.assert_array_equal(few.mask, all_at_once.mask)
  np.testing.assert_array_equal(few.ended, all_at_once.ended)
  np.testing.assert_allclose(few.logp, all_at_once.logp, atol=1e-5)
  padded = 40 // n * 20 + 40 * 11  # every prompt and every response as long as the longest
  assert few.computed.sum() < padded
  length = np.asarray(few.mask.sum(1))
  schedule = np.repeat(np.asarray(prompts.ends), n)
  assert (length <= schedule).all()
  assert (length == schedule).mean() > 0.8  # the others drew an end of text before


def test_halvings_change_nothing_but_the_work(model):
  """The last rows move together never or often: the same tokens, and fewer positions."""
  lm, params = model
  prompts = ragged(lm, 40)
  cfg = Sampling(response=12, eos=(3,), slots=32)
  never, often = (sample(lm, params, prompts, 0, replace(cfg, halvings=h)) for h in (0, 3))
  np.testing.assert_array_equal(never.tokens, often.tokens)
  np.testing.assert_allclose(never.logp, often.logp, atol=1e-5)
  assert often.computed.sum() < never.computed.sum()
  assert rollout.sizes_of(32, 0) == [32, 0]
  assert rollout.sizes_of(32, 2) == [32, 16, 8, 0]
  assert rollout.sizes_of(12, 3) == [12, 6, 0]


def test_the_order_of_rows_in_the_queue_changes_nothing():
  """A neighbour's prompt of another length moves a row in the queue, and not what it says."""
  lm = tiny.lm("llama")
  params = lm.init(jax.random.key(0))
  prompts = ragged(lm, 12)
  others = replace(prompts, valid=prompts.valid.at[1:, :12].set(False))
  cfg = Sampling(response=12, slots=3)
  rows, moved = (sample(lm, params, p, 0, cfg) for p in (prompts, others))
  np.testing.assert_array_equal(rows.tokens[0], moved.tokens[0])
  np.testing.assert_allclose(rows.logp[0], moved.logp[0], atol=1e-5)
  assert float(jnp.abs(rows.logp - moved.logp).max()) > 0.01


def test_what_is_sampled_in_slots_is_scored_alike(model):
  """Against full forward passes: nothing of the slot's earlier rows is seen."""
  lm, params = model
  prompts = ragged(lm, 20)
  rows = sample(lm, params, prompts, 3, Sampling(response=12, slots=4))
  logp, _ = likelihood.response_logp(lm, params, rows.tokens, rows.valid, 12)
  np.testing.assert_allclose(rows.logp, logp * rows.mask, atol=2e-5)


def test_a_ring_of_columns_serves_many_waves():
  """Every response at full length: each of five waves writes over the columns of the one before."""
  lm = tiny.lm("gpt")
  params = lm.init(jax.random.key(0))
  prompts = replace(ragged(lm, 20), ends=None)
  rows = sample(lm, params, prompts, 3, Sampling(response=9, slots=4))
  assert rows.mask.all()
  logp, _ = likelihood.response_logp(lm, params, rows.tokens, rows.valid, 9)
  np.testing.assert_allclose(rows.logp, logp, atol=2e-5)


def test_most_of_the_work_at_real_lengths_is_useful():
  """Lengths as in the paper, scaled to 128 + 128: four fifths of the positions hold a token."""
  lm = tiny.lm("gpt")._replace(
    context=256,
    # Only positions are counted, so nothing is computed.
    decode=lambda params, tokens, valid, cache: (jnp.zeros((*tokens.shape, lm.width)), cache),
    init_cache=lambda rows, length, block, int8_cache: {
      "position": jnp.zeros((rows, 1), jnp.int32),
      "index": jnp.int32(0),
    },
  )
  prompt, response = lengths.draws("paper", 128, 128)(0, 256)
  valid = np.arange(128) >= 128 - prompt[:, None]
  prompts = Prompts(jnp.asarray(valid, jnp.int32), jnp.asarray(valid), jnp.asarray(response))
  rows = sample(lm, tiny.lm("gpt").init(jax.random.key(0)), prompts, 0, Sampling(response=128))
  np.testing.assert_array_equal(rows.mask.sum(1), response)
  useful = (prompt.sum() + response.sum() - 256) / rows.computed.sum()  # the last is never read
  assert useful >= 0.8
  assert float(rollout.useful_share(rows)) == pytest.approx(float(useful))
  # At full length with a slot for each row nothing is padding.
  full = Prompts(jnp.ones((64, 8), jnp.int32), jnp.ones((64, 8), bool), jnp.full(64, 5))
  params = tiny.lm("gpt").init(jax.random.key(0))
  rows = sample(lm, params, full, 0, Sampling(response=5))
  assert float(rollout.useful_share(rows)) == pytest.approx(1)
  # A prompt is read once for its four responses.
  rows = sample(lm, params, full, 0, Sampling(response=5, n=4, slots=256))
  assert float(rollout.useful_share(rows, 4)) == pytest.approx(1)


@pytest.mark.parametrize("mesh", [(2, 2, 2)], indirect=True, ids=str)
def test_slots_on_a_mesh_are_those_of_each_device(mesh):
  from instructjax import sharding

  lm = tiny.lm("gpt")
  run = jax.jit(partial(rollout.sample, lm, cfg=Sampling(response=12, eos=(3,), slots=16)))
  inputs = lambda: (lm.init(jax.random.key(0)), ragged(lm, 32))
  expected = tiny.unsharded(lambda: run(*inputs(), jax.random.key(1)))
  params, prompts = inputs()
  placed = sharding.place(params, sharding.shardings(lm.table))
  rows = run(placed, sharding.place_batch(prompts), jax.random.key(1))
  np.testing.assert_array_equal(rows.tokens, expected.tokens)
  np.testing.assert_array_equal(rows.ended, expected.ended)
  np.testing.assert_allclose(rows.logp, expected.logp, atol=1e-4)


# --- weights and cache as integers ---

INTEGERS = [("int8", "float"), ("float", "int8"), ("int8", "int8")]


@pytest.mark.parametrize(("weights", "stored"), INTEGERS)
def test_integers_sample_almost_the_model_that_is_scored(model, weights, stored):
  lm, params = model
  prompts = tiny.prompts(lm, rows=8)
  cfg = Sampling(response=12, weights=weights, cache=stored)
  rows = sample(lm, params, prompts, 3, cfg)
  logp, _ = likelihood.response_logp(lm, params, rows.tokens, rows.valid, 12)
  error = float(jnp.abs(rows.logp - logp).mean())
  # Float is at 1e-7.
  assert 1e-5 < error < 2e-3


def test_slots_change_nothing_in_integers():
  lm = tiny.lm("llama")
  params, prompts = lm.init(jax.random.key(0)), ragged(lm, 20)
  cfg = Sampling(response=12, eos=(3,), weights="int8", cache="int8")
  few, all_at_once = (sample(lm, params, prompts, 0, replace(cfg, slots=s)) for s in (4, 20))
  np.testing.assert_array_equal(few.tokens, all_at_once.tokens)
  np.testing.assert_allclose(few.logp, all_at_once.logp, atol=1e-5)


def test_another_store_of_weights_or_cache_is_refused():
  for name in ("weights", "cache"):
    with pytest.raises(UserError, match=f"{name} is 'int4': choose one of float, int8"):
      Sampling(response=1, **{name: "int4"})

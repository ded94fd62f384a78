"""Packed episodes: where they stand, and that packed and padded rows give the same numbers."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from instructjax import losses, optim, packs, ppo, returns, reward, sharding, steps
from instructjax.models import freeze
from instructjax.ppo import PPOConfig
from instructjax.rollout import Sampling
from instructjax.types import Rollout

P, R = 8, 6
T = P + R
FORM = packs.form_of(P, R)
SGD = optim.by_subtree(policy=optax.sgd(1.0), value=optax.sgd(1.0))
LM = tiny.lm("llama")
# (prompt, response): one of full length, one of a token each, two cut ones, and several that share
# a row.
LENGTHS = [(P, R), (1, 1), (3, R), (2, 2), (5, 1), (1, 3), (P, 2), (2, 4)]


def rollout(lengths, seed=0, tokens=None):
  """Random episodes of these lengths; a response of R tokens was cut, the others ended."""
  rng = np.random.default_rng(seed)
  prompt, response = np.array(lengths).T
  if tokens is None:
    tokens = rng.integers(6, tiny.VOCAB, (len(lengths), T))
  prompt_is_real = np.arange(P) >= P - prompt[:, None]
  mask = np.arange(R) < response[:, None]
  valid = np.concatenate([prompt_is_real, mask], axis=1)
  tokens = jnp.asarray(tokens * valid, jnp.int32)
  logp = jnp.asarray(-rng.exponential(1.0, mask.shape), jnp.float32)
  return Rollout(tokens, jnp.asarray(valid), jnp.asarray(mask), logp, jnp.asarray(response < R))


@cache
def experiment(place=returns.at_last_token, n=1, **settings):
  settings = {"minibatches": 1, "ptx_coef": 0.0, "ema_decay": None} | settings
  sampling = Sampling(response=R, temperature=0.7, eos=(3,), n=n)
  return ppo.PPO(lm=LM, tx=SGD, sampling=sampling, cfg=PPOConfig(**settings), place=place)


@cache
def models(top=0):
  """(policy and value network, what is frozen); only the `top` blocks are trained, unless 0."""
  return tiny.unsharded(lambda: models_of(top))


def models_of(top):
  ref, judge = LM.init(jax.random.key(0)), tiny.reward_model(LM, 7)
  policy = tiny.perturb(ref, 0.05)
  if not top:
    return ppo.init_params(policy, judge), ppo.Frozen({}, ref, judge)
  trunk, ref = freeze.split(ref, top)
  _, policy = freeze.split(policy, top)
  _, body = freeze.split(trunk | judge["lm"] | {"blocks": judge["lm"]["blocks"]}, top)
  judge = {"lm": {k: v for k, v in body.items() if k != "head"}, "head": judge["head"]}
  return ppo.init_params(policy, judge), ppo.Frozen(trunk, ref, judge)


def collect(config, params, frozen, rows):
  policy_stem, reward_stem = ppo.stems(frozen, rows, config)
  scores = ppo.score(frozen, rows, config, reward_stem)
  exp, metrics = ppo.credit(
    params, frozen, rows, scores, jnp.float32(0.1), config, policy_stem, reward_stem
  )
  return scores, exp, metrics


def update(config, params, frozen, exp, first=False):
  state = steps.new_state(jax.random.key(0), params, config.tx, kl_coef=0.1)
  new, metrics = ppo.minibatch_step(state, (exp, None), frozen=frozen, ppo=config, first=first)
  return jax.tree.map(jnp.subtract, params, new.params), metrics


def padded_scores(config, frozen, rows):
  """The scores, log-probabilities and values of padded rows: what packing has to give."""
  params = ppo.reward_side(frozen, frozen.reward)
  return reward.score(LM, params, reward.closed(rows, config.sampling.eos), rows.valid)


def padded_update(config, params, frozen, exp):
  """The gradient of a minibatch of padded rows in one piece, and its loss and metrics."""
  cfg = config.cfg
  exp = exp.replace(advantage=returns.whiten(exp.advantage, exp.mask))
  weigh = losses.WEIGHTS[cfg.normalise]
  loss = partial(ppo.ppo_loss, frozen=frozen, ppo=config)
  batch = (exp, weigh(exp.mask), weigh(exp.value_mask))
  (value, rows), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, None)
  logp, values, entropy = rows
  metrics = {
    "loss/total": value,
    **losses.policy_metrics(logp, exp.logp, exp.advantage, exp.mask, clip=cfg.clip),
    **losses.value_metrics(values, exp.value, exp.target, exp.value_mask, clip=cfg.value_clip),
    "policy/entropy_avg": returns.masked_mean(entropy, exp.mask),
    "grad/norm_ppo": optax.tree.norm(grads["policy"]),
    "grad/norm_value": optax.tree.norm(grads["value"]),
  }
  return grads, metrics


# Where episodes stand


def on_host(part):
  return SimpleNamespace(**{name: np.asarray(array) for name, array in vars(part).items()})


def occupied(layout):
  """(shard row, episode, column) of every position that holds a real token."""
  part = on_host(layout.parts)
  real = part.valid > 0
  rows = np.broadcast_to(
    np.arange(real.shape[0] * real.shape[1]).reshape(*real.shape[:2], 1), real.shape
  )
  return list(zip(rows[real], part.episode[real], part.column[real], strict=True))


@pytest.mark.parametrize("q", [1, 3, 8])
def test_every_token_stands_once_and_an_episode_in_one_row(q):
  rows = rollout(LENGTHS)
  layout = packs.lay_out(rows.tokens, rows.valid, rows.mask, q, FORM)
  positions = occupied(layout)
  expected = {(int(e), int(c)) for e, c in np.argwhere(rows.valid)}
  assert len(positions) == len(expected)
  assert {(e, c) for _, e, c in positions} == expected
  for episode in range(len(LENGTHS)):
    assert len({row for row, e, _ in positions if e == episode}) == 1
  # Four rows have room for 55 tokens, and five for 25 of responses. Parts of q rows are computed.
  used = len({row for row, *_ in positions})
  assert used == 5
  assert layout.count == -(-used // q)
  assert layout.parts.valid.shape[:2] == (-(-8 // q), q)
  assert float(packs.useful(layout)) == pytest.approx(55 / (layout.count * q * T))


def test_a_segment_is_an_episode_and_its_states_are_its_own():
  rows = rollout(LENGTHS)
  parts = packs.lay_out(rows.tokens, rows.valid, rows.mask, 1, FORM).parts
  part = on_host(jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), parts))
  mask = np.asarray(rows.mask)
  seen = []
  for row in range(part.valid.shape[0]):
    real = part.valid[row] > 0
    pairs = set(zip(part.valid[row][real], part.episode[row][real]))
    assert len({s for s, _ in pairs}) == len({e for _, e in pairs}) == len(pairs)
    for place in np.flatnonzero(part.holds[row]):
      episode, token = part.response_episode[row, place], part.response_column[row, place]
      before = part.before[row, place]
      assert part.episode[row, before] == episode
      assert part.column[row, before] == P - 1 + token
      seen.append((episode, token))
  assert sorted(seen) == [tuple(x) for x in np.argwhere(mask)]


def test_there_and_back_is_the_identity():
  rows = rollout(LENGTHS)
  layout = packs.lay_out(rows.tokens, rows.valid, rows.mask, 3, FORM)
  x = {"tokens": jnp.arange(8 * T).reshape(8, T), "stem": jnp.ones((8, T, 2))}
  packed = jax.vmap(lambda part: packs.take_tokens(part, x))(layout.parts)
  back = packs.give_tokens(layout, packed, rows.valid, R)
  np.testing.assert_array_equal(back["tokens"], x["tokens"] * rows.valid)
  np.testing.assert_array_equal(back["stem"], x["stem"] * rows.valid[..., None])
  packed = jax.vmap(lambda part: packs.take_responses(part, rows.logp))(layout.parts)
  np.testing.assert_array_equal(
    packs.give_responses(layout, packed, rows.mask), rows.logp * rows.mask
  )


def test_rows_at_once_by_hand():
  assert packs.rows_at_once(32, 256) == 1  # a row is long enough
  assert packs.rows_at_once(8, 96) == 2
  assert packs.rows_at_once(32, 96, learnt=False) == 8  # four times as many where none is learnt
  assert packs.rows_at_once(9, 96) == 3  # which divides nine episodes
  assert packs.rows_at_once(7, 96) == 2  # nothing near divides seven
  assert packs.rows_at_once(8, 96, rows=3) == 3
  assert packs.rows_at_once(8, 14) == 8
  assert packs.rows_at_once(8, 14, micro=4) == 2  # no more than a micro-batch
  assert packs.rows_at_once(0, 14) == 1


def test_shards_are_dealt_about_equally_many_tokens():
  length = jnp.array([9, 1, 8, 2, 7, 3, 6, 4])
  dealt = np.asarray(packs.deal(length, 2))
  assert sorted(dealt) == list(range(8))
  np.testing.assert_array_equal(np.asarray(length)[dealt], [9, 6, 4, 1, 8, 7, 3, 2])


def test_most_of_what_is_computed_is_useful_at_the_lengths_of_the_paper():
  """Lognormal lengths (Table 9), of 1,024 tokens at most, scaled to 128 + 128; 32 episodes."""
  rng = np.random.default_rng(0)

  def lengths(median, mean):
    drawn = rng.lognormal(np.log(median), np.sqrt(2 * np.log(mean / median)), (80, 32))
    return np.clip(np.round(drawn * 128 / 1024), 1, 128).astype(int)

  prompt, response = lengths(62, 166), lengths(50, 100)
  mask = np.arange(128) < response[..., None]
  valid = np.concatenate([np.arange(128) >= 128 - prompt[..., None], mask], axis=-1)

  @jax.jit
  def useful(valid, mask):
    tokens = valid.astype(jnp.int32)
    layout = packs.lay_out(
      tokens, valid, mask, packs.rows_at_once(32, 256), packs.form_of(128, 128)
    )
    return packs.useful(layout)

  shares = [float(useful(v, m)) for v, m in zip(valid, mask)]
  assert valid.mean() < 0.2
  # Rows that hold as many tokens as there are, rounded up, would give .88.
  assert np.mean(shares) >= 0.85
  assert useful._cache_size() == 1


# Responses that share their prompt

# Four prompts with four responses each. The last responses to the second are to another prompt.
GROUPS = [[(P, r) for r in (R, R, R, R)], [(3, r) for r in (1, 2, 6, 3)]]
GROUPS += [[(1, 1)] * 4, [(5, r) for r in (2, 1, 4, 5)]]
SHARED = [lengths for group in GROUPS for lengths in group]


def shared_form(groups=100):
  return packs.form_of(P, R, together=4, groups=groups)


def shared_rollout(seed=0):
  """Random episodes of `SHARED`: the responses of a group have one prompt."""
  rows = rollout(SHARED, seed)
  tokens = np.array(rows.tokens)
  for first in range(0, len(SHARED), 4):
    tokens[first : first + 4, :P] = tokens[first, :P]
  return rows.replace(tokens=jnp.asarray(tokens))


@pytest.mark.parametrize("q", [1, 2])
def test_a_shared_prompt_stands_once_in_a_row(q):
  rows = shared_rollout()
  layout = packs.lay_out(rows.tokens, rows.valid, rows.mask, q, shared_form())
  form = shared_form()
  assert layout.parts.valid.shape[-1] == form.positions == 192
  assert layout.parts.holds.shape[-1] == form.places == 144  # 24 of 32 full positions
  # All stand in one row: the prompts have 8, 3, 1 and 5 tokens, the responses 24, 12, 4 and 12.
  assert layout.count == 1
  positions = occupied(layout)
  assert {row for row, *_ in positions} == {0}
  assert len(positions) == 8 + 3 + 1 + 5 + 24 + 12 + 4 + 12
  assert float(packs.useful(layout)) == pytest.approx(69 / (192 * q))


def test_a_branch_continues_from_its_own_prompt():
  rows = shared_rollout()
  parts = packs.lay_out(rows.tokens, rows.valid, rows.mask, 1, shared_form()).parts
  part = on_host(jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), parts))
  mask, tokens = np.asarray(rows.mask), np.asarray(rows.tokens)
  seen = []
  for row in range(part.valid.shape[0]):
    for place in np.flatnonzero(part.holds[row]):
      episode, token = part.response_episode[row, place], part.response_column[row, place]
      before = part.before[row, place]
      segment = part.valid[row, before]
      # What the state before a token sees: the prompt of the episode, and its response so far.
      visible = (part.valid[row] == segment) & (np.arange(part.valid.shape[1]) <= before)
      visible &= (part.branch[row] == 0) | (part.branch[row] == part.branch[row, before])
      read = tokens[part.episode[row], part.column[row]][visible]
      expected = tokens[episode][np.asarray(rows.valid)[episode] & (np.arange(T) < P + token)]
      np.testing.assert_array_equal(read, expected)
      seen.append((episode, token))
  assert sorted(seen) == [tuple(x) for x in np.argwhere(mask)]


def test_a_full_row_parts_the_responses_of_a_prompt(monkeypatch):
  """A row has room for a prompt and two full responses, or else for what is shorter."""
  monkeypatch.setattr(sharding, "positions_at_once", lambda learnt: P + 2 * R)
  rows = shared_rollout()
  layout = packs.lay_out(rows.tokens, rows.valid, rows.mask, 1, shared_form())
  form = shared_form()
  assert (form.positions, form.places, form.most_rows(16)) == (20, 15, 8)
  positions = occupied(layout)
  covered = {(int(e), int(c)) for _, e, c in positions}
  assert {(e, c) for e, c in np.argwhere(rows.valid) if c >= P} <= covered
  # The first prompt is there for two of its responses, and again for the other two.
  prompt_columns = [(row, e) for row, e, c in positions if e < 4 and c == P - 1]
  assert sorted(e for _, e in prompt_columns) == [0, 2]
  x = jnp.arange(16 * T).reshape(16, T) * rows.valid
  same_prompt = x.at[:, :P].set(jnp.repeat(x[::4, :P], 4, axis=0) * rows.valid[:, :P])
  packed = jax.vmap(lambda part: packs.take_tokens(part, same_prompt))(layout.parts)
  back = packs.give_tokens(layout, packed, rows.valid, R)
  np.testing.assert_array_equal(back, same_prompt)


def test_another_prompt_is_not_shared():
  rows = shared_rollout()
  other = rows.tokens.at[2, P - 1].add(1)
  layout = packs.lay_out(other, rows.valid, rows.mask, 1, shared_form())
  prompts = [(e, c) for _, e, c in occupied(layout) if e < 4 and c == P - 1]
  # The third response has another prompt, and the fourth that of the first again.
  assert sorted(e for e, _ in prompts) == [0, 2, 3]


def test_episodes_that_share_nothing_have_room(monkeypatch):
  """As where somebody gives a minibatch in an order of their own: all of full length, one a row."""
  monkeypatch.setattr(sharding, "positions_at_once", lambda learnt: T)
  rows = rollout([(P, R)] * 8)
  layout = packs.lay_out(rows.tokens, rows.valid, rows.mask, 2, shared_form())
  assert layout.count == 4
  assert len(set(occupied(layout))) == 8 * T


@pytest.mark.parametrize("top, positions", [(0, 192), (1, 20)])
def test_shared_prompts_equal_prompts_that_stand_alone(top, positions, monkeypatch):
  """Scores, log-probabilities, values, every metric of the update and every gradient."""
  monkeypatch.setattr(sharding, "positions_at_once", lambda learnt: positions)
  params, frozen = models(top)
  rows = shared_rollout()
  results = []
  for n in (1, 4):
    config = experiment(n=n, rows_at_once=2)
    scores, exp, metrics = jax.jit(partial(collect, config))(params, frozen, rows)
    change, of_update = jax.jit(partial(update, config))(params, frozen, moved(exp))
    results.append(((scores, exp.logp, exp.value), change, metrics | of_update))
  (alone, change, metrics), (shared, shared_change, shared_metrics) = results
  tiny.assert_trees_close(shared, alone, rtol=1e-5, atol=1e-5)
  tiny.assert_trees_close(shared_change, change, rtol=1e-4, atol=1e-5)
  for name, expected in metrics.items():
    if not name.endswith("useful"):
      np.testing.assert_allclose(shared_metrics[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_most_rows_by_hand():
  assert packs.form_of(P, R).most_rows(8) == 8
  form = shared_form()._replace(positions=70)
  assert form.places == 53
  assert form.most_rows(16) == 2  # two groups of 32 positions a row
  assert form._replace(positions=32).most_rows(16) == 4
  assert form._replace(positions=26).most_rows(16) == 8  # a prompt and three responses, and one
  assert shared_form(groups=2).positions == 64  # a minibatch of two groups fills no longer row


def test_the_responses_of_a_prompt_stay_in_one_minibatch():
  cfg = PPOConfig(minibatches=4, epochs=2)
  orders = np.asarray(ppo.order(jax.random.key(0), 32, cfg, together=4))
  assert orders.shape == (8, 8)
  assert sorted(orders[:4].reshape(-1)) == list(range(32))
  groups = orders.reshape(-1, 4)
  np.testing.assert_array_equal(groups - groups[:, :1], np.tile(np.arange(4), (16, 1)))
  assert ppo.together_of(8, 4) == 4
  assert ppo.together_of(6, 4) == 1  # a group would be parted


def test_the_order_does_not_depend_on_the_mesh(monkeypatch):
  """Two devices have half a group each of a minibatch of four: they stay in it nevertheless."""
  seen = []
  order = ppo.order

  def recorded(key, rows, cfg, together):
    seen.append(together)
    return order(key, rows, cfg, together)

  monkeypatch.setattr(ppo, "order", recorded)
  config = experiment(n=4, minibatches=4)
  params, frozen = models()
  _, exp, _ = collect(config, params, frozen, shared_rollout())
  state = steps.new_state(jax.random.key(0), params, config.tx, kl_coef=0.1)
  for shards in (1, 2):
    monkeypatch.setattr(sharding, "batch_shards", lambda shards=shards: shards)
    jax.eval_shape(lambda state: ppo.improve(state, frozen, exp, None, config), state)
  assert seen == [4, 4]


def test_shards_get_whole_groups():
  length = jnp.array([5, 4, 1, 1, 2, 2, 3, 3])
  dealt = np.asarray(packs.deal(length, 2, together=2))
  np.testing.assert_array_equal(dealt, [0, 1, 2, 3, 6, 7, 4, 5])


# Packed equals padded


@pytest.mark.parametrize(
  "place, top, normalise",
  [
    (returns.at_last_token, 0, "token_mean"),
    (returns.after_last_token, 0, "sequence_mean"),
    (returns.at_last_token, 1, "sequence_sum"),
  ],
)
def test_packed_equals_padded(place, top, normalise):
  """Scores, log-probabilities, values, the loss, every metric and every gradient."""
  config = experiment(place=place, normalise=normalise, rows_at_once=2)
  params, frozen = models(top)
  rows = rollout(LENGTHS)
  scores, exp, metrics = jax.jit(partial(collect, config))(params, frozen, rows)

  @jax.jit
  def padded(params, frozen, rows, exp):
    whole = exp.replace(stem=None, value_stem=None)
    policy, ref = frozen.trunk | params["policy"], frozen.trunk | frozen.ref
    value_model = ppo.reward_side(frozen, params["value"])
    return (
      padded_scores(config, frozen, rows),
      ppo.policy_logp(LM, policy, whole, None, config.sampling),
      ppo.policy_logp(LM, ref, whole, None, config.sampling)[0],
      ppo.response_values(LM, value_model, whole, None),
      padded_update(config, params, frozen, moved(whole)),
    )

  close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  padded_score, (logp, entropy), ref_logp, value, (gradient, of_update) = padded(
    params, frozen, rows, exp
  )
  close(scores, padded_score)
  close(exp.logp, logp * exp.mask)
  close(exp.value, value * exp.value_mask)
  close(metrics["objective/kl"], ((logp - ref_logp) * exp.mask).sum(1).mean())
  close(metrics["objective/entropy"], (entropy * exp.mask).sum(1).mean())
  error = jnp.abs(rows.logp - logp)[exp.mask]
  close(metrics["rollout/logp_error"], error.mean())
  close(metrics["rollout/logp_error_max"], error.max())
  assert float(metrics["scoring/useful"]) > 0.65

  change, metrics = jax.jit(partial(update, config))(params, frozen, moved(exp))
  tiny.assert_trees_close(change, gradient, rtol=1e-4, atol=1e-5)
  for name, expected in of_update.items():
    close(metrics[name], expected, err_msg=name)


def moved(exp):
  """The experience of another policy, so that ratios and values are clipped here and there."""
  noise = jax.random.normal(jax.random.key(3), (2, *exp.logp.shape))
  return exp.replace(
    logp=(exp.logp + 0.3 * noise[0]) * exp.mask, value=(exp.value + noise[1]) * exp.value_mask
  )


def test_neighbours_do_not_mix():
  """Episode 3 stays as it is; all the others have other tokens."""
  config = experiment(rows_at_once=2)
  params, frozen = models()
  run = jax.jit(partial(collect, config))
  rows = rollout(LENGTHS)
  other = np.array(rollout(LENGTHS, seed=1).tokens)
  other[3] = rows.tokens[3]
  scores, exp, _ = run(params, frozen, rows)
  other_scores, other_exp, _ = run(params, frozen, rollout(LENGTHS, tokens=other))
  assert float(scores[3]) == pytest.approx(float(other_scores[3]), abs=1e-6)
  np.testing.assert_allclose(exp.logp[3], other_exp.logp[3], atol=1e-6)
  np.testing.assert_allclose(exp.value[3], other_exp.value[3], atol=1e-6)
  assert not np.allclose(exp.logp[:3], other_exp.logp[:3], atol=1e-2)


def test_one_program_does_for_all_lengths():
  config = experiment(rows_at_once=2)
  params, frozen = models()
  run, learn = jax.jit(partial(collect, config)), jax.jit(partial(update, config))
  for lengths in (LENGTHS, [(P, R)] * 8, [(1, 1)] * 8):
    _, exp, metrics = run(params, frozen, rollout(lengths))
    _, of_update = learn(params, frozen, exp)
    assert float(of_update["update/useful"]) == pytest.approx(float(metrics["scoring/useful"]))
    assert np.isfinite(float(of_update["loss/total"]))
  assert run._cache_size() == learn._cache_size() == 1
  # Eight episodes of two tokens: R of them have room for their responses in a row.
  assert float(metrics["scoring/useful"]) == pytest.approx(16 / (2 * T))


def test_ratios_begin_at_the_sampler_or_at_the_trainer():
  """The sampler's are off by more than a clip; the first update does not feel it."""
  params, frozen = models()
  rows = rollout(LENGTHS)
  ratios = {}
  for old_logp in ("trainer", "sampler"):
    config = experiment(rows_at_once=2, minibatches=2, old_logp=old_logp)

    @jax.jit
    def run(params, frozen, rows, config=config):
      _, exp, of_credit = collect(config, params, frozen, rows)
      state = steps.new_state(jax.random.key(0), params, config.tx, kl_coef=0.1)
      _, metrics = ppo.improve(state, frozen, exp, None, config)
      return exp.logp, of_credit | metrics

    logp, metrics = run(params, frozen, rows)
    ratios[old_logp] = float(metrics["policy/ratio_first"])
    assert float(metrics["rollout/logp_error"]) > 0.1
    assert float(metrics["objective/entropy"]) > 0
    if old_logp == "sampler":
      np.testing.assert_array_equal(logp, rows.logp * rows.mask)
  assert ratios["sampler"] == 1
  assert ratios["trainer"] == pytest.approx(1, abs=1e-5)


def test_a_first_update_from_the_sampler_is_that_from_the_trainer():
  config = experiment(rows_at_once=2)
  params, frozen = models()
  rows = rollout(LENGTHS)
  _, exp, _ = jax.jit(partial(collect, config))(params, frozen, rows)
  learn = jax.jit(partial(update, config))
  sampled = exp.replace(logp=rows.logp * rows.mask)
  expected, _ = learn(params, frozen, exp, False)
  change, metrics = learn(params, frozen, sampled, True)
  tiny.assert_trees_close(change, expected, rtol=1e-4, atol=1e-6)
  assert float(metrics["policy/ratio_max"]) == float(metrics["policy/ratio_min"]) == 1
  assert float(metrics["grad/norm_ppo"]) > 1e-3


@pytest.mark.parametrize("mesh", [(2, 2, 2)], indirect=True, ids=str)
@pytest.mark.parametrize("n", [1, 4])
def test_shards_pack_their_own_episodes(mesh, n):
  config = experiment(n=n, rows_at_once=2, minibatches=1)
  params, frozen = models()
  rows = tiny.unsharded(lambda: rollout(LENGTHS * 2) if n == 1 else shared_rollout())

  def run(params, frozen, rows):
    scores, exp, metrics = collect(config, params, frozen, rows)
    state = steps.new_state(jax.random.key(0), params, config.tx, kl_coef=0.1)
    new, of_update = ppo.improve(state, frozen, exp, None, config)
    return (scores, exp), metrics | of_update, new.params

  expected = tiny.unsharded(lambda: jax.device_get(jax.jit(run)(params, frozen, rows)))
  place = partial(tiny.place_models, LM)
  results = jax.jit(run)(place(params), place(frozen), sharding.place_batch(rows))
  tiny.assert_trees_close(results[0], expected[0], atol=1e-4, rtol=1e-4)
  tiny.assert_trees_close(results[2], expected[2], atol=1e-4, rtol=1e-3)
  for name, value in expected[1].items():
    if not name.endswith("useful"):
      np.testing.assert_allclose(results[1][name], value, rtol=1e-3, atol=1e-4, err_msg=name)
  # A shard has four episodes and so at most four rows, or one where they share their prompt.
  assert 0.05 < float(results[1]["scoring/useful"]) <= 1


def test_the_most_parts_are_those_of_full_length():
  config = experiment(rows_at_once=3, minibatches=2)
  rows = rollout([(P, R)] * 16)
  layout = ppo.lay_out(rows, config)
  assert (layout.parts.valid.shape[0], 3) == ppo.most_parts(16, packs.form_of(P, R), config.cfg)
  assert layout.count == 6

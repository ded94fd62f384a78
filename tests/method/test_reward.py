"""The reward model: acceptance list 3.3 of the specification."""

from functools import cache, partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from instructjax import losses, optim, reward, sharding, steps
from instructjax.data.batches import branches
from instructjax.types import Comparisons, Rollout

LM = tiny.lm("llama")
SGD = optax.sgd(1.0)


def model(seed=0, lm=LM):
  return reward.init(jax.random.key(seed + 100), lm, lm.init(jax.random.key(seed)))


score = jax.jit(partial(reward.score, LM))


def separate_scores(params, batch, lm=LM):
  """The scores [B, K] of rows of which each is read by itself."""
  rows = lambda x: jnp.asarray(x).reshape(-1, x.shape[-1])
  scores = jax.jit(partial(reward.score, lm))(params, rows(batch.tokens), rows(batch.valid))
  return scores.reshape(batch.rank.shape)


def reward_step(state, batch, *, tx, micro=1, **settings):
  step = tiny.jitted(reward.reward_step, lm=LM, tx=tx, **settings)
  return step(state, {}, tiny.packed(batch, micro))


def state_of(tx, lm=LM):
  return steps.init_state(jax.random.key(0), model(lm=lm), tx)


def brute_force(scores, ranks):
  """Eq. 1 by two loops: the mean over prompts of the mean over pairs that are not tied."""
  total = 0.0
  for score, rank in zip(np.asarray(scores, np.float64), np.asarray(ranks)):
    pairs = [
      (i, j)
      for i, j in combinations(range(len(rank)), 2)
      if rank[i] and rank[j] and rank[i] != rank[j]
    ]
    terms = []
    for i, j in pairs:
      w, x = (i, j) if rank[i] < rank[j] else (j, i)
      terms.append(np.log1p(np.exp(-(score[w] - score[x]))))
    total += np.mean(terms) if terms else 0.0
  return total / len(scores)


def test_a_pair_of_equal_rows_weighs_nothing_and_is_not_measured():
  """Three completions, the first and the last of which are one row: A = C, ranked A > B > C.

  The pair (A, C) is left out of the loss, of its normaliser and of the accuracy. The pairs (A, B)
  and (B, C) contradict each other and stay, as the labeler said.
  """
  batch = tiny.ranked(LM, rows=2, k=3)
  tokens, valid = batch.tokens.copy(), batch.valid.copy()
  tokens[0, 2], valid[0, 2] = tokens[0, 0], valid[0, 0]
  valid[1] = valid[1, 0]
  tokens[1, 1] = tokens[1, 0]
  rank = np.asarray([[1, 2, 3], [1, 2, 2]], np.int32)
  batch = batch.replace(tokens=tokens, valid=valid, rank=rank)
  a, b, _ = np.asarray(separate_scores(model(), batch), np.float64)[0]
  p, _, q = np.asarray(separate_scores(model(), batch), np.float64)[1]
  sigmoid_loss = lambda difference: np.log1p(np.exp(-difference))
  first = (sigmoid_loss(a - b) + sigmoid_loss(b - a)) / 2
  _, metrics = reward_step(state_of(SGD), batch, tx=SGD)
  assert metrics["loss"] == pytest.approx((first + sigmoid_loss(p - q)) / 2, rel=1e-5)
  assert metrics["pairs"] == 3
  assert metrics["accuracy"] == pytest.approx((1 + (p > q)) / 3)


def test_loss_of_a_step_is_equation_1():
  batch = tiny.ranked(LM, rows=4, k=5)
  params = model()
  scores = separate_scores(params, batch)
  _, metrics = reward_step(state_of(SGD), batch, tx=SGD)
  assert metrics["loss"] == pytest.approx(brute_force(scores, batch.rank), rel=1e-5)


@pytest.mark.parametrize("micro", [1, 3])
def test_the_gradient_of_a_step_is_that_of_shuffled_pairs_of_separate_rows(micro):
  """With equal K, one pass over groups and one pass over all pairs apart have the same gradient."""
  batch = tiny.ranked(LM, rows=3, k=4, ties=False)
  state = state_of(SGD)
  new, _ = reward_step(state, batch, tx=SGD, micro=micro)
  pairs = [
    (b, i, j) if batch.rank[b, i] < batch.rank[b, j] else (b, j, i)
    for b in range(3)
    for i, j in combinations(range(4), 2)
  ]
  order = np.random.default_rng(0).permutation(len(pairs))
  b, w, x = np.array(pairs)[order].T

  def shuffled(p):
    chosen = reward.score(LM, p, jnp.asarray(batch.tokens[b, w]), jnp.asarray(batch.valid[b, w]))
    rejected = reward.score(LM, p, jnp.asarray(batch.tokens[b, x]), jnp.asarray(batch.valid[b, x]))
    return -jax.nn.log_sigmoid(chosen - rejected).mean()

  moved = jax.tree.map(jnp.subtract, state.params, new.params)
  tiny.assert_trees_close(moved, jax.jit(jax.grad(shuffled))(state.params), rtol=1e-4, atol=1e-6)


def mixed(seed=3, most=9, vocab=LM.vocab_size, prompt=6, completion=5):
  """Prompts with 2 to `most` completions, in one batch; their rows have up to 11 tokens."""
  rng = np.random.default_rng(seed)
  ks = (2, most, 3, 2, 5, 2, 4, 2)
  batch = tiny.ranked(LM, rows=len(ks), k=most, width=prompt + completion, ties=False, seed=seed)
  rank = np.zeros_like(batch.rank)
  tokens = batch.tokens.copy()
  for row, k in enumerate(ks):
    rank[row, :k] = rng.permutation(k) + 1
    shared = rng.integers(1, prompt)
    tokens[row, :, :shared] = tokens[row, :1, :shared]
  return batch.replace(tokens=np.where(batch.valid, tokens, 0), rank=rank)


def separate_loss(params, batch, lm=LM):
  """Eq. 1 over separate rows of every prompt, a prompt at a time."""
  total = 0.0
  for tokens, valid, rank in zip(batch.tokens, batch.valid, batch.rank, strict=True):
    k = int((rank > 0).sum())
    scores = reward.score(lm, params, jnp.asarray(tokens[:k]), jnp.asarray(valid[:k]))
    w, x = np.nonzero(rank[:k, None] < rank[None, :k])
    total += -jax.nn.log_sigmoid(scores[w] - scores[x]).mean() / len(batch.rank)
  return total


@pytest.mark.parametrize("family", ["gpt", "llama"])
@pytest.mark.parametrize("micro", [1, 4])
def test_a_step_on_mixed_k_equals_separate_rows(family, micro):
  """One K = 9 among K = 2: loss, gradient and scores to 1e-5, in one part and in several."""
  lm = tiny.lm(family)
  batch = mixed()
  state = steps.init_state(jax.random.key(0), tiny.reward_model(lm, 0), SGD)
  step = tiny.jitted(reward.reward_step, lm=lm, tx=SGD)
  new, metrics = step(state, {}, tiny.packed(batch, micro))
  loss, grads = jax.jit(jax.value_and_grad(partial(separate_loss, batch=batch, lm=lm)))(
    state.params
  )
  assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
  moved = jax.tree.map(jnp.subtract, state.params, new.params)
  scale = float(optax.tree.norm(grads))
  tiny.assert_trees_close(moved, grads, rtol=1e-4, atol=1e-6 * scale)
  everyone = batch.replace(rank=np.broadcast_to(np.arange(1, 10, dtype=np.int32), batch.rank.shape))
  scored = tiny.scores_of(
    partial(jax.jit(partial(reward.score_comparisons, lm)), state.params), everyone
  )
  expected = separate_scores(state.params, batch, lm)
  np.testing.assert_allclose(scored, expected, atol=1e-5)


def test_a_prompt_with_many_completions_costs_its_own_tokens():
  """Of 32 prompts with two completions, and with nine for one of them: the positions computed.

  Before, K = 9 was that of all.
  """
  batch = tiny.ranked(LM, rows=32, k=9, width=12, ties=False)
  few = np.where(np.arange(9) < 2, batch.rank.argsort(1) + 1, 0).astype(np.int32)
  few[:, :2] = [1, 2]
  some = few.copy()
  some[0] = np.arange(1, 10)

  def positions(rank):
    packed = tiny.packed(batch.replace(rank=rank), micro=32)
    parts, count = reward.into_parts(packed)
    metrics = reward.work(parts, count)
    return int(count) * parts.tokens[0].size, int(metrics["tokens"]), metrics["update/useful"]

  computed, tokens, _ = positions(few)
  more_computed, more_tokens, useful = positions(some)
  length = tiny.packed(batch.replace(rank=some), micro=32).tokens.shape[-1]
  assert more_computed - computed <= 2 * length
  assert more_tokens - tokens <= length
  assert useful > 0.75 and useful == pytest.approx(more_tokens / more_computed)


def test_batches_of_other_lengths_and_k_compile_once():
  shapes = branches.Layout(rows=2, parts=4, length=64, slots=8, completions=9)
  tx = optim.adamw(1e-2)
  state = steps.init_state(jax.random.key(0), model(), tx)
  step = steps.compiled(tiny.traced_once(partial(reward.reward_step, lm=LM, tx=tx)), state)
  for seed, rows in ((1, 8), (2, 5), (3, 1)):
    batch = mixed(seed)
    groups = tiny.groups_of(batch)[:rows]
    state, metrics = step(state, {}, branches.pack(groups, shapes))
    assert metrics["tokens"] == sum(len(group.ids) for group in groups)


def test_completions_that_are_not_there_get_no_gradient():
  batch = tiny.ranked(LM, rows=2, k=4)
  rank = batch.rank.copy()
  rank[:, 3] = 0
  rows = jax.grad(lambda s: losses.ranking(s, losses.pair_weights(jnp.asarray(rank))))(
    jnp.ones((2, 4))
  )
  np.testing.assert_array_equal(rows[:, 3], 0)


def test_scores_ignore_the_side_and_the_amount_of_padding():
  params = model()
  tokens = jax.random.randint(jax.random.key(1), (3, 8), 0, LM.vocab_size)
  real = jnp.ones((3, 8), bool)
  scores = score(params, tokens, real)
  for pad in [(0, 5), (5, 0), (2, 9)]:
    padded = score(params, jnp.pad(tokens, ((0, 0), pad)), jnp.pad(real, ((0, 0), pad)))
    np.testing.assert_allclose(padded, scores, atol=1e-5)
  assert float(jnp.std(scores)) > 1e-3


def test_bias_puts_demonstrations_at_zero_and_leaves_the_loss():
  params = model()
  params = params | {"head": params["head"] | {"b": jnp.float32(3.0)}}
  demos = tiny.demonstrations(LM, rows=16)
  mean = lambda p: score(p, demos.tokens, demos.valid).mean()
  fitted = reward.fit_bias(params, mean(params))
  assert abs(float(mean(params))) > 1
  assert abs(float(mean(fitted))) < 1e-5
  batch = tiny.ranked(LM, rows=4, k=4)
  weights = losses.pair_weights(jnp.asarray(batch.rank))
  loss = lambda p: losses.ranking(separate_scores(p, batch), weights)
  assert loss(fitted) == pytest.approx(float(loss(params)), rel=1e-5)


def test_a_response_that_was_cut_is_closed():
  """By hand: an end of text takes the place of its last token; one that ended stays as it is."""
  rows = Rollout(
    tokens=jnp.array([[0, 7, 11, 12, 13], [8, 9, 21, 3, 0]]),
    valid=jnp.array([[False, True, True, True, True], [True, True, True, True, False]]),
    mask=jnp.array([[True, True, True], [True, True, False]]),
    logp=jnp.zeros((2, 3)),
    ended=jnp.array([False, True]),
  )
  closed = reward.closed(rows, (3, 4))
  np.testing.assert_array_equal(closed, [[0, 7, 11, 12, 3], [8, 9, 21, 3, 0]])
  np.testing.assert_array_equal(reward.closed(rows, ()), rows.tokens)


def test_parameters_are_the_trunk_and_one_row():
  lm = tiny.lm("llama", tied=False)
  params = model(lm=lm)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  full = lm.init(jax.random.key(0))
  assert count(params) == count(full) - count(full["head"]) + lm.width + 1
  wide = reward.heads.init_head(jax.random.key(0), 20_000)
  assert float(wide["w"].std()) == pytest.approx(1 / np.sqrt(20_001), rel=0.03)


def test_it_learns_a_preference_and_its_log_odds():
  """Bradley-Terry labels with log-odds 2 for each token of id 7: held-out accuracy and slope."""
  lm = tiny.lm("llama", depth=1)
  tx = optim.adamw(3e-3)
  state = steps.init_state(jax.random.key(0), model(lm=lm), tx)
  step = steps.compiled(partial(reward.reward_step, lm=lm, tx=tx), state)

  def batch(seed, rows=32, k=4):
    key = jax.random.key(seed)
    tokens = jax.random.randint(key, (rows, k, 6), 6, 9)
    gold = 2.0 * (tokens == 7).sum(-1) + jax.random.gumbel(jax.random.fold_in(key, 1), (rows, k))
    rank = np.argsort(np.argsort(-np.asarray(gold), 1), 1).astype(np.int32) + 1
    return tiny.Ranked(np.asarray(tokens), np.ones(tokens.shape, bool), rank)

  layout = branches.Layout(rows=32, parts=1, length=24, slots=1, completions=4)
  for i in range(120):
    state, _ = step(state, {}, branches.pack(tiny.groups_of(batch(i)), layout))
  test = batch(10_000, rows=200)
  scores = separate_scores(state.params, test, lm)
  correct, pairs = losses.ranking_accuracy(scores, jnp.asarray(test.rank))
  assert correct.sum() / pairs.sum() > 0.8
  slope = np.polyfit(
    2.0 * np.asarray((test.tokens == 7).sum(-1)).ravel(), np.asarray(scores).ravel(), 1
  )[0]
  assert slope == pytest.approx(1.0, abs=0.25)  # the difference of scores is the log-odds


def test_micro_batches_add_up():
  batch = tiny.ranked(LM, rows=8, k=4)
  run = lambda micro: reward_step(state_of(SGD), batch, tx=SGD, micro=micro)
  (a, m), (b, n) = run(1), run(4)
  tiny.assert_trees_close(a.params, b.params, atol=1e-5)
  assert m["accuracy"] == pytest.approx(float(n["accuracy"]))


def three_steps(place, place_batch):
  """The losses of three steps, traced once."""
  tx = optim.adamw(1e-2)
  params = place(model())
  state = steps.init_state(jax.random.key(0), params, tx)
  step = steps.compiled(tiny.traced_once(partial(reward.reward_step, lm=LM, tx=tx)), state)
  history = []
  batch = tiny.packed(mixed(), micro=1, shards=4)
  for _ in range(3):
    state, metrics = step(state, {}, place_batch(batch))
    history.append(float(metrics["loss"]))
  return history


@cache
def on_one_device():
  return tiny.unsharded(lambda: three_steps(lambda p: p, lambda b: b))


@pytest.mark.parametrize("mesh", [(2, 2, 2)], indirect=True, ids=str)
def test_sharded_steps_equal_one_device(mesh):
  table = {name: leaf for name, leaf in LM.table.items() if name != "head"}
  place = lambda p: {
    "lm": sharding.place(p["lm"], sharding.shardings(table)),
    "head": sharding.replicate(p["head"]),
  }
  losses_, expected = three_steps(place, sharding.place_batch), on_one_device()
  np.testing.assert_allclose(losses_, expected, atol=1e-4)


def test_accuracy_over_no_pairs_is_unknown():
  batch = tiny.ranked(LM, rows=2, k=4)
  _, metrics = reward_step(state_of(SGD), batch.replace(rank=np.ones((2, 4), np.int32)), tx=SGD)
  assert np.isnan(metrics["accuracy"])
  assert metrics["pairs"] == metrics["loss"] == 0


def test_a_rescaled_model_scores_gain_times_plus_shift():
  params = model()
  demos = tiny.demonstrations(LM, rows=4)
  before = score(params, demos.tokens, demos.valid)
  after = score(reward.rescale(params, 3.0, -2.0), demos.tokens, demos.valid)
  np.testing.assert_allclose(after, 3 * before - 2, atol=1e-4)


def loss_of(batch, micro=1, **settings):
  """(the loss of a step, the scores) under other settings of the loss."""
  cfg = reward.RewardConfig(**settings)
  _, metrics = reward_step(state_of(SGD), batch, tx=SGD, micro=micro, cfg=cfg)
  return float(metrics["loss"]), np.asarray(separate_scores(model(), batch), np.float64)


def pairs_of(ranks):
  """(prompt, winner, loser) of every pair, with the number of pairs of its prompt."""
  for prompt, rank in enumerate(np.asarray(ranks)):
    pairs = [
      (i, j)
      for i in range(len(rank))
      for j in range(len(rank))
      if rank[i] and rank[j] and rank[i] < rank[j]
    ]
    for i, j in pairs:
      yield prompt, i, j, len(pairs)


@pytest.mark.parametrize("margin_by", ["pair", "rank", "rating"])
def test_a_margin_is_taken_from_every_difference(margin_by):
  batch = tiny.ranked(LM, rows=3, k=4)
  rating = np.random.default_rng(0).integers(1, 8, (3, 4)).astype(np.float32)
  batch = batch.replace(rating=rating if margin_by == "rating" else None)
  loss, scores = loss_of(batch, margin=0.5, margin_by=margin_by)
  total = 0.0
  for prompt, i, j, count in pairs_of(batch.rank):
    gap = {
      "pair": 1,
      "rank": int(batch.rank[prompt, j] - batch.rank[prompt, i]),
      "rating": max(float(rating[prompt, i] - rating[prompt, j]), 0),
    }[margin_by]
    difference = scores[prompt, i] - scores[prompt, j] - 0.5 * gap
    total += np.log1p(np.exp(-difference)) / count / 3
  assert loss == pytest.approx(total, rel=1e-5)


def test_centering_adds_the_squared_sum_of_the_scores_of_each_pair():
  batch = tiny.ranked(LM, rows=3, k=4)
  plain, scores = loss_of(batch)
  centered, _ = loss_of(batch, centering=0.3)
  penalty = sum(
    (scores[prompt, i] + scores[prompt, j]) ** 2 / count / 3
    for prompt, i, j, count in pairs_of(batch.rank)
  )
  assert centered == pytest.approx(plain + 0.3 * penalty, rel=1e-5)


def test_best_of_k_is_the_cross_entropy_of_the_best():
  """Ties at the top share the target; a prompt without a best one does not count."""
  batch = tiny.ranked(LM, rows=3, k=4)
  rank = np.asarray([[2, 1, 3, 4], [1, 1, 3, 0], [2, 2, 2, 2]], np.int32)
  loss, scores = loss_of(batch.replace(rank=rank), loss="best_of_k")
  log_softmax = lambda x: x - np.log(np.exp(x).sum())
  first = -log_softmax(scores[0])[1]
  second = -log_softmax(scores[1, :3])[:2].mean()
  assert loss == pytest.approx((first + second) / 2, rel=1e-5)


def test_every_loss_adds_up_over_micro_batches():
  batch = tiny.ranked(LM, rows=8, k=4)
  batch = batch.replace(rating=np.ones((8, 4), np.float32) * np.arange(4, dtype=np.float32))
  for settings in ({"loss": "best_of_k", "centering": 0.1}, {"margin": 1.0, "margin_by": "rating"}):
    whole, _ = loss_of(batch, **settings)
    parts, _ = loss_of(batch, micro=4, **settings)
    assert whole == pytest.approx(parts, rel=1e-5)


# --- what a step is told ---


def test_a_reward_model_has_its_own_memory_and_no_unembedding():
  """Its state is donated, and the SFT model lives on."""
  lm = tiny.lm("llama", tied=False)
  trained = lm.init(jax.random.key(0))
  params = reward.init(jax.random.key(1), lm, trained)
  assert params["lm"].keys() == trained.keys() - {"head"}
  scale = params["lm"]["norm"]["scale"]
  assert scale.unsafe_buffer_pointer() != trained["norm"]["scale"].unsafe_buffer_pointer()
  assert reward.join({"lower": 1}, params)["lm"].keys() == params["lm"].keys() | {"lower"}


def test_the_stem_and_the_key_that_are_given_reach_the_model():
  calls = []

  def hidden(params, tokens, valid, *, branch=None, stem=None, key=None):
    calls.append((branch, stem, key))
    return jnp.zeros((*tokens.shape, LM.width))

  noting = LM._replace(hidden=hidden)
  batch = tiny.comparisons(LM, rows=2, k=3)
  part = jax.tree.map(lambda x: x[0], reward.into_parts(batch)[0])
  stem = jnp.arange(float(part.tokens.size) * LM.width).reshape(*part.tokens.shape, LM.width)
  key = jax.random.key(3)
  reward.score_comparisons(noting, model(), part.replace(stem=stem), key=key)
  reward.score(noting, model(), part.tokens, part.valid, stem=stem, key=key)
  assert calls[0][0] is part.branch and calls[1][0] is None
  for _, given_stem, given_key in calls:
    assert given_stem is stem and given_key is key


def test_dropout_is_random_by_step_and_off_without_it():
  lm = tiny.lm("llama", dropout=0.5)
  batch = tiny.comparisons(lm, rows=4, k=3)
  run = lambda cfg, step: float(
    tiny.jitted(reward.reward_step, lm=lm, tx=SGD, cfg=cfg)(
      state_of(SGD, lm).replace(step=jnp.int32(step)), {}, batch
    )[1]["loss"]
  )
  on, off = reward.RewardConfig(dropout=True), reward.RewardConfig()
  assert run(on, 0) == run(on, 0) != run(on, 1)
  assert run(off, 0) == run(off, 1) != run(on, 0)


def test_a_step_by_hand(monkeypatch):
  """Three prompts with scores instead of a model: what is averaged, over what, and what is counted.

  The pairs that are left are 2 of 3, 1 of 1 and 0 of 1, and 2 of the 3 are right.
  """
  scores = jnp.array([[2.0, 1.0, 1.5], [0.0, 1.0, 50.0], [3.0, 4.0, 50.0]])
  monkeypatch.setattr(reward, "score_comparisons", lambda *args, **kwargs: scores)
  ones = jnp.ones((3, 1, 6), jnp.int32)
  batch = Comparisons(
    tokens=ones,
    valid=ones.at[0, 0, 5].set(0),
    branch=ones,
    last=jnp.zeros((3, 1, 1, 3), jnp.int32),
    rank=jnp.array([[1, 2, 2], [1, 2, 0], [1, 1, 0]])[:, None, None],
    same=jnp.array([[1, 2, 3], [1, 2, 0], [1, 2, 0]])[:, None, None],
  )
  params = {"lm": {}, "head": {"w": jnp.ones(2), "b": jnp.float32(0)}}
  softplus = lambda x: float(np.log1p(np.exp(x)))
  first = softplus(-1.0), softplus(-0.5)
  run = lambda **settings: reward.reward_step(
    steps.init_state(jax.random.key(0), params, SGD),
    {},
    batch,
    lm=LM,
    tx=SGD,
    cfg=reward.RewardConfig(**settings),
  )
  state, metrics = run()
  assert metrics["loss"] == pytest.approx((sum(first) / 2 + softplus(1.0)) / 2, rel=1e-6)
  assert metrics["accuracy"] == pytest.approx(2 / 3)
  assert metrics["pairs"] == 3
  assert metrics["tokens"] == 17
  assert metrics["update/useful"] == pytest.approx(17 / 18)
  assert metrics["score/mean"] == pytest.approx((2 + 1 + 1.5 + 0 + 1 + 3 + 4) / 7)
  assert state.iteration == 1
  _, metrics = run(pairs="all")
  # Ties keep their place in the divisor, and the prompt of ties counts.
  assert metrics["loss"] == pytest.approx((sum(first) / 3 + softplus(1.0)) / 3, rel=1e-6)


def test_the_bias_is_shifted_by_gain_and_score():
  params = {"lm": {}, "head": {"w": jnp.array([1.0, 2.0]), "b": jnp.float32(3)}}
  fitted = reward.fit_bias(params, jnp.float32(0.5))["head"]
  np.testing.assert_array_equal(fitted["w"], [1, 2])
  assert fitted["b"] == 2.5
  scaled = reward.rescale(params, 2.0, 1.0)["head"]
  np.testing.assert_array_equal(scaled["w"], [2, 4])
  assert scaled["b"] == 7

"""Best-of-n: choosing, picking, and the unbiased curve against brute force."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax import bestofn, rollout, sharding
from instructjax.rollout import Sampling


def test_the_highest_score_is_chosen():
  score = jax.random.normal(jax.random.key(0), (50, 7))
  np.testing.assert_array_equal(bestofn.choose(jax.random.key(1), score), np.argmax(score, 1))


def test_ties_are_broken_at_random():
  score = jnp.tile(jnp.array([[1.0, 3.0, 3.0, 2.0, 3.0]]), (3000, 1))
  counts = np.bincount(np.asarray(bestofn.choose(jax.random.key(0), score)), minlength=5)
  assert counts[0] == counts[3] == 0
  np.testing.assert_allclose(counts[[1, 2, 4]] / 3000, 1 / 3, atol=0.04)


def test_pick_returns_the_chosen_row_of_each_group():
  rows = {"id": jnp.arange(12), "text": jnp.arange(24).reshape(12, 2)}
  picked = bestofn.pick(rows, jnp.array([2, 0, 3]), 4)
  np.testing.assert_array_equal(picked["id"], [2, 4, 11])
  np.testing.assert_array_equal(picked["text"], [[4, 5], [8, 9], [22, 23]])


def test_the_curve_is_the_mean_over_all_subsets():
  rng = np.random.default_rng(0)
  proxy = rng.normal(size=(3, 6))
  gold = proxy + rng.normal(size=(3, 6))
  points = bestofn.curve(
    jnp.asarray(proxy, jnp.float32), jnp.asarray(gold, jnp.float32), [1, 2, 4, 6]
  )
  for point in points:
    n = point["n"]
    best, true = [], []
    for p, g in zip(proxy, gold):
      for subset in combinations(range(6), n):
        i = max(subset, key=lambda j, p=p: p[j])
        best.append(p[i])
        true.append(g[i])
    assert point["proxy"] == pytest.approx(np.mean(best), abs=1e-5)
    assert point["gold"] == pytest.approx(np.mean(true), abs=1e-5)
    assert point["kl"] == pytest.approx(np.log(n) - (n - 1) / n, abs=1e-6)
  assert [p["n"] for p in points] == [1, 2, 4, 6]


def chain(place, place_batch):
  """Best of eight responses by the number of their even ids."""
  lm = tiny.lm("gpt", depth=1)
  params = place(lm.init(jax.random.key(0)), lm)
  sample = jax.jit(lambda p, x, key: rollout.sample(lm, p, x, key, Sampling(response=6, n=8)))
  rows = sample(params, place_batch(tiny.prompts(lm, rows=8)), jax.random.key(1))
  score = (np.asarray(rows.tokens)[:, -6:] % 2 == 0).sum(1).reshape(8, 8).astype(np.float32)
  index = bestofn.choose(jax.random.key(2), place_batch(jnp.asarray(score)))
  return score, np.asarray(bestofn.pick(rows, index, 8).tokens)


def test_the_best_of_eight_are_better_and_the_same_on_a_mesh():
  score, tokens = chain(lambda p, lm: p, lambda x: x)
  np.testing.assert_array_equal((tokens[:, -6:] % 2 == 0).sum(1), score.max(1))
  assert score.max(1).mean() > score.mean() + 1
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    again = chain(
      lambda p, lm: sharding.place(p, sharding.shardings(lm.table)), sharding.place_batch
    )
  np.testing.assert_array_equal(again[0], score)
  np.testing.assert_array_equal(again[1], tokens)

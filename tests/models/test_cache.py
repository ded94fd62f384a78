"""Attention over a cache, read at once or block by block, is the softmax by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax import sharding
from instructjax.models import cache, int8

B, H, K, C, N, b = 3, 4, 2, 8, 3, 4  # rows, heads, key heads, width, blocks, columns of a block


def case(seed=0):
  """A query for each row, and a cache in whose columns the positions stand in no order."""
  rng = np.random.default_rng(seed)
  q = rng.normal(size=(B, 1, H, C)).astype(np.float32)
  keys = rng.normal(size=(N, B, K, b, C)).astype(np.float32)
  values = rng.normal(size=(N, B, K, b, C)).astype(np.float32)
  position = np.full((N, B, b), cache.EMPTY, np.int32)
  position[0, 0] = [5, cache.EMPTY, 6, 7]
  position[2, 0] = [cache.EMPTY, 9, 8, 3]  # the query is at 8: 9 comes after it
  position[0, 1, 0] = 0
  query_position = np.array([[8], [0], [4]], np.int32)  # the last row sees nothing
  return q, keys, values, position, query_position


def by_hand(q, keys, values, position, query_position, window, softcap):
  mixed = np.zeros((B, 1, H, C))
  for row in range(B):
    for head in range(H):
      scores, seen_values = [], []
      for block in range(N):
        for column in range(b):
          place = position[block, row, column]
          distance = query_position[row, 0] - place
          if place == cache.EMPTY or distance < 0 or (window and distance >= window):
            continue
          score = q[row, 0, head] @ keys[block, row, head // 2, column] / np.sqrt(C)
          scores.append(softcap * np.tanh(score / softcap) if softcap else score)
          seen_values.append(values[block, row, head // 2, column])
      if scores:
        weights = np.exp(scores) / np.sum(np.exp(scores))
        mixed[row, 0, head] = weights @ np.array(seen_values)
  return mixed


def attended(arrays, **options):
  q, keys, values, position, query_position = jax.tree.map(jnp.asarray, arrays)
  used = cache.in_use(position)
  return cache.attend(q, keys, values, position, query_position, used, "float32", **options)


@pytest.mark.parametrize("read_at_once", [0, N])
@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_a_cache_in_blocks_equals_the_softmax_by_hand(monkeypatch, read_at_once, window, softcap):
  monkeypatch.setattr(cache, "READ_AT_ONCE", read_at_once)
  arrays = case()
  got = attended(arrays, window=window, softcap=softcap)
  np.testing.assert_allclose(got, by_hand(*arrays, window, softcap), atol=1e-6)


def test_the_largest_score_of_all_blocks_keeps_the_sum_in_range(monkeypatch):
  """Scores of hundreds in one block, of minus hundreds in another."""
  q, keys, values, position, query_position = case()
  keys[0] *= 300
  keys[2] *= -300
  results = []
  for read_at_once in (0, N):
    monkeypatch.setattr(cache, "READ_AT_ONCE", read_at_once)
    results.append(attended((q, keys, values, position, query_position)))
  assert np.all(np.isfinite(results[1]))
  np.testing.assert_allclose(results[0], results[1], atol=1e-6)


@pytest.mark.parametrize("read_at_once", [0, N])
def test_integers_are_scaled_in_either_way(monkeypatch, read_at_once):
  monkeypatch.setattr(cache, "READ_AT_ONCE", read_at_once)
  q, keys, values, position, query_position = case()
  rounded = [cache.Int8(*int8.quantise(jnp.asarray(x), (4,))) for x in (keys, values)]
  got = attended((q, *rounded, position, query_position))
  widened = [np.asarray(x.q * x.scale) for x in rounded]
  expected = by_hand(q, *widened, position, query_position, 0, 0.0)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_only_a_cpu_reads_the_blocks_that_are_not_in_use(monkeypatch):
  def loops():
    jaxpr = str(jax.make_jaxpr(lambda q: attended((q, *case()[1:])))(case()[0]))
    return "while" in jaxpr

  assert not loops()
  monkeypatch.setattr(sharding, "is_on_cpu", lambda: False)
  assert loops()

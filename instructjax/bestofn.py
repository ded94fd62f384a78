"""Best-of-n: of n responses to a prompt, the one with the best score (Stiennon et al. 2020).

Dimensions: B prompts, N samples of each, T tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import returns, sharding
from instructjax.types import Array, Float, Int, Key, PyTree


def choose(
  key: Key[Array, ""],
  score: Float[Array, "B N"],
) -> Int[Array, " B"]:
  """Returns the index of the highest score of each prompt; ties are broken at random."""
  highest = score.max(axis=1, keepdims=True)
  lots = jax.random.uniform(key, score.shape, jnp.float32)
  # A lot lies in [0, 1), so the -1 of the others never wins.
  lots = jnp.where(score == highest, lots, -1.0)
  return jnp.argmax(lots, axis=1)


def pick(
  rows: PyTree,
  index: Int[Array, " B"],
  n: int,
) -> PyTree:
  """Returns the chosen row of each group of n: [B*n, ...] -> [B, ...]."""
  # Groups lie one after the other, as `rollout.sample` returns them.
  chosen = jnp.arange(index.shape[0]) * n + index

  def pick_leaf(x: Array) -> Array:
    spec = sharding.spec("batch", *[None] * (x.ndim - 1))
    return x.at[chosen].get(out_sharding=spec)

  return jax.tree.map(pick_leaf, rows)


def curve(
  proxy: Float[Array, "B N"],
  gold: Float[Array, "B N"],
  ns: list[int],
) -> list[dict[str, float | int]]:
  """Returns unbiased means of both scores under best-of-n (Nakano et al. 2021, App. I).

  `proxy` is the score that picks, and `gold` the one that is wanted. There is a point for each n of
  `ns`, none of which may exceed N. Its KL is log n - (n-1)/n, an upper bound that ties make loose.
  """
  proxy_scores = np.asarray(proxy, np.float64)
  gold_scores = np.asarray(gold, np.float64)
  # Both in ascending order of the proxy, as `bon_weights` wants them.
  order = np.argsort(proxy_scores, axis=1, kind="stable")
  ranked_proxy = np.take_along_axis(proxy_scores, order, axis=1)
  ranked_gold = np.take_along_axis(gold_scores, order, axis=1)
  samples = proxy_scores.shape[1]

  points: list[dict[str, float | int]] = []
  for n in ns:
    weights = returns.bon_weights(samples, n)
    point = {
      "n": n,
      "kl": float(returns.bon_kl(n)),
      "proxy": float((ranked_proxy @ weights).mean()),
      "gold": float((ranked_gold @ weights).mean()),
    }
    points.append(point)
  return points

"""Best-of-n: sample n responses a prompt and keep the one that the reward model scores highest
(Stiennon et al. 2020).

Dimensions: B prompts, N samples of each, T tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import returns, sharding
from instructjax.types import Array, Float, Int, Key, PyTree


def choose(key: Key[Array, ""], score: Float[Array, "B N"]) -> Int[Array, " B"]:
  """The index of the highest score; ties are broken at random."""
  tie = jax.random.uniform(key, score.shape)
  best = score == score.max(axis=1, keepdims=True)
  return jnp.argmax(jnp.where(best, tie, -1.0), axis=1)


def pick(rows: PyTree, index: Int[Array, " B"], n: int) -> PyTree:
  """The chosen row of each group of n: [B*n, ...] -> [B, ...]."""
  at = jnp.arange(index.shape[0]) * n + index
  return jax.tree.map(
    lambda x: x.at[at].get(out_sharding=sharding.spec("batch", *[None] * (x.ndim - 1))), rows
  )


def curve(
  proxy: Float[Array, "B N"], gold: Float[Array, "B N"], ns: list[int]
) -> list[dict[str, float | int]]:
  """Unbiased mean of proxy and gold under best-of-n for each n <= N (Nakano et al. 2021, App. I).

  The KL is log n - (n-1)/n, an upper bound that ties make loose.
  """
  scores, true = np.asarray(proxy, np.float64), np.asarray(gold, np.float64)
  order = np.argsort(scores, axis=1, kind="stable")
  ranked = [np.take_along_axis(x, order, axis=1) for x in (scores, true)]
  points: list[dict[str, float | int]] = []
  for n in ns:
    weight = np.asarray(returns.bon_weights(scores.shape[1], n))
    best, expected = (float((x @ weight).mean()) for x in ranked)
    points.append({"n": n, "kl": float(returns.bon_kl(n)), "proxy": best, "gold": expected})
  return points

"""Supervised fine-tuning (Ouyang et al. 2022, section 3.5, App. C.1) and PPO's start (App. C.3).

    L(φ) = - Σ_t w_t log π_φ(y_t | x, y_<t),        w_t = m_t / Σ m

The same step pretrains, where every token is marked, and makes `rl_init`, the model that PPO starts
from. There a share s of the loss is that of pretraining text, however many tokens it has:

    L(φ) = (1 - s) L_demonstrations(φ) + s L_text(φ)

Rows are as long as the longest demonstration, and most demonstrations are far shorter. A batch may
therefore come packed (`data.batches.packing.pack_batch`): several demonstrations stand in a row,
each by itself, and the micro-batches that hold nothing are not computed.

Dimensions: B rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import optax

from instructjax import likelihood, losses, returns, steps
from instructjax.system import keys
from instructjax.types import (
  LM,
  Array,
  Bool,
  Demonstrations,
  Float,
  Int,
  Key,
  Metrics,
  Params,
  PyTree,
  Scalar,
  TrainState,
)


@dataclass(frozen=True)
class SFTConfig:
  """Settings of one SFT step; the defaults are silent where the paper is."""

  micro: int = 1  # micro-batches a step
  packed: bool = False  # whether the rows are packed, and only the first micro-batches hold any
  window: int | None = (
    None  # the most marked tokens of a row: logits are computed for that many positions
  )
  dropout: bool = True  # residual dropout at the rate of the model (paper: .2)
  ema_decay: float | None = None
  # The rows of a batch that are pretraining text (`is_text`), and the share of the loss that is
  # theirs.
  text_rows: int = 0
  text_share: float = 0.0


def sft_loss(
  params: Params,
  batch: tuple[Demonstrations, Float[Array, " B"]],
  key,
  *,
  lm: LM,
  trunk: Params,
  cfg: SFTConfig,
) -> tuple[Scalar, tuple[Array, Array]]:
  """Negative log-likelihood of the marked tokens under `trunk | params`.

  `batch` holds the rows and, for each of them, the weight of its marked tokens (`token_shares`).

  Returns:
    The loss, and (logp, mask) as the rows of `steps.gradients`.

  Example:
    >>> batch = (text, sft.token_shares(text))
    >>> cfg = sft.SFTConfig(dropout=False)
    >>> loss, (logp, marked) = sft.sft_loss(params, batch, None, lm=lm, trunk={}, cfg=cfg)
    >>> print(loss.shape, marked.sum())
    () 5
  """
  demonstrations, share = batch
  logp, mask = likelihood.masked_logp(
    lm,
    trunk | params,
    demonstrations,
    cfg.window,
    key=key if cfg.dropout else None,
  )
  weight = mask * share[:, None]
  return losses.nll(logp, weight), (logp, mask)


def is_text(rows: int, cfg: SFTConfig) -> Bool[Array, " B"]:
  """Returns which rows of a batch are text: the last ones, or the first ones of a packed batch.

  Packed rows are numbered through the micro-batches, each of which is every N-th row of the batch.

  Example:
    >>> print(sft.is_text(4, sft.SFTConfig(text_rows=1, text_share=0.25)))
    [False False False  True]
  """
  number = jnp.arange(rows)
  if not cfg.packed:
    return number >= rows - cfg.text_rows
  N = cfg.micro
  number_in_parts = number % N * (rows // N) + number // N
  return number_in_parts < cfg.text_rows


def token_shares(
  batch: Demonstrations,
  text: Bool[Array, " B"] | None = None,
  text_share: float = 0.0,
) -> Float[Array, " B"]:
  """Returns the weight of a marked token of each row: 1 / Σ m over the whole batch.

  Where some rows are `text`, it is s / Σ m over these and (1 - s) / Σ m over the others, with s the
  `text_share`. A text has many more tokens than a demonstration, and in one mean over all tokens it
  would be most of the loss.

  A row carries its share into its micro-batch, and so the loss stays that of the batch however the
  batch is split.

  Example:
    >>> print(sft.token_shares(text))  # five marked tokens
    [0.2 0.2]
  """
  rows = batch.tokens.shape[0]
  # The first token of a row is never predicted, so its mask does not count.
  marked = batch.mask[:, 1:].sum(axis=1)
  if text is None:
    return jnp.full(rows, 1.0 / jnp.maximum(marked.sum(), 1), jnp.float32)
  text_tokens = jnp.where(text, marked, 0).sum()
  other_tokens = jnp.where(text, 0, marked).sum()
  of_text = text_share / jnp.maximum(text_tokens, 1)
  of_others = (1 - text_share) / jnp.maximum(other_tokens, 1)
  return jnp.where(text, of_text, of_others).astype(jnp.float32)


def mixed_metrics(
  logp: Float[Array, "B S"],
  mask: Bool[Array, "B S"],
  text: Bool[Array, " B"],
) -> Metrics:
  """Returns the loss of the demonstrations and that of the text apart, each a token mean."""
  return {
    "loss/demonstrations": -returns.masked_mean(logp, mask & ~text[:, None]),
    "loss/text": -returns.masked_mean(logp, mask & text[:, None]),
  }


def gradients_of_packed(
  loss: steps.Loss,
  params: Params,
  batch: tuple[Demonstrations, Float[Array, " B"]],
  key: Key[Array, ""],
  micro: int,
) -> tuple[Params, Scalar, PyTree, Int[Array, ""]]:
  """Returns what `steps.gradients` does, and how many of the `micro` parts it computed.

  Those are the parts up to the last one that holds a token.
  """
  parts = steps.split(batch, micro)
  holds_any = (parts[0].valid > 0).any(axis=(1, 2))
  count = jnp.max(jnp.where(holds_any, jnp.arange(1, micro + 1), 0)).astype(jnp.int32)
  grads, value, rows = steps.gradients_of_parts(loss, params, parts, key, count=count)
  return grads, value, steps.merge(rows), count


def sft_step(
  state: TrainState,
  trunk: Params,
  batch: Demonstrations,
  *,
  lm: LM,
  tx: optax.GradientTransformation,
  cfg: SFTConfig = SFTConfig(),
) -> tuple[TrainState, Metrics]:
  """Makes one update on a batch of demonstrations, by the token mean over the whole batch.

  Example:
    >>> state = steps.init_state(jax.random.key(1), params, tx)
    >>> cfg = sft.SFTConfig(dropout=False)
    >>> step = jax.jit(partial(sft.sft_step, lm=lm, tx=tx, cfg=cfg))
    >>> state, metrics = step(state, {}, text)
    >>> print(state.step, metrics["tokens"], metrics["loss"].shape)
    1 5 ()
  """
  key = keys.key_for(state.key, "dropout", state.step)
  rows, length = batch.tokens.shape
  text = is_text(rows, cfg) if cfg.text_rows else None
  weighted = (batch, token_shares(batch, text, cfg.text_share))
  loss_of = partial(sft_loss, lm=lm, trunk=trunk, cfg=cfg)
  computed = rows
  if cfg.packed:
    grads, loss, (logp, mask), count = gradients_of_packed(
      loss_of, state.params, weighted, key, cfg.micro
    )
    computed = count * (rows // cfg.micro)
  else:
    grads, loss, (logp, mask) = steps.gradients(
      loss_of, state.params, weighted, key, micro=cfg.micro
    )
  # The rows come back from all micro-batches, so the metrics are of the whole batch.
  metrics = {
    "loss": loss,
    "tokens": mask.sum(),
    # Padding left out: the tokens that are read, whether or not they carry loss.
    "tokens/real": (batch.valid > 0).sum(),
    "grad/norm": optax.tree.norm(grads),
    # The share of the computed positions that hold a token.
    "update/useful": (batch.valid > 0).sum() / jnp.float32(computed * length),
  }
  if text is not None:
    metrics |= mixed_metrics(logp, mask, text)
  state = steps.update(state, grads, tx, ema_decay=cfg.ema_decay)
  # A batch is one update in this stage. In PPO it is several.
  state = dataclasses.replace(state, iteration=state.iteration + 1)
  return state, metrics


def evaluate(
  params: Params,
  batch: Demonstrations,
  *,
  lm: LM,
  window: int | None = None,
) -> tuple[Scalar, Scalar]:
  """Returns (negative log-likelihood in nats, number of marked tokens) of a batch, no dropout.

  Both are sums, so those of several batches may be added before they are divided.

  Example:
    >>> total, count = sft.evaluate(params, text, lm=lm)
    >>> print((total / count).shape, count)
    () 5.0
  """
  logp, mask = likelihood.masked_logp(lm, params, batch, window)
  return -(logp * mask).sum(), mask.sum(dtype=jnp.float32)


# What is promised; the other functions are the parts of these.
__all__ = [
  "SFTConfig",
  "evaluate",
  "is_text",
  "sft_loss",
  "sft_step",
  "token_shares",
]

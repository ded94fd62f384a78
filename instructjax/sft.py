"""Supervised fine-tuning (Ouyang et al. 2022, section 3.5, App. C.1) and PPO's start (App. C.3).

    L(φ) = - Σ_t w_t log π_φ(y_t | x, y_<t),        w_t = m_t / Σ m

The same step pretrains, where every token is marked, and makes `rl_init`, the model that PPO starts
from. There a share s of the loss is that of pretraining text, however many tokens it has:

    L(φ) = (1 - s) L_demonstrations(φ) + s L_text(φ)

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
  Metrics,
  Params,
  Scalar,
  TrainState,
)


@dataclass(frozen=True)
class SFTConfig:
  """Settings of one SFT step; the defaults are silent where the paper is."""

  micro: int = 1  # micro-batches a step
  window: int | None = (
    None  # the longest completion in tokens: logits are computed for that many positions a row
  )
  dropout: bool = True  # residual dropout at the rate of the model (paper: .2)
  ema_decay: float | None = None
  # The last rows of a batch that are pretraining text, and the share of the loss that is theirs.
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


def token_shares(
  batch: Demonstrations,
  text_rows: int = 0,
  text_share: float = 0.0,
) -> Float[Array, " B"]:
  """Returns the weight of a marked token of each row: 1 / Σ m over the whole batch.

  Where the last `text_rows` rows are text, it is s / Σ m over these and (1 - s) / Σ m over the
  others, with s the `text_share`. A text has many more tokens than a demonstration, and in one mean
  over all tokens it would be most of the loss.

  A row carries its share into its micro-batch, and so the loss stays that of the batch however the
  batch is split.
  """
  rows = batch.tokens.shape[0]
  # The first token of a row is never predicted, so its mask does not count.
  marked = batch.mask[:, 1:].sum(axis=1)
  if not text_rows:
    return jnp.full(rows, 1.0 / jnp.maximum(marked.sum(), 1), jnp.float32)
  is_text = jnp.arange(rows) >= rows - text_rows
  text_tokens = jnp.where(is_text, marked, 0).sum()
  other_tokens = jnp.where(is_text, 0, marked).sum()
  of_text = text_share / jnp.maximum(text_tokens, 1)
  of_others = (1 - text_share) / jnp.maximum(other_tokens, 1)
  return jnp.where(is_text, of_text, of_others).astype(jnp.float32)


def mixed_metrics(
  logp: Float[Array, "B S"],
  mask: Bool[Array, "B S"],
  text_rows: int,
) -> Metrics:
  """Returns the loss of the demonstrations and that of the text apart, each a token mean."""
  rows = mask.shape[0]
  is_text = (jnp.arange(rows) >= rows - text_rows)[:, None]
  return {
    "loss/demonstrations": -returns.masked_mean(logp, mask & ~is_text),
    "loss/text": -returns.masked_mean(logp, mask & is_text),
  }


def sft_step(
  state: TrainState,
  trunk: Params,
  batch: Demonstrations,
  *,
  lm: LM,
  tx: optax.GradientTransformation,
  cfg: SFTConfig = SFTConfig(),
) -> tuple[TrainState, Metrics]:
  """Makes one update on a batch of demonstrations, by the token mean over the whole batch."""
  key = keys.key_for(state.key, "dropout", state.step)
  share = token_shares(batch, cfg.text_rows, cfg.text_share)
  grads, loss, (logp, mask) = steps.gradients(
    partial(sft_loss, lm=lm, trunk=trunk, cfg=cfg),
    state.params,
    (batch, share),
    key,
    micro=cfg.micro,
  )
  # The rows come back from all micro-batches, so the metrics are of the whole batch.
  metrics = {
    "loss": loss,
    "tokens": mask.sum(),
    "grad/norm": optax.tree.norm(grads),
  }
  if cfg.text_rows:
    metrics |= mixed_metrics(logp, mask, cfg.text_rows)
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
  """
  logp, mask = likelihood.masked_logp(lm, params, batch, window)
  return -(logp * mask).sum(), mask.sum(dtype=jnp.float32)

"""Supervised fine-tuning (Ouyang et al. 2022, section 3.5 and App. C.1) and the model that PPO
starts from (App. C.3).

    L(phi) = - sum_t w_t log pi_phi(y_t | x, y_<t),        w_t = m_t / sum m

The same step pretrains (every token is marked) and makes `rl_init` (a share of each batch is
pretraining text).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from instructjax import likelihood, losses, steps
from instructjax.types import LM, Array, Demonstrations, Float, Metrics, Params, TrainState


@dataclass(frozen=True)
class SFTConfig:
  """Settings of one SFT step; the defaults are silent where the paper is."""

  micro: int = 1  # micro-batches a step
  window: int | None = (
    None  # the longest completion in tokens: logits are computed for that many positions a row
  )
  dropout: bool = True  # residual dropout at the rate of the model (paper: .2)
  ema_decay: float | None = None


def sft_loss(
  params: Params,
  batch: tuple[Demonstrations, Float[Array, " B"]],
  key,
  *,
  lm: LM,
  trunk: Params,
  cfg: SFTConfig,
) -> tuple[Float[Array, ""], tuple[Array, Array]]:
  """Negative log-likelihood of the marked tokens under `trunk | params`; rows are (logp, mask)."""
  demos, share = batch
  logp, mask = likelihood.masked_logp(
    lm, trunk | params, demos, cfg.window, key=key if cfg.dropout else None
  )
  return losses.nll(logp, mask * share[:, None]), (logp, mask)


def sft_step(
  state: TrainState,
  trunk: Params,
  batch: Demonstrations,
  *,
  lm: LM,
  tx: optax.GradientTransformation,
  cfg: SFTConfig = SFTConfig(),
) -> tuple[TrainState, Metrics]:
  """One update on a batch of demonstrations: token mean over the whole batch, whatever the
  micro-batches.
  """
  key = jax.random.fold_in(state.key, state.step)
  share = jnp.full(
    batch.tokens.shape[0], 1.0 / jnp.maximum(batch.mask[:, 1:].sum(), 1), jnp.float32
  )
  loss = partial(sft_loss, lm=lm, trunk=trunk, cfg=cfg)
  grads, value, (_, mask) = steps.gradients(
    loss, state.params, (batch, share), key, micro=cfg.micro
  )
  metrics = {"loss": value, "tokens": mask.sum(), "grad/norm": optax.tree.norm(grads)}
  state = steps.update(state, grads, tx, ema_decay=cfg.ema_decay)
  return dataclasses.replace(state, iteration=state.iteration + 1), metrics


def evaluate(
  params: Params, batch: Demonstrations, *, lm: LM, window: int | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """(sum of negative log-probabilities in nats, number of marked tokens) of a batch, dropout off."""
  logp, mask = likelihood.masked_logp(lm, params, batch, window)
  return -(logp * mask).sum(), mask.sum(dtype=jnp.float32)

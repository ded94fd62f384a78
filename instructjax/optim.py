"""Schedules, Adam with both epsilon forms, per-subtree optimizers and the moving average of
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax

from instructjax.types import Array, Float, Params

Schedule = Callable[[Any], Float[Array, ""]]  # from the count of updates


def cosine(peak: float, steps: int, *, final: float = 0.1) -> Schedule:
  """`peak` at update 0, `final * peak` at update `steps - 1`, a half cosine between; no warmup
  (App. C.1).
  """

  def schedule(step: Array | int) -> Float[Array, ""]:
    done = jnp.clip(jnp.asarray(step, jnp.float32) / max(steps - 1, 1), 0.0, 1.0)
    return jnp.float32(peak) * (final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done)))

  return schedule


def warmup_constant(peak: float, warmup: int = 10, *, start: float = 0.1) -> Schedule:
  """`start * peak` at 0, rising linearly to `peak` at `warmup` and constant after (App. C.4)."""

  def schedule(step: Array | int) -> Float[Array, ""]:
    done = jnp.clip(jnp.asarray(step, jnp.float32) / max(warmup, 1), 0.0, 1.0)
    return jnp.float32(peak) * (start + (1 - start) * done)

  return schedule


def linear(peak: float, steps: int, *, final: float = 0.0) -> Schedule:
  """`peak` falling linearly to `final * peak` over `steps` (Ziegler et al. 2019; Stiennon et al. 2020)."""

  def schedule(step: Array | int) -> Float[Array, ""]:
    done = jnp.clip(jnp.asarray(step, jnp.float32) / max(steps, 1), 0.0, 1.0)
    return jnp.float32(peak) * (1 - (1 - final) * done)

  return schedule


def warmed_up(schedule: Schedule, peak: float, warmup: int, *, start: float = 0.1) -> Schedule:
  """`start * peak` at update 0, rising linearly to `peak` at update `warmup`; from there `schedule`."""

  def rise_and_follow(step: Array | int) -> Float[Array, ""]:
    step = jnp.asarray(step, jnp.int32)
    done = jnp.clip(step.astype(jnp.float32) / max(warmup, 1), 0.0, 1.0)
    rising = jnp.float32(peak) * (start + (1 - start) * done)
    return jnp.where(step < warmup, rising, schedule(jnp.maximum(step - warmup, 0)))

  return rise_and_follow


def held(schedule: Schedule, updates: int) -> Schedule:
  """The same schedule counted in PPO iterations of `updates` optimizer updates each."""
  return lambda step: schedule(jnp.asarray(step) // updates)


def scale_by_adam_tf(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """Adam as TensorFlow 1 writes it: sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps).

  The usual form divides by (sqrt(v / (1 - b2^t)) + eps), that is, it shrinks eps by sqrt(1 -
  b2^t) in the first steps.  With PPO's eps of 1e-5 the two differ several-fold early on (Huang
  et al. 2023, detail on Adam).
  """
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=0.0)

  def update(grads, state, params=None):
    found: Any = adam.update(grads, state, params)[1]
    t = found.count.astype(jnp.float32)
    rate = jnp.sqrt(1 - b2**t) / (1 - b1**t)
    return jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + eps), found.mu, found.nu), found

  return optax.GradientTransformation(adam.init, cast(optax.TransformUpdateFn, update))


def adamw(
  schedule: Schedule | float,
  *,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  eps_mode: Literal["optax", "tf"] = "optax",
  weight_decay: float = 0.0,
  clip: float | None = None,
) -> optax.GradientTransformation:
  """AdamW with the paper's betas (App. C); `clip` bounds the global gradient norm, `eps_mode` picks
  the form.

  Not printed in the paper: eps, weight decay and clipping.  Weight decay skips vectors and scalars.
  """
  adam = (
    scale_by_adam_tf(b1, b2, eps)
    if eps_mode == "tf"
    else optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  )
  parts = [adam, optax.scale_by_learning_rate(schedule)]
  if weight_decay:
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    parts.insert(1, optax.add_decayed_weights(weight_decay, mask=matrices))
  if clip is not None:
    parts.insert(0, optax.clip_by_global_norm(clip))
  return optax.chain(*parts)


def by_subtree(**transforms: optax.GradientTransformation) -> optax.GradientTransformation:
  """A transformation of its own for each top-level key, e.g. `by_subtree(policy=..., value=...)`."""
  named: dict[Hashable, optax.GradientTransformation] = {**transforms}
  return optax.partition(named, {name: name for name in transforms})


def ema(average: Params, params: Params, decay: float) -> Params:
  """average <- decay * average + (1 - decay) * params, in float32 (App. C.4: decay .992)."""
  return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), average, params)

"""Schedules, Adam in both forms of its epsilon, an optimizer per subtree, and averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax

from instructjax.types import Array, Params, Scalar

# Maps the number of updates so far to a learning rate.
Schedule = Callable[[Any], Scalar]


def _progress(step: Array | int, steps: int) -> Scalar:
  """The share of `steps` that is done, from 0 to 1."""
  step = jnp.asarray(step, jnp.float32)
  return jnp.clip(step / max(steps, 1), 0.0, 1.0)


def cosine(
  peak: float,
  steps: int,
  *,
  final: float = 0.1,
) -> Schedule:
  """Half a cosine from `peak` to `final * peak`, without warmup (Ouyang et al. 2022, App. C.1).

  Update 0 has `peak` and update `steps - 1` has `final * peak`.
  """

  def schedule(step: Array | int) -> Scalar:
    done = _progress(step, steps - 1)
    # Falls from 1 to 0.
    falling = 0.5 * (1 + jnp.cos(jnp.pi * done))
    return jnp.float32(peak) * (final + (1 - final) * falling)

  return schedule


def warmup_constant(
  peak: float,
  warmup: int = 10,
  *,
  start: float = 0.1,
) -> Schedule:
  """A linear rise from `start * peak` to `peak` over `warmup` updates, then constant (App. C.4)."""

  def schedule(step: Array | int) -> Scalar:
    done = _progress(step, warmup)
    share = start + (1 - start) * done
    return jnp.float32(peak) * share

  return schedule


def linear(
  peak: float,
  steps: int,
  *,
  final: float = 0.0,
) -> Schedule:
  """A linear fall from `peak` to `final * peak` (Ziegler et al. 2019; Stiennon et al. 2020)."""

  def schedule(step: Array | int) -> Scalar:
    done = _progress(step, steps)
    return jnp.float32(peak) * (1 - (1 - final) * done)

  return schedule


def warmed_up(
  schedule: Schedule,
  peak: float,
  warmup: int,
  *,
  start: float = 0.1,
) -> Schedule:
  """A linear rise from `start * peak` to `peak`, then `schedule`.

  The rise takes `warmup` updates, and the schedule counts from its own beginning after that.
  """

  def rise_and_follow(step: Array | int) -> Scalar:
    count = jnp.asarray(step, jnp.int32)
    done = _progress(count, warmup)
    rising = jnp.float32(peak) * (start + (1 - start) * done)
    # During the rise this is the first value of the schedule, which is not used.
    following = schedule(jnp.maximum(count - warmup, 0))
    return jnp.where(count < warmup, rising, following)

  return rise_and_follow


def held(schedule: Schedule, updates: int) -> Schedule:
  """The same schedule, held for `updates` updates at a time.

  PPO's schedules count iterations, each of which makes several optimizer updates.
  """

  def held_schedule(step: Array | int) -> Scalar:
    return schedule(jnp.asarray(step) // updates)

  return held_schedule


def scale_by_adam_tf(
  b1: float,
  b2: float,
  eps: float,
) -> optax.GradientTransformation:
  """Adam as TensorFlow 1 writes it: sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps).

  The usual form divides by (sqrt(v / (1 - b2^t)) + eps), which shrinks eps by sqrt(1 - b2^t) in the
  first steps. With PPO's eps of 1e-5 the two differ several-fold early on (Huang et al. 2023, in
  the detail on Adam).
  """
  # Optax keeps the moments. Only the step that is made of them is ours.
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=0.0)

  def update(grads, state, params=None):
    _, state = adam.update(grads, state, params)
    moments: Any = state
    t = moments.count.astype(jnp.float32)
    # The bias corrections of both moments, in one factor.
    rate = jnp.sqrt(1 - b2**t) / (1 - b1**t)

    def step(m, v):
      return rate * m / (jnp.sqrt(v) + eps)

    return jax.tree.map(step, moments.mu, moments.nu), state

  return optax.GradientTransformation(
    adam.init,
    cast(optax.TransformUpdateFn, update),
  )


def adamw(
  schedule: Schedule | float,
  *,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  eps_mode: Literal["optax", "tf"] = "optax",
  weight_decay: float = 0.0,
  decays: Callable[[Params], Any] | None = None,
  clip: float | None = None,
) -> optax.GradientTransformation:
  """AdamW with the betas of the paper (Ouyang et al. 2022, App. C).

  `clip` bounds the global norm of the gradient, and `eps_mode` picks the form of epsilon. The paper
  prints neither eps nor weight decay nor clipping. `decays` marks the parameters that decay; biases
  and norms do not (`models.decay.decaying`).

  Raises:
    ValueError: for a weight decay without `decays`. The arrays alone do not tell: a bias of the
      blocks is stacked over layers, and has two axes as a matrix does.
  """
  transforms = []
  if clip is not None:
    transforms.append(optax.clip_by_global_norm(clip))
  if eps_mode == "tf":
    transforms.append(scale_by_adam_tf(b1, b2, eps))
  else:
    transforms.append(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))
  if weight_decay:
    if decays is None:
      raise ValueError("weight decay needs to be told what decays: decays=partial(decaying, lm)")
    transforms.append(optax.add_decayed_weights(weight_decay, mask=decays))
  transforms.append(optax.scale_by_learning_rate(schedule))
  return optax.chain(*transforms)


def by_subtree(**transforms: optax.GradientTransformation) -> optax.GradientTransformation:
  """A transformation for each top-level key, such as `by_subtree(policy=..., value=...)`.

  PPO with a value network needs both; without one (GRPO, RLOO) it needs `policy` alone.

  Raises:
    ValueError: from `init`, where the parameters have other top-level keys than those.
  """
  by_name: dict[Hashable, optax.GradientTransformation] = {**transforms}
  # Each top-level key labels everything below it.
  labels = {name: name for name in transforms}
  partition = optax.partition(by_name, labels)

  def init(params: Any) -> optax.OptState:
    if params.keys() != transforms.keys():
      raise ValueError(
        f"by_subtree has optimizers for {sorted(transforms)}, and the parameters are "
        f"{sorted(params)}: name one for each, such as by_subtree(policy=..., value=...)"
      )
    return partition.init(params)

  return optax.GradientTransformationExtraArgs(init, partition.update)


def ema(average: Params, params: Params, decay: float) -> Params:
  """Returns decay * average + (1 - decay) * params in float32 (App. C.4: a decay of 0.992)."""

  # The average has the precision of the first weights, whatever the trained ones are cast to.
  def blend(a, p):
    return decay * a + (1 - decay) * p.astype(a.dtype)

  return jax.tree.map(blend, average, params)

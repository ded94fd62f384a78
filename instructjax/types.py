"""The types that every layer shares: array aliases, a language model, batches and the training
state.

Dimensions, here and in every file: B batch, K completions of one prompt, T tokens, P prompt tokens,
R response tokens (T = P + R), D model width, V vocabulary, L layers.

Words: `valid` marks real tokens (False is padding), `mask` marks the response tokens that carry
loss, `weight` is a mask scaled to the share of each token in a mean (`losses.token_mean`).
Nothing is ever inferred from the id of a padding token: padded positions hold id 0 and `valid`
False.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

Params = dict[
  str, Any
]  # nested dicts of arrays; `trunk | trained` joins two disjoint parts of one model
Metrics = dict[str, Float[Array, ""]]
Cache = PyTree[Array]
Valid = (
  Bool[Array, "B T"] | Int[Array, "B T"]
)  # False or 0 is padding; integers above 0 number packed segments


@dataclass(frozen=True)
class Leaf:
  """One parameter: its shape, the logical name of each axis (`sharding.RULES`) and its initialiser."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: Callable[[Key[Array, ""], tuple[int, ...]], Array]


class LM(NamedTuple):
  """A decoder-only language model as pure functions over a pytree of parameters.

  Parameters are a dict: `embed`, `blocks` (every leaf stacked over layers), `norm`, and `head`
  when the unembedding is not tied.  A dict may also hold `lower`: blocks below `blocks` that are
  not trained (`models.freeze.split`).  Gradients with respect to `blocks` never reach `lower`,
  so neither does the backward pass.

    table                         pytree of `Leaf`, the source of shapes, shardings and initial values
    init(key)                     parameters, float32
    stem(params, tokens, valid)   [B, T, D] embeddings carried through `lower` (or just the embeddings)
    hidden(params, tokens, valid, *, stem=None, key=None)
                                  [B, T, D] float32 after the final norm; `stem`, when given,
                                  replaces the computation of `stem(params, tokens, valid)`;
                                  `key` switches residual dropout on
    logits(params, hidden)        [..., V] float32 from [..., D]
    unstack(params, *, whole=True)
                                  the same parameters laid out and cast for decoding: blocks as a
                                  tuple of layers; `whole` gathers them along fsdp once, else a
                                  layer at a time in every step
    init_cache(batch, length)     an empty key/value cache for `length` positions
    decode(unstacked, tokens [B, t], valid [B, t], cache)
                                  ([B, t, D] hidden, cache): appends t positions to the cache and
                                  attends to all of it; t = P is the prefill, t = 1 a step
  """

  vocab_size: int
  context: int
  width: int
  depth: int
  table: PyTree[Leaf]
  init: Callable[..., Params]
  stem: Callable[..., Float[Array, "B T D"]]
  hidden: Callable[..., Float[Array, "B T D"]]
  logits: Callable[..., Float[Array, "... V"]]
  unstack: Callable[..., Params]
  init_cache: Callable[[int, int], Cache]
  decode: Callable[..., tuple[Float[Array, "B t D"], Cache]]


@struct.dataclass
class Demonstrations:
  """Prompt and completion in one row (right padded); `mask` marks the tokens that are predicted and
  carry loss.

  Also the batch of pretraining text, where `mask` is every real token but the first.
  """

  tokens: Int[Array, "*B T"]
  valid: Bool[Array, "*B T"] | Int[Array, "*B T"]
  mask: Bool[Array, "*B T"]
  stem: Float[Array, "*B T D"] | None = (
    None  # `LM.stem` of the tokens, where it was computed beforehand
  )


@struct.dataclass
class Comparisons:
  """K completions of each prompt; `rank` 1 is best, equal ranks are ties, 0 is a padded completion."""

  tokens: Int[Array, "*B K T"]
  valid: Bool[Array, "*B K T"]
  rank: Int[Array, "*B K"]
  stem: Float[Array, "*B K T D"] | None = None


@struct.dataclass
class Prompts:
  """Prompts padded on the left, ready to be continued."""

  tokens: Int[Array, "*B P"]
  valid: Bool[Array, "*B P"]


@struct.dataclass
class Rollout:
  """Prompts with sampled responses.  `mask` is True up to and including the first end-of-text
  token.

  `logp` is the log-probability of each sampled token under the distribution it was drawn from;
  `ended` says whether an end-of-text token was drawn.
  """

  tokens: Int[Array, "*B T"]
  valid: Bool[Array, "*B T"]
  mask: Bool[Array, "*B R"]
  logp: Float[Array, "*B R"]
  ended: Bool[Array, "*B"]


@struct.dataclass
class Experience:
  """A rollout with everything PPO holds fixed while it updates: log-probabilities, values,
  advantages, targets.

  `value_mask` equals `mask`, or also covers the position after the end when the score is paid
  there.
  """

  tokens: Int[Array, "*B T"]
  valid: Bool[Array, "*B T"]
  mask: Bool[Array, "*B R"]
  value_mask: Bool[Array, "*B R"]
  logp: Float[Array, "*B R"]
  value: Float[Array, "*B R"]
  advantage: Float[Array, "*B R"]
  target: Float[Array, "*B R"]
  stem: Float[Array, "*B T D"] | None = None
  value_stem: Float[Array, "*B T D2"] | None = None  # where the reward side has a trunk of its own


@struct.dataclass
class Frozen:
  """What PPO reads and never writes.

  `trunk` is the part of the policy that is not trained ({} when all of it is), `ref` the trained
  part of the reference policy (`rl_init`), `reward` the reward model ({"lm": ..., "head": ...}).
  `reward_trunk` is the untrained part of the reward and value networks; None says that they
  share `trunk` with the policy.
  """

  trunk: Params
  ref: Params
  reward: Params
  reward_trunk: Params | None = None


@struct.dataclass
class TrainState:
  """Everything that training changes; one checkpoint holds it all."""

  step: Int[Array, ""]  # optimizer updates made
  iteration: Int[Array, ""]  # batches consumed: the position in every data stream
  key: Key[Array, ""]  # never advanced: step keys are fold_in(key, step)
  params: Params
  opt_state: PyTree
  ema: Params | None = None
  kl_coef: Float[Array, ""] | None = None  # adaptive or fixed coefficient of PPO's KL penalty


__all__ = [
  "LM",
  "Array",
  "Bool",
  "Cache",
  "Comparisons",
  "Demonstrations",
  "Experience",
  "Float",
  "Frozen",
  "Int",
  "Key",
  "Leaf",
  "Metrics",
  "Params",
  "Prompts",
  "PyTree",
  "Rollout",
  "TrainState",
  "Valid",
]

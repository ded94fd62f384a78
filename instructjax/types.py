"""The types that every layer shares: array aliases, a language model, batches, the training state.

Dimensions, in this file and in every other:

    B  batch                    P  prompt tokens            D  model width
    K  completions of a prompt  R  response tokens          V  vocabulary
    T  tokens (T = P + R)       L  layers

Words:

    valid   marks real tokens; False is padding.
    mask    marks the tokens that carry loss.
    weight  is a mask scaled to the share of each token in a mean (`losses.token_mean`).

Nothing is ever inferred from the id of a padding token. Padded positions hold id 0, and `valid` is
False there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

# Nested dicts of arrays. `trunk | trained` joins two disjoint parts of one model.
Params = dict[str, Any]
Scalar = Float[Array, ""]
Metrics = dict[str, Scalar]
Cache = PyTree[Array]
# False or 0 is padding. Integers above 0 number the segments of a packed row.
Valid = Bool[Array, "B T"] | Int[Array, "B T"]
# Of a packed row whose segments are groups: 0 is what all branches of the group begin with, its
# prompt, and k > 0 is branch k, a completion. A branch continues from the prompt, and sees the
# prompt and itself.
Branch = Int[Array, "B T"]


@dataclass(frozen=True)
class Leaf:
  """One parameter: its shape, the logical name of each axis (`sharding.RULES`), its initialiser."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: Callable[[Key[Array, ""], tuple[int, ...]], Array]
  decays: bool = True  # whether weight decay shrinks it; False for biases and norms


class LM(NamedTuple):
  """A decoder-only language model as pure functions over a pytree of parameters.

  Parameters are a dict: `embed`, `blocks` (every leaf is stacked over layers), `norm`, and `head`
  where the unembedding is not tied. The dict may also hold `lower`: the blocks below `blocks` that
  are not trained (`models.freeze.split`). No gradient with respect to `blocks` reaches `lower`, so
  the backward pass stops above it.

    `table`
        A pytree of `Leaf`: the source of shapes, shardings and initial values.
    `init(key)`
        Returns float32 parameters.
    `stem(params, tokens, valid, branch=None)`
        Returns the embeddings [B, T, D] carried through `lower`, or just the embeddings.
    `hidden(params, tokens, valid, *, branch=None, stem=None, key=None)`
        Returns [B, T, D] float32 after the final norm. `branch` [B, T] says which tokens of a
        segment are a prompt and which are its branches (`Branch`): a token then sees only the
        prompt and its own branch, from which its position is counted too. A given `stem` takes the
        place of `stem(params, tokens, valid, branch)`; a given `key` switches residual dropout on.
    `logits(params, hidden)`
        Returns [..., V] float32 from [..., D].
    `unstack(params, *, whole=True, int8_weights=False)`
        Returns the same parameters laid out and cast for decoding, the blocks as a tuple of
        layers. `whole` gathers them along fsdp once; without it every step gathers them, a layer
        at a time. `int8_weights` makes the matrices integers (`models.int8`).
    `init_cache(batch, length, block=None, int8_cache=False)`
        Returns an empty key/value cache with room for `length` columns, kept in blocks of `block`
        columns where the model keeps blocks, and in integers with `int8_cache`. It is a dict with
        two entries that others set: `position` says which position of its row each column holds,
        -1 for none, and `index` is the column to write next.
    `decode(unstacked, tokens [B, t], valid [B, t], cache)`
        Returns ([B, t, D] hidden, cache). It writes t positions into the columns from `index` on.
        Each of them attends to the columns that hold a position of its row up to its own: t > 1
        reads a prompt, t = 1 is a step of the sampler.
  """

  vocab_size: int
  context: int  # the longest row in tokens
  width: int
  depth: int
  table: PyTree[Leaf]
  init: Callable[..., Params]
  stem: Callable[..., Float[Array, "B T D"]]
  hidden: Callable[..., Float[Array, "B T D"]]
  logits: Callable[..., Float[Array, "... V"]]
  unstack: Callable[..., Params]
  init_cache: Callable[..., Cache]
  decode: Callable[..., tuple[Float[Array, "B t D"], Cache]]


@struct.dataclass
class Demonstrations:
  """Rows of a prompt and its completion, right padded; `mask` marks the tokens that carry loss.

  A batch of pretraining text has the same type: its `mask` is every real token but the first,
  which nothing predicts.
  """

  tokens: Int[Array, "*B T"]
  valid: Bool[Array, "*B T"] | Int[Array, "*B T"]
  mask: Bool[Array, "*B T"]
  stem: Float[Array, "*B T D"] | None = None  # `LM.stem` of the tokens, if computed beforehand


@struct.dataclass
class Predictions:
  """The tokens of the completions in packed rows, M of them a row, which a policy learns."""

  before: Int[Array, "*G M"]  # the column of the token before, whose hidden state predicts it
  token: Int[Array, "*G M"]
  completion: Int[Array, "*G M"]  # s * K + k for completion k of prompt s; S * K for none


@struct.dataclass
class Comparisons:
  """Ranked completions in packed rows: each prompt once, its completions as branches of it.

  A packed row of L tokens holds up to S prompts with up to K completions each. Of a batch there are
  N parts of G packed rows, [G, N, ...], and those that hold something come first.

  Rank 1 is the best, equal ranks are ties, and rank 0 is a completion that is not there. A prompt
  that is not there has ranks of 0 only.

  Where some prompt of the data has labels of pairs that are no ranking, `label` holds those of all
  prompts, and rank 1 says only that a completion is there.
  """

  tokens: Int[Array, "*G L"]
  valid: Int[Array, "*G L"]  # numbers the prompts of a row, with their completions
  branch: Int[Array, "*G L"]  # 0 in a prompt, k + 1 in its completion k
  last: Int[Array, "*G S K"]  # the column of the last token of each completion
  rank: Int[Array, "*G S K"]
  same: Int[Array, "*G S K"]  # completions of a prompt with the same number are the same row
  stem: Float[Array, "*G L D"] | None = None  # `LM.stem` of the tokens, if computed beforehand
  rating: Float[Array, "*G S K"] | None = None  # the overall quality, where margins count it
  predictions: Predictions | None = None  # of DPO
  label: Float[Array, "*G S K K"] | None = None  # how much it counts that i is better than j


@struct.dataclass
class Prompts:
  """Prompts that are padded on the left, so that a response can follow each of them."""

  tokens: Int[Array, "*B P"]
  valid: Bool[Array, "*B P"]
  # A schedule of lengths, for benchmarks: the response ends after so many tokens, at least 1.
  ends: Int[Array, "*B"] | None = None


@struct.dataclass
class Rollout:
  """Prompts with sampled responses."""

  tokens: Int[Array, "*B T"]
  valid: Bool[Array, "*B T"]
  mask: Bool[Array, "*B R"]  # True up to and including the first end-of-text token
  logp: Float[Array, "*B R"]  # of each token, under the distribution that it was sampled from
  ended: Bool[Array, "*B"]  # whether an end-of-text token was sampled
  # The positions that were computed for a row, padding included; all rows of a batch share them.
  computed: Float[Array, "*B"] | None = None


@struct.dataclass
class Experience:
  """A rollout with everything that PPO holds fixed while it updates the policy."""

  tokens: Int[Array, "*B T"]
  valid: Bool[Array, "*B T"] | Int[Array, "*B T"]
  mask: Bool[Array, "*B R"]
  # Equal to `mask`, or one position longer where the score is paid after the end.
  value_mask: Bool[Array, "*B R"]
  logp: Float[Array, "*B R"]
  value: Float[Array, "*B R"] | None  # None, as the target, where there is no value network
  advantage: Float[Array, "*B R"]
  target: Float[Array, "*B R"] | None
  stem: Float[Array, "*B T D"] | None = None
  value_stem: Float[Array, "*B T D2"] | None = None  # where the reward side has its own trunk
  # Of packed rows: the response tokens, the column before each, and where they share prompts.
  targets: Int[Array, "*B R"] | None = None
  before: Int[Array, "*B R"] | None = None
  branch: Int[Array, "*B T"] | None = None
  ref_logp: Float[Array, "*B R"] | None = None  # where the loss has a KL term


@struct.dataclass
class Frozen:
  """What PPO reads and never writes; DPO has no reward model."""

  trunk: Params  # the untrained part of the policy; {} when all of it is trained
  ref: Params  # the trained part of the reference policy, which is `rl_init`
  reward: Params  # the reward model: {"lm": ..., "head": ...}
  # The untrained part of the reward and value networks. None: they share the policy's `trunk`.
  reward_trunk: Params | None = None


@struct.dataclass
class TrainState:
  """Everything that training changes; one checkpoint holds all of it."""

  step: Int[Array, ""]  # optimizer updates so far
  iteration: Int[Array, ""]  # batches consumed: the position in every data stream
  key: Key[Array, ""]  # never advanced: `keys.key_for` folds in the purpose and the step
  params: Params
  opt_state: PyTree
  ema: Params | None = None  # moving average of the weights, if one is kept
  kl_coef: Float[Array, ""] | None = None  # β of PPO's KL penalty, fixed or adaptive


__all__ = [
  "LM",
  "Array",
  "Bool",
  "Branch",
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
  "Predictions",
  "Prompts",
  "PyTree",
  "Rollout",
  "Scalar",
  "TrainState",
  "Valid",
]

"""The useful work of rows of drawn lengths, as a share of that of rows of full length.

Padding is no work. What is left of a row is the matrix products of its own tokens: each token meets
every weight once, and the keys of the tokens before it. The share that this is of the same sum at
full length scales what is counted there (`plan.counting`), so that a limit of seconds is that of
the useful work, however a stage pads or packs.

Dimensions: N rows, K completions of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from instructjax.plan.lengths import Lengths
from instructjax.types import LM


class Share(NamedTuple):
  """Of the work at full length."""

  flops: float
  bytes: float  # of weights that are read


class Model(NamedTuple):
  """What a token costs in a forward pass, in FLOPs."""

  layers: float  # the weights of all blocks
  key: float  # one key of attention, with its value
  unembedding: float

  def trunk(self, tokens: np.ndarray, before: np.ndarray | int = 0) -> np.ndarray:
    """FLOPs of so many tokens of each row that follow `before` others, without logits."""
    keys = tokens * before + tokens * (tokens + 1) / 2
    return self.layers * tokens + self.key * keys


def model_of(lm: LM) -> Model:
  """The costs of a language model."""
  # Biases and norms do not decay: what does is matrices.
  weights = sum(np.prod(leaf.shape) for leaf in leaves(lm.table["blocks"]) if leaf.decays)
  return Model(
    layers=2.0 * float(weights),
    key=4.0 * lm.depth * lm.width,
    unembedding=2.0 * lm.vocab_size * lm.width,
  )


def leaves(table: Mapping) -> list:
  """The leaves of a table of parameters."""
  nested = [leaves(part) if isinstance(part, Mapping) else [part] for part in table.values()]
  return [leaf for part in nested for leaf in part]


class Networks(NamedTuple):
  """The networks that read an episode, and those among them that give logits."""

  scoring: int
  scoring_logits: int
  update: int
  update_logits: int


# Policy, reference, reward model and value network; the first two give logits.
PPO = Networks(scoring=4, scoring_logits=2, update=2, update_logits=1)
# Policy and reference: rewards come from outside, and no value network learns.
GRPO = Networks(scoring=2, scoring_logits=2, update=1, update_logits=1)


def rollout_flops(model: Model, rows: Lengths, responses: int = 1) -> float:
  """Of sampling so many responses of one length to each prompt, which is read once for them.

  The last token of a response is never read. Of the others, all meet the keys of their prompt.
  """
  prompt, response = wide(rows)
  of_prompts = model.trunk(prompt)
  of_responses = model.trunk(response - 1, prompt) + model.unembedding * response
  return float(np.sum(of_prompts + responses * of_responses))


def scoring_flops(model: Model, rows: Lengths, work: Networks = PPO) -> float:
  """Of the networks that score an episode."""
  prompt, response = wide(rows)
  trunk = work.scoring * model.trunk(prompt + response)
  return float(np.sum(trunk + work.scoring_logits * model.unembedding * response))


def update_flops(model: Model, rows: Lengths, work: Networks = PPO) -> float:
  """Of the networks that learn from an episode, forward."""
  prompt, response = wide(rows)
  trunk = work.update * model.trunk(prompt + response)
  return float(np.sum(trunk + work.update_logits * model.unembedding * response))


def text_flops(model: Model, rows: int, length: int) -> float:
  """Of a language model on rows of text, all of which carries loss."""
  lengths = np.full(rows, float(length))
  return float(np.sum(model.trunk(lengths) + model.unembedding * lengths))


def comparison_flops(model: Model, rows: Lengths, completions: int, logits: bool) -> float:
  """Of K responses to a prompt, which is read once: the first length of each K prompts."""
  prompt, response = wide(rows)
  responses = response.reshape(-1, completions)
  prompts = prompt[::completions]
  flops = np.sum(model.trunk(prompts))
  flops += np.sum(model.trunk(responses, prompts[:, None]))
  if logits:
    flops += model.unembedding * np.sum(responses)
  return float(flops)


def comparison_tokens(rows: Lengths, completions: int) -> int:
  """Real tokens of comparisons, a prompt once for its K responses."""
  prompts = rows.prompt[::completions]
  return int(prompts.sum(dtype=np.int64) + rows.response.sum(dtype=np.int64))


def wide(rows: Lengths) -> tuple[np.ndarray, np.ndarray]:
  """The lengths as float64, whose squares do not overflow."""
  return rows.prompt.astype(np.float64), rows.response.astype(np.float64)


def tokens(rows: Lengths) -> int:
  """Real tokens of prompts and responses."""
  return int(rows.prompt.sum(dtype=np.int64) + rows.response.sum(dtype=np.int64))


def share_of(
  flops: Callable[[Lengths], float],
  read: Callable[[Lengths], float],
  rows: Lengths,
  full: Lengths,
) -> Share:
  """The share of rows in the work of the same rows at full length.

  `read` counts the tokens in proportion to which weights are read.
  """
  return Share(flops(rows) / flops(full), read(rows) / read(full))

"""A reward model of ours as a reward: it scores the very ids that were sampled, or texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from instructjax import reward, sharding
from instructjax.data.batches import pipeline
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.models import freeze
from instructjax.runs import origin
from instructjax.runs.origin import Config, Origin
from instructjax.types import Array, Float, Rollout

SIZE = 16  # rows at a time, for each part of the mesh


def same_ids(policy: Origin, judge: Origin) -> None:
  """Raises UserError where policy and reward model read different ids: the reward model scores the
  very ids sampled.
  """
  if (
    policy.tokenizer.fingerprint != judge.tokenizer.fingerprint
    or policy.lm.vocab_size != judge.lm.vocab_size
  ):
    raise UserError(
      f"the policy's tokenizer ({policy.tokenizer.vocab_size} ids, "
      f"{policy.tokenizer.fingerprint[:8]}) is not the "
      f"reward model's ({judge.tokenizer.vocab_size} ids, {judge.tokenizer.fingerprint[:8]}); "
      "train both from one base"
    )
  names = [origin.template_of(one.about)[:8] or "plain text" for one in (policy, judge)]
  if "template" in judge.about and names[0] != names[1]:  # of a folder nobody knows
    raise UserError(
      f"config.data.template gives {names[0]}, the reward model was trained on {names[1]}: it "
      "would score other ids than "
      "it learnt; set config.data.template as the reward model's was"
    )


def open_run(
  source: str, settings: Config, policy: Origin | None, length: int, dtype: str | None
) -> tuple[
  Callable[[Sequence[str], Sequence[str]], np.ndarray], Callable[[Rollout], Float[Array, " B"]]
]:
  """(scores of texts, scores of rollouts [B]) of a finished reward run; matrices are kept in
  `dtype`.

  Raises UserError where it is none, reads other ids than the policy, or does not take rows of
  `length` tokens.
  """
  judge = origin.open_reward_model(source, settings, policy)
  if policy is not None:
    same_ids(policy, judge)
    origin.fits(judge.lm, length, "prompt + response")
  params = {"lm": judge.params, "head": judge.head}
  params = params if dtype is None else freeze.cast(params, dtype)
  score = jax.jit(partial(reward.score, judge.lm))
  own = chat.OWN if judge.about.get("template") else ""
  template = origin.chat_template(own, judge.about, judge.tokenizer)

  def texts(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    rows = [_row(judge.tokenizer, template, p, r) for p, r in zip(prompts, responses, strict=True)]
    longest = max(len(row.ids) for row in rows)
    origin.fits(judge.lm, longest, "a prompt with its response")
    pad = partial(pipeline.pad_demonstrations, length=min(-(-longest // 64) * 64, judge.lm.context))
    mesh = jax.sharding.get_abstract_mesh().shape
    size = SIZE * (mesh["data"] * mesh["fsdp"] if sharding.is_sharded() else 1)
    parts = []
    for batch, real in pipeline.once(rows, pad, size=size):
      placed = sharding.place_batch(batch)
      parts.append(sharding.fetch(score(params, placed.tokens, placed.valid))[:real])
    return np.concatenate(parts)

  return texts, lambda rows: score(params, rows.tokens, rows.valid)


def _row(
  tokenizer: Tokenizer, template: chat.Template | None, prompt: str, response: str
) -> pipeline.Row:
  """The ids of both texts, closed with an end-of-text token; of a chat where the model was trained
  on one.
  """
  if template is not None:
    try:
      ids, _, start = chat.reply(template, tokenizer, prompt, None, response)
    except chat.ChatError as problem:
      raise UserError(f"a text to score: {problem}; its prompt begins {prompt[:40]!r}") from None
    return pipeline.Row(np.asarray(ids, np.int32), start)
  head = [*tokenizer.bos, *tokenizer.encode(prompt)]
  return pipeline.Row(
    np.asarray([*head, *tokenizer.encode(response), tokenizer.eos[0]], np.int32), len(head)
  )

"""A reward by a reward model of ours, which scores the very ids that were sampled, or texts."""

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

BATCH = 16  # rows of texts at a time, for each part of the mesh
MULTIPLE = 64  # rows of texts are padded to a multiple of it, so that few lengths compile

ScoreTexts = Callable[[Sequence[str], Sequence[str]], np.ndarray]
ScoreRollout = Callable[[Rollout], Float[Array, " B"]]


def same_ids(policy: Origin, reward_model: Origin) -> None:
  """Raises UserError where a policy and a reward model read different ids.

  The reward model scores the very ids that the policy samples, so tokenizer, vocabulary and chat
  template must be the same.
  """
  ours, theirs = policy.tokenizer, reward_model.tokenizer
  same_tokenizer = ours.fingerprint == theirs.fingerprint
  if not same_tokenizer or policy.lm.vocab_size != reward_model.lm.vocab_size:
    raise UserError(
      f"the policy's tokenizer ({ours.vocab_size} ids, {ours.fingerprint[:8]}) is not the reward "
      f"model's ({theirs.vocab_size} ids, {theirs.fingerprint[:8]}); train both from one base"
    )
  # Of a folder of a sequence classifier nobody knows the template that it was trained with.
  if "template" not in reward_model.about:
    return
  policy_template = _template_name(policy)
  reward_template = _template_name(reward_model)
  if policy_template != reward_template:
    raise UserError(
      f"config.data.template gives {policy_template}, the reward model was trained on "
      f"{reward_template}: it would score other ids than it learnt; set config.data.template as "
      "the reward model's was"
    )


def _template_name(model: Origin) -> str:
  """Returns the beginning of the fingerprint of a model's chat template."""
  return origin.template_of(model.about)[:8] or "plain text"


def open_run(
  source: str,
  settings: Config,
  policy: Origin | None,
  length: int,
  dtype: str | None,
) -> tuple[ScoreTexts, ScoreRollout]:
  """Opens the reward model of a finished run.

  Args:
    source: The directory of the run.
    settings: config.model, which says how the model computes.
    policy: The model whose rollouts are scored; None where only texts are.
    length: The tokens of a row of its rollouts.
    dtype: What the matrices are kept in; None leaves them.

  Returns:
    A function that scores (prompts, responses), and one that scores rollouts.

  Raises:
    UserError: the source is not a reward model, reads other ids than the policy, or does not take
      rows of `length` tokens.
  """
  model = origin.open_reward_model(source, settings, policy)
  if policy is not None:
    same_ids(policy, model)
    origin.fits(model.lm, length, "prompt + response")
  params = {"lm": model.params, "head": model.head}
  if dtype is not None:
    params = freeze.cast(params, dtype)
  score = jax.jit(partial(reward.score, model.lm))
  # A model that was trained on chats scores texts as chats.
  template_name = chat.OWN if model.about.get("template") else ""
  template = origin.chat_template(template_name, model.about, model.tokenizer)

  # What closes a text that was scored in training: the template's stop, or the tokenizer's first.
  end = model.tokenizer.eos[0] if template is None else template.end

  def score_texts(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
      rows.append(_row(model.tokenizer, template, prompt, response))
    longest = max(len(row.ids) for row in rows)
    origin.fits(model.lm, longest, "a prompt with its response")
    rounded = -(-longest // MULTIPLE) * MULTIPLE  # up
    pad = partial(pipeline.pad_demonstrations, length=min(rounded, model.lm.context))
    scores = []
    for batch, count in pipeline.once(rows, pad, size=_batch_size()):
      rows_on_mesh = sharding.place_batch(batch)
      batch_scores = score(params, rows_on_mesh.tokens, rows_on_mesh.valid)
      # The last batch is filled up with rows that do not count.
      scores.append(sharding.fetch(batch_scores)[:count])
    return np.concatenate(scores)

  def score_rollout(rows: Rollout) -> Float[Array, " B"]:
    return score(params, reward.closed(rows, (end,)), rows.valid)

  return score_texts, score_rollout


def _batch_size() -> int:
  """Returns the rows of a batch on the current mesh."""
  return BATCH * sharding.batch_shards()


def _row(
  tokenizer: Tokenizer,
  template: chat.Template | None,
  prompt: str,
  response: str,
) -> pipeline.Row:
  """Returns the ids of a prompt and its response.

  Plain text is closed with an end-of-text token, where the reward model reads its score. A chat
  is closed as its template says. The ids of a response that was cut are closed too
  (`reward.closed`), so that a response has one score, as text and as ids.
  """
  if template is not None:
    try:
      ids, _, start = chat.reply(template, tokenizer, prompt, None, response)
    except chat.ChatError as problem:
      raise UserError(f"a text to score: {problem}; its prompt begins {prompt[:40]!r}") from None
    return pipeline.Row(np.asarray(ids, np.int32), start)
  prompt_ids = [*tokenizer.bos, *tokenizer.encode(prompt)]
  # They are encoded apart, because a sampled response always begins with a token of its own.
  ids = [*prompt_ids, *tokenizer.encode_next(response), tokenizer.eos[0]]
  return pipeline.Row(np.asarray(ids, np.int32), len(prompt_ids))

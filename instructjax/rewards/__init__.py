"""Rewards: what a response is worth, according to our runs, functions, classifiers and servers.

A reward is a function of texts, `(prompts, responses) -> B finite numbers`. It must give the same
numbers for the same texts, so that a resumed run equals the run that was never stopped. A
response is the text as it was sampled, with the space before it: prompt + response is the whole
text. Several rewards are combined by weights; spec.py holds the grammar.

  sources = rewards.open_all("python:my.py:polite + 0.5*runs/reward", settings)
  scores = rewards.score_texts(sources, prompts, responses)     # by name, each [B]
  rewards.total(sources, scores)                                # [B]

B is the number of responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from instructjax import sharding
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.rewards import classifier, endpoint, functions, judge, perspective, runs, spec
from instructjax.rewards.runs import same_ids
from instructjax.runs.origin import Config, Origin
from instructjax.types import Array, Float, Rollout

# Scores by the name of the reward, each float32 [B], without the weights.
Scores = dict[str, np.ndarray]


class Reward(NamedTuple):
  """One source of scores, opened."""

  name: str
  weight: float
  # Scores (prompts, responses).
  texts: Callable[[Sequence[str], Sequence[str]], Any]
  # The entry in the manifest of a run.
  about: dict[str, Any]
  # Scores the token ids of a rollout directly; None where the source does not read our ids.
  ids: Callable[[Rollout], Float[Array, " B"]] | None = None


def open_all(
  text: str,
  settings: Config,
  policy: Origin | None = None,
  length: int = 0,
  dtype: str | None = None,
) -> tuple[Reward, ...]:
  """Opens the rewards of a configuration.

  Args:
    text: The sum of rewards as spec.py defines it; "" has none.
    settings: config.model, which says how reward models of ours compute.
    policy: The model that is trained; a reward model of ours must read the same ids.
    length: The tokens of the rows that a reward model of ours will get.
    dtype: What the matrices of a reward model of ours are kept in; None leaves them.

  Raises:
    UserError: something is wrong that can be seen before anything runs.
  """
  terms = spec.parse(text) if text.strip() else ()
  names = spec.names(terms)
  sources = []
  for name, term in zip(names, terms, strict=True):
    sources.append(_open(name, term, settings, policy, length, dtype))
  return tuple(sources)


def _open(
  name: str,
  term: spec.Term,
  settings: Config,
  policy: Origin | None,
  length: int,
  dtype: str | None,
) -> Reward:
  """Opens one reward; the parameters are those of `open_all`."""
  about: dict[str, Any] = {}
  # Only reward models of ours read ids; all others read texts alone.
  ids = None
  match term.kind:
    case "python":
      texts, about = functions.open_function(term.target, term.options["limit"])
    case "classifier":
      texts, about = classifier.open_classifier(term.target, term.choice, term.options)
    case "http":
      texts = endpoint.open_endpoint(term.target, term.options)
    case "openai":
      texts, about = judge.open_judge(term.target, term.choice, term.options)
    case "perspective":
      texts = perspective.open_perspective(term.target, term.options)
    case _:
      texts, ids = runs.open_run(term.target, settings, policy, length, dtype)
  # `source` is safe to write down: spec.py refuses addresses with a password.
  about = {"source": term.source, "weight": term.weight} | about
  return Reward(name, term.weight, texts, about, ids)


def manifest(sources: Sequence[Reward]) -> dict[str, dict[str, Any]]:
  """Returns what the manifest of a run says about its rewards; there is no secret in it."""
  return {source.name: source.about for source in sources}


def score_texts(
  sources: Sequence[Reward],
  prompts: Sequence[str],
  responses: Sequence[str],
) -> Scores:
  """Returns the scores of every reward for B responses.

  With several processes all of them must call it: reward models of ours score on all devices,
  every other reward in the first process alone, which sends its scores to the others.

  Raises:
    UserError: a reward failed, or did not return B finite numbers.
  """
  outside_scores = _score_outside(sources, prompts, responses)
  scores = {}
  for source in sources:
    if source.ids is None:
      scores[source.name] = outside_scores[source.name]
    else:
      scores[source.name] = _checked_texts(source, prompts, responses)
  return scores


def score_rollout(
  sources: Sequence[Reward],
  rows: Rollout,
  host: Rollout,
  prompts: Sequence[str],
  tokenizer: Tokenizer,
) -> Scores:
  """Returns the scores of every reward for the first B rows of a rollout.

  Reward models of ours score the ids, on all devices. Every other reward scores texts in the
  first process, which sends its scores to the others.

  Args:
    sources: The rewards.
    rows: The rollout on the devices. It may have more than B rows, to fill a mesh.
    host: The same rollout on the host, by `sharding.fetch`.
    prompts: The texts of the B prompts.
    tokenizer: The tokenizer of the rollout's ids.

  Raises:
    UserError: a reward failed, or did not return B finite numbers.
  """
  count = len(prompts)
  # Decoding takes time, and reward models of ours do not need it.
  texts: list[str] = []
  if any(source.ids is None for source in sources):
    texts = responses(tokenizer, host)[:count]
  outside_scores = _score_outside(sources, prompts, texts)
  scores = {}
  for source in sources:
    if source.ids is None:
      scores[source.name] = outside_scores[source.name]
    else:
      values = sharding.fetch(source.ids(rows))[:count]
      if not np.isfinite(values).all():
        # The texts are decoded for the message alone.
        check_scores(source.name, values, prompts, responses(tokenizer, host)[:count])
      scores[source.name] = values
  return scores


def _score_outside(
  sources: Sequence[Reward],
  prompts: Sequence[str],
  texts: Sequence[str],
) -> Scores:
  """Returns the scores of the rewards that read texts, in every process, from the first one."""
  outside = [source for source in sources if source.ids is None]
  if not outside:
    return {}

  def score() -> np.ndarray:
    rows = [_checked_texts(source, prompts, texts) for source in outside]
    return np.stack(rows)

  rows = in_first(score, (len(outside), len(prompts)))
  return {source.name: row for source, row in zip(outside, rows, strict=True)}


def in_first(score: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
  """Returns, in every process, the scores that the first process computes.

  Args:
    score: Computes float32 numbers of this shape, none of which is NaN.
    shape: The shape, which the other processes must know.

  Raises:
    UserError: `score` raised one in the first process. All processes stop then, or the others
      would wait for ever in the next collective operation.
  """
  if jax.process_count() == 1:
    return score()
  from jax.experimental import multihost_utils

  failure = None
  # An array of NaN tells the other processes that the first one failed.
  values = np.full(shape, np.nan, np.float32)
  if jax.process_index() == 0:
    try:
      values = score()
    except UserError as error:
      failure = error
  values = np.asarray(multihost_utils.broadcast_one_to_all(values))
  if failure is not None:
    raise failure
  if np.isnan(values).any():
    raise UserError("a reward or a judge failed in the first process, which says why")
  return values


def total(sources: Sequence[Reward], scores: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the weighted sum of the scores, float32 [B].

  Raises:
    UserError: a sum is not finite, which large weights can make of finite scores.
  """
  # The sum is taken in float64 and rounded once. What float32 cannot hold becomes infinite.
  with np.errstate(over="ignore"):
    parts = [np.float64(source.weight) * scores[source.name] for source in sources]
    sums = np.sum(parts, axis=0).astype(np.float32)
  invalid = np.flatnonzero(~np.isfinite(sums))
  if len(invalid):
    first = int(invalid[0])
    terms = [f"{source.weight:g}*{scores[source.name][first]:g}" for source in sources]
    raise UserError(
      f"the sum of the rewards of response {first} is {sums[first]}: {' + '.join(terms)}; "
      "lower the weights"
    )
  return sums


def responses(tokenizer: Tokenizer, rows: Rollout) -> list[str]:
  """Returns the text of each response of a rollout on the host."""
  width = rows.mask.shape[1]  # the responses are the last columns
  texts = []
  for ids, mask in zip(rows.tokens, rows.mask, strict=True):
    response = ids[-width:][mask]
    texts.append(tokenizer.decode_next(response.tolist()))
  return texts


def _checked_texts(
  source: Reward,
  prompts: Sequence[str],
  texts: Sequence[str],
) -> np.ndarray:
  """Returns the checked scores of one reward for texts."""
  values = source.texts(prompts, texts)
  return check_scores(source.name, values, prompts, texts)


def check_scores(
  name: str,
  values: Any,
  prompts: Sequence[str],
  texts: Sequence[str],
) -> np.ndarray:
  """Returns the scores that a reward gave to B responses as float32 [B].

  Raises:
    UserError: they are not numbers, not one for each response, or not finite.
  """
  try:
    scores = np.asarray(values, np.float64)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"reward {name}: returned {endpoint.brief(repr(values))}, numbers are expected ({error})"
    ) from None
  if scores.shape != (len(texts),):
    raise UserError(
      f"reward {name}: returned {endpoint.brief(repr(values))} of shape {scores.shape} for "
      f"{len(texts)} responses; return one number for each"
    )
  # A number that float32 cannot hold becomes infinite, which the next check reports.
  with np.errstate(over="ignore"):
    scores = scores.astype(np.float32)
  invalid = np.flatnonzero(~np.isfinite(scores))
  if len(invalid):
    first = int(invalid[0])
    raise UserError(
      f"reward {name}: the score of response {first} is {scores[first]}; its prompt begins "
      f"{prompts[first][:40]!r}, the response {texts[first][:40]!r}; return finite numbers"
    )
  return scores


__all__ = [
  "Reward",
  "Scores",
  "check_scores",
  "in_first",
  "manifest",
  "open_all",
  "responses",
  "same_ids",
  "score_rollout",
  "score_texts",
  "total",
]

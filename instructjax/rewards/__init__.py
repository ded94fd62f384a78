"""Rewards from anywhere: what a response is worth, by one of our runs, a Python function, a
classifier or a server.

A reward is a function of texts, `(prompts, responses) -> B finite numbers`, and must give the
same numbers for the same texts: a resumed run is then the run that was not stopped.  A response
stands as it was sampled, with the space that separates it, so that prompt + response is the
whole text.  Several are combined by weights; `spec` has the grammar.

  found = rewards.open_all("python:my.py:polite + 0.5*runs/reward", settings)
  scores = rewards.score_texts(found, prompts, responses)       # by name, each [B]
  rewards.total(found, scores)                                  # [B]
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

Scores = dict[str, np.ndarray]  # by the name of the reward, each float32 [B], not weighted


class Reward(NamedTuple):
  """One source.  `about` is what the manifest says of it; `ids` scores a rollout as it is, where
  the source reads our ids.
  """

  name: str
  weight: float
  texts: Callable[[Sequence[str], Sequence[str]], Any]
  about: dict[str, Any]
  ids: Callable[[Rollout], Float[Array, " B"]] | None = None


def open_all(
  text: str,
  settings: Config,
  policy: Origin | None = None,
  length: int = 0,
  dtype: str | None = None,
) -> tuple[Reward, ...]:
  """The rewards of a configuration; none for "".

  `settings` (config.model), `length` and `dtype` are for runs of ours: how they compute, the
  tokens of a row they will be given, and what their matrices are kept in.  Raises UserError for
  whatever is wrong before anything runs.
  """
  terms = spec.parse(text) if text.strip() else ()
  return tuple(
    _open(name, term, settings, policy, length, dtype)
    for name, term in zip(spec.names(terms), terms, strict=True)
  )


def _open(
  name: str,
  term: spec.Term,
  settings: Config,
  policy: Origin | None,
  length: int,
  dtype: str | None,
) -> Reward:
  about: dict[str, Any] = {}
  ids = None
  match term.kind:
    case "python":
      texts, about = functions.open_function(term.target)
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
  return Reward(
    name, term.weight, texts, {"source": term.source, "weight": term.weight} | about, ids
  )


def manifest(found: Sequence[Reward]) -> dict[str, dict[str, Any]]:
  """What the manifest of a run says of its rewards; no secret is in it."""
  return {one.name: one.about for one in found}


def score_texts(
  found: Sequence[Reward], prompts: Sequence[str], responses: Sequence[str]
) -> Scores:
  """The scores of every reward.  Raises UserError where one fails, or gives another number of
  scores or NaN.

  With several processes all of them call it: runs of ours score on all devices, everything else
  in the first process, which tells the others.
  """
  score = lambda one: checked(one.name, one.texts(prompts, responses), prompts, responses)
  outside = [one for one in found if one.ids is None]
  told = dict(zip([one.name for one in outside], _told(outside, prompts, responses), strict=True))
  return {one.name: score(one) if one.ids else told[one.name] for one in found}


def score_rollout(
  found: Sequence[Reward],
  rows: Rollout,
  host: Rollout,
  prompts: Sequence[str],
  tokenizer: Tokenizer,
) -> Scores:
  """The scores of the first len(prompts) rows of a rollout; `host` is the same rollout on the host
  (`sharding.fetch`).

  Runs of ours score the ids, on all devices; everything else scores texts, in the first process,
  which tells the others.
  """
  count = len(prompts)
  outside = [one for one in found if one.ids is None]
  texts = responses(tokenizer, host)[:count] if outside else []
  told = dict(zip([one.name for one in outside], _told(outside, prompts, texts), strict=True))
  ids = {one.name: sharding.fetch(one.ids(rows))[:count] for one in found if one.ids is not None}
  return {one.name: (told | ids)[one.name] for one in found}


def _told(outside: Sequence[Reward], prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
  """Scores [len(outside), B] of the first process, in every process.  Where it fails, all stop."""
  if not outside:
    return np.zeros((0, len(prompts)), np.float32)
  score = lambda: np.stack(
    [checked(one.name, one.texts(prompts, texts), prompts, texts) for one in outside]
  )
  return in_first(score, (len(outside), len(prompts)))


def in_first(score: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
  """What the first process finds, float32 and never NaN, in every process.  Where it raises a
  UserError, all do.
  """
  if jax.process_count() == 1:
    return score()
  from jax.experimental import multihost_utils

  failure, values = None, np.full(shape, np.nan, np.float32)
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


def total(found: Sequence[Reward], scores: Mapping[str, np.ndarray]) -> np.ndarray:
  """The weighted sum, float32 [B]."""
  return np.sum([np.float64(one.weight) * scores[one.name] for one in found], axis=0).astype(
    np.float32
  )


def responses(tokenizer: Tokenizer, rows: Rollout) -> list[str]:
  """The text of each response of a rollout on the host."""
  width = rows.mask.shape[1]
  return [
    tokenizer.decode(ids[-width:][mask].tolist())
    for ids, mask in zip(rows.tokens, rows.mask, strict=True)
  ]


def checked(name: str, values: Any, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
  """The scores as float32 [B].  Raises UserError where they are no numbers, not one for each
  response, or not finite.
  """
  try:
    found = np.asarray(values, np.float64)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"reward {name}: returned {endpoint.brief(repr(values))}, numbers are expected ({error})"
    ) from None
  if found.shape != (len(texts),):
    raise UserError(
      f"reward {name}: returned {endpoint.brief(repr(values))} of shape {found.shape} for "
      f"{len(texts)} responses; return "
      "one number for each"
    )
  with np.errstate(over="ignore"):
    found = found.astype(np.float32)
  for at in np.flatnonzero(~np.isfinite(found)).tolist():
    raise UserError(
      f"reward {name}: the score of response {at} is {found[at]}; its prompt begins "
      f"{prompts[at][:40]!r}, the response "
      f"{texts[at][:40]!r}; return finite numbers"
    )
  return found


__all__ = [
  "Reward",
  "Scores",
  "checked",
  "in_first",
  "manifest",
  "open_all",
  "responses",
  "same_ids",
  "score_rollout",
  "score_texts",
  "total",
]

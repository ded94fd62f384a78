"""Rewards: what a response is worth, according to our runs, functions, classifiers and servers.

A reward is a function of texts, `(prompts, responses) -> B finite numbers`. It must give the same
numbers for the same texts, so that a resumed run equals the run that was never stopped. A
response is the text as it was sampled, with the space before it: prompt + response is the whole
text. Several rewards are combined by weights, by their minimum or by their mean less a deviation;
spec.py holds the grammar.

A user's own function or server gets the further fields of the prompts too, such as the right
answer, and may abstain from a response: its score is then NaN. An abstaining reward is left out of
the sum, and a response on which all abstain has no score.

  sources = rewards.open_all("python:my.py:polite + 0.5*runs/reward", settings)
  scores = rewards.score_texts(sources, prompts, responses)     # by name, each [B]
  rewards.total(sources, scores)                                # [B]

B is the number of responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import sharding
from instructjax.data.records.records import Prompt
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.rewards import classifier, endpoint, functions, judge, perspective, runs, spec
from instructjax.rewards.functions import Fields
from instructjax.rewards.runs import same_ids
from instructjax.runs.origin import Config, Origin
from instructjax.system import jsons
from instructjax.types import Array, Float, Rollout

# Scores by the name of the reward, each float32 [B], without the weights; NaN where it abstains.
Scores = dict[str, np.ndarray]
# Scores by the N members of an ensemble, and one of each response.
Members = Float[Array, "N B"] | Float[np.ndarray, "N B"]
Responses = Float[Array, " B"] | Float[np.ndarray, " B"]


class Reward(NamedTuple):
  """One source of scores, opened."""

  name: str
  weight: float
  # Scores (prompts, responses); one of the user's own takes the fields of the prompts too.
  texts: Callable[..., Any]
  # The entry in the manifest of a run.
  about: dict[str, Any]
  # Scores the token ids of a rollout directly; None where the source does not read our ids.
  ids: Callable[[Rollout], Float[Array, " B"]] | None = None
  # Whether it is a function or a server of the user, which gets fields and may abstain.
  own: bool = False
  # The rewards that make one term of the sum with it; None is no other.
  group: spec.Group | None = None


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
  if term.group is not None:
    about["combined"] = str(term.group)
  own = term.kind in ("python", "http")
  return Reward(name, term.weight, texts, about, ids, own, term.group)


def manifest(sources: Sequence[Reward]) -> dict[str, dict[str, Any]]:
  """Returns what the manifest of a run says about its rewards; there is no secret in it."""
  return {source.name: source.about for source in sources}


def fields_of(prompts: Sequence[Prompt]) -> list[Fields]:
  """Returns the further fields of each prompt, {} where it has none."""
  return [prompt.fields or {} for prompt in prompts]


def fields_by_text(prompts: Sequence[Prompt]) -> dict[str, Fields]:
  """Returns the further fields of each prompt by its text.

  Raises:
    UserError: one prompt comes twice with other fields: a reward would not know which are meant.
  """
  by_text: dict[str, Fields] = {}
  for prompt, fields in zip(prompts, fields_of(prompts), strict=True):
    first = by_text.setdefault(prompt.prompt, fields)
    if first != fields:
      raise UserError(
        f"the prompt that begins {prompt.prompt[:40]!r} comes twice, with the fields "
        f"{_shown(first)} and {_shown(fields)}: a reward would not know which; give it once"
      )
  return by_text


def _shown(fields: Fields) -> str:
  """Returns fields for a message."""
  return endpoint.brief(jsons.text_with_nulls(dict(fields)), 60)


def may_abstain(sources: Sequence[Reward]) -> bool:
  """Returns whether a response may come to have no score."""
  return all(source.own for source in sources)


def score_texts(
  sources: Sequence[Reward],
  prompts: Sequence[str],
  responses: Sequence[str],
  fields: Sequence[Fields] | None = None,
) -> Scores:
  """Returns the scores of every reward for B responses; none may abstain.

  `fields` are the further fields of the prompt of each response; None is none.

  With several processes all of them must call it: reward models of ours score on all devices,
  every other reward in the first process alone, which sends its scores to the others.

  Raises:
    UserError: a reward failed, abstained, or did not return B finite numbers.
  """
  outside_scores = _score_outside(sources, prompts, responses, fields, abstain=False)
  scores = {}
  for source in sources:
    if source.ids is None:
      scores[source.name] = outside_scores[source.name]
    else:
      scores[source.name] = _checked_texts(source, prompts, responses, None, abstain=False)
  return scores


def score_rollout(
  sources: Sequence[Reward],
  rows: Rollout,
  host: Rollout,
  prompts: Sequence[str],
  tokenizer: Tokenizer,
  fields: Sequence[Fields] | None = None,
) -> Scores:
  """Returns the scores of every reward for the first B rows of a rollout, NaN where it abstains.

  Reward models of ours score the ids, on all devices. Every other reward scores texts in the
  first process, which sends its scores to the others.

  Args:
    sources: The rewards.
    rows: The rollout on the devices. It may have more than B rows, to fill a mesh.
    host: The same rollout on the host, by `sharding.fetch`.
    prompts: The texts of the B prompts.
    tokenizer: The tokenizer of the rollout's ids.
    fields: The further fields of the B prompts; None is none.

  Raises:
    UserError: a reward failed, or did not return B finite numbers.
  """
  count = len(prompts)
  # Decoding takes time, and reward models of ours do not need it.
  texts: list[str] = []
  if any(source.ids is None for source in sources):
    texts = responses(tokenizer, host)[:count]
  outside_scores = _score_outside(sources, prompts, texts, fields, abstain=True)
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
  fields: Sequence[Fields] | None,
  *,
  abstain: bool,
) -> Scores:
  """Returns the scores of the rewards that read texts, in every process, from the first one."""
  outside = [source for source in sources if source.ids is None]
  if not outside:
    return {}

  def score() -> np.ndarray:
    rows = [_checked_texts(source, prompts, texts, fields, abstain=abstain) for source in outside]
    return np.stack(rows)

  rows = in_first(score, (len(outside), len(prompts)))
  return {source.name: row for source, row in zip(outside, rows, strict=True)}


def in_first(score: Callable[[], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
  """Returns, in every process, the scores that the first process computes.

  Args:
    score: Computes float32 numbers of this shape.
    shape: The shape, which the other processes must know.

  Raises:
    UserError: `score` raised one in the first process. All processes stop then, or the others
      would wait for ever in the next collective operation.
  """
  if jax.process_count() == 1:
    return score()
  from jax.experimental import multihost_utils

  failure = None
  values = np.zeros(shape, np.float32)
  if jax.process_index() == 0:
    try:
      values = score()
    except UserError as error:
      failure = error
  # The other processes must learn that the first one failed.
  outcome = (values, np.asarray(failure is not None))
  values, has_failed = multihost_utils.broadcast_one_to_all(outcome)
  if failure is not None:
    raise failure
  if has_failed:
    raise UserError("a reward or a judge failed in the first process, which says why")
  return np.asarray(values)


def minimum(scores: Members) -> Responses:
  """Returns the least of N scores of each response: the worst case of an ensemble.

  Coste et al. 2023 optimise it against over-optimisation. A score that is NaN is left out, and the
  minimum of none is NaN. Scores of NumPy give an array of NumPy; those of JAX give one of JAX, in a
  compiled function too.

  Example:
    >>> print(rewards.minimum(jnp.array([[1.0, 4.0], [3.0, 2.0]])))
    [1. 2.]
  """
  xp = _arrays(scores)
  missing = xp.isnan(scores)
  least = xp.where(missing, xp.inf, scores).min(axis=0)
  return xp.where(missing.all(axis=0), xp.nan, least)


def mean_less_deviation(
  scores: Members,
  deviations: float = 1.0,
) -> Responses:
  """Returns mean - deviations * standard deviation over N scores of each response.

  A response on which the members of an ensemble disagree is worth less (Coste et al. 2023, who
  subtract the variance; the deviation has the units of the scores). A score that is NaN is left
  out, and of none the result is NaN. The deviation divides by N. Scores of NumPy give an array of
  NumPy in float64; those of JAX give one of JAX, in a compiled function too.

  Example:
    >>> print(rewards.mean_less_deviation(jnp.array([[1.0, 4.0], [3.0, 4.0]]), deviations=0.5))
    [1.5 4. ]
  """
  xp = _arrays(scores)
  values = scores if isinstance(scores, jax.Array) else np.asarray(scores, np.float64)
  count = (~xp.isnan(values)).sum(axis=0)
  divisor = xp.maximum(count, 1)
  mean = xp.nansum(values, axis=0) / divisor
  variance = xp.nansum(xp.square(values - mean), axis=0) / divisor
  return xp.where(count > 0, mean - deviations * xp.sqrt(variance), xp.nan)


def _arrays(x: Any) -> Any:
  """Returns the library that an array belongs to."""
  return jnp if isinstance(x, jax.Array) else np


def _terms(sources: Sequence[Reward], scores: Mapping[str, np.ndarray]) -> list[np.ndarray]:
  """Returns the terms of the sum, float64 [B] each: weighted scores, and groups as one."""
  terms: list[np.ndarray] = []
  groups: dict[spec.Group, list[np.ndarray]] = {}
  for source in sources:
    weighted = np.float64(source.weight) * scores[source.name]
    if source.group is None:
      terms.append(weighted)
    else:
      groups.setdefault(source.group, []).append(weighted)
  for group, members in groups.items():
    if group.deviations is None:
      terms.append(np.asarray(minimum(np.stack(members))))
    else:
      worth = mean_less_deviation(np.stack(members), group.deviations)
      terms.append(np.asarray(worth))
  return terms


def total(sources: Sequence[Reward], scores: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns the sum of the weighted scores, float32 [B], without those that are NaN.

  The scores of a group are one term: their minimum, or their mean less a deviation. A response on
  which every reward abstains has no score: its sum is NaN.

  Raises:
    UserError: a sum is not finite, which large weights can make of finite scores.
  """
  # The sum is taken in float64 and rounded once. What float32 cannot hold becomes infinite.
  with np.errstate(over="ignore"):
    parts = _terms(sources, scores)
    sums = np.nansum(parts, axis=0).astype(np.float32)
  invalid = np.flatnonzero(~np.isfinite(sums))
  if len(invalid):
    first = int(invalid[0])
    terms = [f"{source.weight:g}*{scores[source.name][first]:g}" for source in sources]
    raise UserError(
      f"the sum of the rewards of response {first} is {sums[first]}: {' + '.join(terms)}; "
      "lower the weights"
    )
  return np.where(np.isnan(parts).all(axis=0), np.float32(np.nan), sums)


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
  fields: Sequence[Fields] | None,
  *,
  abstain: bool,
) -> np.ndarray:
  """Returns the checked scores of one reward for texts."""
  if source.own:
    # Whoever has no prompts of records has none that say anything more.
    values = source.texts(prompts, texts, fields=fields or [{}] * len(prompts))
  else:
    values = source.texts(prompts, texts)
  return check_scores(source.name, values, prompts, texts, abstain=source.own and abstain)


def check_scores(
  name: str,
  values: Any,
  prompts: Sequence[str],
  texts: Sequence[str],
  *,
  abstain: bool = False,
) -> np.ndarray:
  """Returns the scores that a reward gave to B responses as float32 [B].

  With `abstain` some may be None or NaN, which become NaN.

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
  is_valid = np.isfinite(scores) | np.isnan(scores) if abstain else np.isfinite(scores)
  invalid = np.flatnonzero(~is_valid)
  if len(invalid):
    first = int(invalid[0])
    remedy = "return finite numbers"
    if np.isnan(scores[first]):
      remedy += "; here every response needs a score, so a reward may not abstain"
    raise UserError(
      f"reward {name}: the score of response {first} is {scores[first]}; its prompt begins "
      f"{prompts[first][:40]!r}, the response {texts[first][:40]!r}; {remedy}"
    )
  return scores


__all__ = [
  "Fields",
  "Reward",
  "Scores",
  "check_scores",
  "fields_by_text",
  "fields_of",
  "in_first",
  "manifest",
  "may_abstain",
  "mean_less_deviation",
  "minimum",
  "open_all",
  "responses",
  "same_ids",
  "score_rollout",
  "score_texts",
  "total",
]

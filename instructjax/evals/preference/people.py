"""Rankings and ratings of the evaluated answers by people, each by one labeler.

A completion of a record is the answer of every model that gave this text to this prompt. Where no
model did, it is the answer of the model that `sources` of the record names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

from instructjax.data.records import preferences, sources
from instructjax.data.records.records import Comparison
from instructjax.errors import UserError
from instructjax.evals.preference.answers import Answers, length_difference, log_length_ratio
from instructjax.evals.preference.votes import Vote

NOBODY = "unnamed"  # the labeler of records that name none
# The models whose answer a completion is.
Owners = tuple[str, ...]


class Labels(NamedTuple):
  """The comparisons of a file that `instructjax label export` wrote."""

  name: str
  file: str
  records: Sequence[Comparison]


class RatedAnswer(NamedTuple):
  """The metadata of Table 3 for a model's answer to a prompt."""

  prompt: str
  model: str
  labeler: str
  rating: Mapping[str, Any]


def open_labels(name: str, file: str) -> Labels:
  """Reads the comparisons of a file.

  Raises:
    UserError: the file is missing or has bad records, which are all listed.
  """
  return Labels(name, file, sources.load(file, "comparison"))


def votes(labels: Labels, answers: Answers) -> list[Vote]:
  """Returns a vote for every two models whose answers a labeler ranked.

  Models that gave the same answer tie.

  Raises:
    UserError: completions are the answers of no model, or nobody ranked two of these models.
  """
  all_votes = []
  owners_by_record = _find_owners(labels, answers)
  for record, owners in zip(labels.records, owners_by_record, strict=True):
    slices = answers.slices.get(record.prompt, {})
    all_votes += _votes_of_record(record, owners, slices)
  if not all_votes:
    raise UserError(
      f"{labels.file}: ranks no two of the models {', '.join(answers.models)}; label tasks.jsonl "
      "of this suite"
    )
  return all_votes


def _votes_of_record(
  record: Comparison,
  owners: Sequence[Owners],
  slices: Mapping[str, str],
) -> list[Vote]:
  """Returns the votes of one labeler on one prompt."""
  labeler = record.labeler or NOBODY

  def vote(a: str, b: str, outcome: float, ratio: float = 0.0, longer_by: int = 0) -> Vote:
    return Vote(record.prompt, a, b, (outcome,), ratio, labeler, slices, longer_by)

  record_votes = []
  # Models behind the same completion tie.
  for models in owners:
    for a, b in combinations(models, 2):
      record_votes.append(vote(a, b, 0.5))
  # Models behind different completions stand as the labeler ordered these.
  sign, compared = preferences.signs(record), preferences.compared(record)
  for i, j in combinations(range(len(record.completions)), 2):
    if not compared[i, j]:
      continue
    first_models, first_text = owners[i], record.completions[i]
    second_models, second_text = owners[j], record.completions[j]
    outcome = (1 + float(sign[i, j])) / 2
    ratio = log_length_ratio(first_text, second_text)
    longer_by = length_difference(first_text, second_text)
    # The same model owns both where the two texts differ in their outer spaces alone.
    pairs = [(a, b) for a, b in product(first_models, second_models) if a != b]
    record_votes += [vote(a, b, outcome, ratio, longer_by) for a, b in pairs]
  return record_votes


def ratings(labels: Labels, answers: Answers) -> list[RatedAnswer]:
  """Returns the ratings of every model's answers.

  Raises:
    UserError: completions are the answers of no model, or none of these models has a rating.
  """
  rated = []
  owners_by_record = _find_owners(labels, answers)
  for record, owners in zip(labels.records, owners_by_record, strict=True):
    labeler = record.labeler or NOBODY
    # A record without ratings has none here; one with ratings has one for each completion.
    for models, rating in zip(owners, record.ratings or (), strict=False):
      if rating:
        rated += [RatedAnswer(record.prompt, model, labeler, rating) for model in models]
  if not rated:
    raise UserError(
      f"{labels.file}: holds no ratings of the models {', '.join(answers.models)}; name another "
      "file"
    )
  return rated


def _find_owners(labels: Labels, answers: Answers) -> list[list[Owners]]:
  """Returns the models of each completion of each record.

  A completion whose source is a model that is not evaluated has none.
  """
  owners_by_record = []
  orphans = []  # (prompt, completion) of no model, where no source says whose it is
  for record in labels.records:
    named_models = [source.get("model") for source in record.sources or ()]
    owners = []
    for place, text in enumerate(record.completions):
      models = answers.owners(record.prompt, text)
      if not models and named_models:
        model = named_models[place]
        models = (model,) if model in answers.models else ()
      elif not models:
        orphans.append((record.prompt, text))
      owners.append(models)
    owners_by_record.append(owners)
  if orphans:
    raise UserError(_orphans_message(labels, answers, orphans))
  return owners_by_record


def _orphans_message(
  labels: Labels,
  answers: Answers,
  orphans: Sequence[tuple[str, str]],
) -> str:
  count = sum(len(record.completions) for record in labels.records)
  # Many prompts of other data mean the wrong file; none means answers of another run.
  unknown_prompts = {prompt for prompt, _ in orphans if prompt not in answers.slices}
  prompt, text = orphans[0]
  return (
    f"{labels.file}: {len(orphans)} of {count} completions are the answers of no model here "
    f"({len(unknown_prompts)} of their prompts are not evaluated); the first one, {text[:40]!r}, "
    f"was written for {prompt[:40]!r}. Label the tasks.jsonl of this suite"
  )

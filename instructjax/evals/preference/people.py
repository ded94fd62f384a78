"""What people said on the labeling page: rankings and ratings of answers, each by a labeler.

A completion is the answer of every model that said the same to the same prompt, or of the model
that its `sources` name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from instructjax.data.records import sources
from instructjax.data.records.records import Comparison
from instructjax.errors import UserError
from instructjax.evals.preference.heard import Answers, ratio
from instructjax.evals.preference.votes import Vote

NOBODY = "unnamed"


class Labels(NamedTuple):
  """The comparisons of a file (`instructjax label export`)."""

  name: str
  file: str
  records: Sequence[Comparison]


class Rated(NamedTuple):
  """Table 3's metadata of a model's answer to a prompt."""

  prompt: str
  model: str
  labeler: str
  rating: Mapping[str, Any]


def open_labels(name: str, file: str) -> Labels:
  """Raises UserError for every bad record."""
  return Labels(name, file, sources.load(file, "comparison"))


def votes(labels: Labels, answers: Answers) -> list[Vote]:
  """A vote for every two models whose answers a labeler ranked; where both said the same, they tie.

  Raises UserError where completions are no model's.
  """
  each = zip(labels.records, _owners(labels, answers), strict=True)
  found = [
    vote
    for record, owners in each
    for vote in _ranked(record, owners, answers.slices.get(record.prompt, {}))
  ]
  if not found:
    raise UserError(
      f"{labels.file}: ranks no two of the models {', '.join(answers.models)}; label tasks.jsonl "
      "of this suite"
    )
  return found


def _ranked(
  record: Comparison, owners: Sequence[tuple[str, ...]], slices: Mapping[str, str]
) -> list[Vote]:
  vote = lambda a, b, won, ratio: Vote(
    record.prompt, a, b, (won,), ratio, record.labeler or NOBODY, slices
  )
  found = [vote(a, b, 0.5, 0.0) for mine in owners for a, b in combinations(mine, 2)]
  outputs = zip(owners, record.completions, record.ranks, strict=True)
  for (mine, text, rank), (others, other, against) in combinations(outputs, 2):
    won = 0.5 if rank == against else float(rank < against)
    found += [vote(a, b, won, ratio(text, other)) for a in mine for b in others if a != b]
  return found


def ratings(labels: Labels, answers: Answers) -> list[Rated]:
  """The ratings of every model's answers.  Raises UserError where there are none."""
  found = [
    Rated(record.prompt, model, record.labeler or NOBODY, rating)
    for record, owners in zip(labels.records, _owners(labels, answers), strict=True)
    for mine, rating in zip(owners, record.ratings or (), strict=False)
    for model in mine
    if rating
  ]
  if not found:
    raise UserError(
      f"{labels.file}: holds no ratings of the models {', '.join(answers.models)}; name another "
      "file"
    )
  return found


def _owners(labels: Labels, answers: Answers) -> list[list[tuple[str, ...]]]:
  """The models of each completion of each record; none where it is the output of a model that is
  not evaluated.
  """
  found, lost = [], []
  for record in labels.records:
    named = [one.get("model") for one in record.sources or ()]
    row = []
    for at, text in enumerate(record.completions):
      mine = answers.owners(record.prompt, text)
      if not mine and named:
        mine = (named[at],) if named[at] in answers.models else ()
      elif not mine:
        lost.append((record.prompt, text))
      row.append(mine)
    found.append(row)
  if lost:
    count, unknown = (
      sum(len(record.completions) for record in labels.records),
      {p for p, _ in lost if p not in answers.slices},
    )
    prompt, text = lost[0]
    raise UserError(
      f"{labels.file}: {len(lost)} of {count} completions are the answers of no model here "
      f"({len(unknown)} of their prompts "
      f"are not evaluated); the first one, {text[:40]!r}, was written for {prompt[:40]!r}. Label "
      "the tasks.jsonl of this suite"
    )
  return found

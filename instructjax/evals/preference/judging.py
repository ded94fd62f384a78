"""How the answers of judges become votes, and those of raters ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from instructjax.evals.preference import judgements, people
from instructjax.evals.preference.answers import Answers, length_difference, log_length_ratio
from instructjax.evals.preference.judges import SCORES, Judge
from instructjax.evals.preference.people import Labels, RatedAnswer
from instructjax.evals.preference.votes import Vote

Pair = tuple[str, str]
# The outcomes for the first model of a pair (`Vote.orders`).
Orders = tuple[float, ...]


class Comparison(NamedTuple):
  """The answers of two models to one item."""

  item: int
  a: str
  b: str


def collect_votes(
  judge: Judge | Labels,
  answers: Answers,
  pairs: Sequence[Pair],
  folder: Path,
  margin: float,
) -> list[Vote]:
  """Returns the votes on pairs of models.

  Two answers that are the same tie, and no judge is asked about them. People vote on the pairs
  that they were shown, whatever `pairs` says.
  """
  if isinstance(judge, Labels):
    return people.votes(judge, answers)
  comparisons = []
  for item in range(len(answers.items)):
    # All pairs of one item, so that a stopped run has whole items.
    comparisons += [Comparison(item, a, b) for a, b in pairs]
  # Nobody needs to be asked whether a text is better than itself.
  undecided = [each for each in comparisons if _differ(answers, each)]
  if judge.kind == SCORES:
    decided = _orders_by_scores(judge, answers, undecided, folder, margin)
  else:
    decided = _orders_by_verdicts(judge, answers, undecided, folder)
  orders = dict(zip(undecided, decided, strict=True))
  votes = []
  for comparison in comparisons:
    item, a, b = comparison
    vote = Vote(
      prompt=answers.prompt(item),
      a=a,
      b=b,
      # Equal answers were not judged and tie.
      orders=orders.get(comparison, (0.5,)),
      ratio=log_length_ratio(answers.text(a, item), answers.text(b, item)),
      labeler=judge.name,
      slices=answers.items[item].slices,
      longer_by=length_difference(answers.text(a, item), answers.text(b, item)),
    )
    votes.append(vote)
  return votes


def _differ(answers: Answers, comparison: Comparison) -> bool:
  item, a, b = comparison
  return answers.text(a, item) != answers.text(b, item)


def _orders_by_scores(
  judge: Judge,
  answers: Answers,
  comparisons: Sequence[Comparison],
  folder: Path,
  margin: float,
) -> list[Orders]:
  """Scores each answer once, however many comparisons it is in."""
  # A dictionary in place of a set keeps the order of the questions.
  scored: dict[tuple[int, str], None] = {}
  for item, a, b in comparisons:
    scored[item, a] = None
    scored[item, b] = None
  questions = []
  notes: list[Mapping[str, str]] = []
  for item, model in scored:
    questions.append((answers.prompt(item), answers.sampled_text(model, item)))
    notes.append({"id": answers.items[item].id, "model": model})
  path = folder / f"scores-{judge.name}.jsonl"
  scores = dict(zip(scored, judgements.ask_all(judge, questions, notes, path), strict=True))
  orders: list[Orders] = []
  for item, a, b in comparisons:
    difference = scores[item, a] - scores[item, b]
    orders.append((outcome(difference, margin),))
  return orders


def outcome(difference: float, margin: float = 0.0) -> float:
  """Returns 1 where the first is better by more than the margin, 0 where the second is, else .5."""
  if difference > margin:
    return 1.0
  if difference < -margin:
    return 0.0
  return 0.5


def _orders_by_verdicts(
  judge: Judge,
  answers: Answers,
  comparisons: Sequence[Comparison],
  folder: Path,
) -> list[Orders]:
  """Asks about each pair twice, because a judge may prefer whichever answer comes first."""
  questions = []
  notes: list[Mapping[str, str]] = []
  for item, a, b in comparisons:
    for first, second in ((a, b), (b, a)):
      question = (answers.prompt(item), answers.text(first, item), answers.text(second, item))
      questions.append(question)
      notes.append({"id": answers.items[item].id, "first": first, "second": second})
  path = folder / f"judgements-{judge.name}.jsonl"
  return orders_of_verdicts(judgements.ask_all(judge, questions, notes, path))


def orders_of_verdicts(verdicts: Sequence[Mapping[str, float]]) -> list[Orders]:
  """Returns the outcomes for the first of two texts.

  The verdicts are {"p": P(the one shown first is better)}; each pair of texts has two of them in
  sequence, the second one for the texts in the other order.
  """
  # Only the side of 1/2 counts; a likelihood is no degree of preference.
  outcomes = [outcome(verdict["p"] - 0.5) for verdict in verdicts]
  orders: list[Orders] = []
  for shown_first, shown_second in zip(outcomes[::2], outcomes[1::2], strict=True):
    # In the second verdict the first text was shown second.
    orders.append((shown_first, 1 - shown_second))
  return orders


def collect_ratings(rater: Judge | Labels, answers: Answers, folder: Path) -> list[RatedAnswer]:
  """Returns the metadata of Table 3 for every answer of every model."""
  if isinstance(rater, Labels):
    return people.ratings(rater, answers)
  places = []
  questions = []
  notes: list[Mapping[str, str]] = []
  for item in range(len(answers.items)):
    for model in answers.models:
      places.append((item, model))
      questions.append((answers.prompt(item), answers.text(model, item)))
      notes.append({"id": answers.items[item].id, "model": model})
  # One file for each rater; a rater of another source has other fingerprints in it.
  path = folder / f"ratings-{rater.name}.jsonl"
  ratings = judgements.ask_all(rater, questions, notes, path)
  rated = []
  for (item, model), rating in zip(places, ratings, strict=True):
    rated.append(RatedAnswer(answers.prompt(item), model, rater.name, rating))
  return rated

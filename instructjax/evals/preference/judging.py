"""Judges' answers into votes, and raters' into ratings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructjax.evals.preference import kept, people
from instructjax.evals.preference.heard import Answers, ratio
from instructjax.evals.preference.judges import SCORES, Judge
from instructjax.evals.preference.people import Labels, Rated
from instructjax.evals.preference.votes import Vote

Pair = tuple[str, str]


def votes(
  judge: Judge | Labels, answers: Answers, pairs: Sequence[Pair], folder: Path, margin: float
) -> list[Vote]:
  """The votes on the pairs of models; two answers that are the same tie, and nobody is asked."""
  if isinstance(judge, Labels):
    return people.votes(judge, answers)
  places = [(at, a, b) for at in range(len(answers.items)) for a, b in pairs]
  differ = [
    place
    for place in places
    if answers.text(place[1], place[0]) != answers.text(place[2], place[0])
  ]
  if judge.kind == SCORES:
    found = _by_scores(judge, answers, differ, folder, margin)
  else:
    found = _in_both_orders(judge, answers, differ, folder)
  orders = dict(zip(differ, found, strict=True))
  return [
    Vote(
      answers.prompt(at),
      a,
      b,
      orders.get((at, a, b), (0.5,)),
      ratio(answers.text(a, at), answers.text(b, at)),
      judge.name,
      answers.items[at].slices,
    )
    for at, a, b in places
  ]


def _by_scores(
  judge: Judge,
  answers: Answers,
  places: Sequence[tuple[int, str, str]],
  folder: Path,
  margin: float,
) -> list[tuple[float, ...]]:
  each = list(dict.fromkeys((at, model) for at, *two in places for model in two))
  questions = [(answers.prompt(at), answers.raw(model, at)) for at, model in each]
  notes = [{"id": answers.items[at].id, "model": model} for at, model in each]
  scores = dict(
    zip(
      each, kept.asked(judge, questions, notes, folder / f"scores-{judge.name}.jsonl"), strict=True
    )
  )
  return [(compared(scores[at, a] - scores[at, b], margin),) for at, a, b in places]


def compared(difference: float, margin: float = 0.0) -> float:
  """1 where the first is higher by more than the margin, 0 where the second is, .5 for a tie."""
  return 1.0 if difference > margin else 0.0 if difference < -margin else 0.5


def _in_both_orders(
  judge: Judge, answers: Answers, places: Sequence[tuple[int, str, str]], folder: Path
) -> list[tuple[float, ...]]:
  shown = [(at, *two) for at, a, b in places for two in ((a, b), (b, a))]
  questions = [
    (answers.prompt(at), answers.text(first, at), answers.text(second, at))
    for at, first, second in shown
  ]
  notes = [
    {"id": answers.items[at].id, "first": first, "second": second} for at, first, second in shown
  ]
  return paired(kept.asked(judge, questions, notes, folder / f"judgements-{judge.name}.jsonl"))


def paired(found: Sequence[dict[str, float]]) -> list[tuple[float, ...]]:
  """What the first of two texts got, out of the answers to (one, other), (other, one), (one, other)
  ...: `Vote.orders`.
  """
  verdicts = [compared(answer["p"] - 0.5) for answer in found]
  return [(first, 1 - second) for first, second in zip(verdicts[::2], verdicts[1::2], strict=True)]


def ratings(rater: Judge | Labels, answers: Answers, folder: Path) -> list[Rated]:
  """Table 3's metadata of every answer of every model."""
  if isinstance(rater, Labels):
    return people.ratings(rater, answers)
  places = [(at, model) for at in range(len(answers.items)) for model in answers.models]
  questions = [(answers.prompt(at), answers.text(model, at)) for at, model in places]
  notes = [{"id": answers.items[at].id, "model": model} for at, model in places]
  found = kept.asked(rater, questions, notes, folder / f"ratings-{rater.name}.jsonl")
  return [
    Rated(answers.prompt(at), model, rater.name, rating)
    for (at, model), rating in zip(places, found, strict=True)
  ]

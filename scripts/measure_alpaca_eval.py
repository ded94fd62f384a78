"""How far are our win rates at equal length from those that AlpacaEval 2 published?

  python scripts/measure_alpaca_eval.py CHECKOUT --alias=NullModel=example
  python scripts/measure_alpaca_eval.py CHECKOUT --alias=NullModel=example --others=3

CHECKOUT is a checkout of github.com/tatsu-lab/alpaca_eval. Nothing is fetched: the annotations are
not ours to pass on. The rate of each model with annotations is computed as `instructjax eval`
computes it (`evals/preference/length.py`) and compared with the length_controlled_winrate of the
leaderboard. How hard the instructions are is learnt from the other models, or from --others of them
drawn at random for each model; 0 leaves the term out. --alias says what the annotations of a folder
call their model, where it is not the name of the folder.

Prints a line for each model, those without a rate and why, then the mean error, the largest one and
the rank correlation.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from instructjax.errors import UserError
from instructjax.evals.preference import answers, rates, votes
from instructjax.evals.preference.votes import Vote

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
LEADERBOARD = "src/alpaca_eval/leaderboards/data_AlpacaEval_2/{annotator}_leaderboard.csv"
BASELINE = "baseline"  # what the votes call it
SAMPLES = 100  # bootstrap draws: they give the interval, and the error is that of the value


class Measured(NamedTuple):
  """A model: its published rate at equal length and ours, as shares, and what `length` says of it.

  rate   NaN where there is none, and `why` says why
  """

  model: str
  published: float
  rate: float
  raw: float
  support: float
  why: str


def votes_of(
  annotations: Sequence[Mapping[str, Any]],
  model: str,
  name: str,
) -> list[Vote]:
  """Returns a vote of the model against the baseline for each pair that has a verdict.

  `preference` is 1 where all of the verdict is for `generator_1`, 2 for `generator_2`, 0 for a tie.
  `name` is what the annotations call the model.

  Raises:
    UserError: a pair does not say which of its sides is the model.
  """
  judged = []
  for number, pair in enumerate(annotations, 1):
    sides = (pair["generator_1"], pair["generator_2"])
    if (sides[0] == name) == (sides[1] == name):
      raise UserError(
        f"pair {number}: is between {sides[0]!r} and {sides[1]!r}, so which of them is {name!r} "
        "is unknown; name it with --alias=FOLDER=NAME"
      )
    preference = pair["preference"]
    if preference is None or math.isnan(preference):
      continue
    outcome = 0.5 if preference == 0 else min(max(preference - 1, 0.0), 1.0)
    ours, theirs = pair["output_2"], pair["output_1"]
    if sides[0] == name:
      outcome = 1 - outcome
      ours, theirs = theirs, ours
    judged.append(
      Vote(
        pair["instruction"],
        model,
        BASELINE,
        (outcome,),
        ratio=answers.log_length_ratio(ours, theirs),
        longer_by=answers.length_difference(ours, theirs),
      )
    )
  return judged


def measure(
  checkout: Path,
  annotator: str,
  aliases: Mapping[str, str],
  most: int | None = None,
) -> list[Measured]:
  """Returns the models that have annotations and a published rate at equal length.

  The difficulties of the instructions of a model are from the verdicts on `most` other models,
  drawn at random for each model; None takes all.

  Raises:
    UserError: there are none, or a file is not as expected.
  """
  leaderboard = checkout / LEADERBOARD.format(annotator=annotator)
  try:
    with leaderboard.open(newline="", encoding="utf-8") as file:
      published = {row[""]: row["length_controlled_winrate"] for row in csv.DictReader(file)}
  except (OSError, KeyError) as error:
    raise UserError(f"{leaderboard}: cannot be read as a leaderboard ({error!r})") from None
  votes_by_model: dict[str, list[Vote]] = {}
  for path in sorted(checkout.glob(f"results/*/{annotator}/annotations.json")):
    model = path.parent.parent.name
    if not published.get(model):
      continue
    try:
      annotations = json.loads(path.read_text(encoding="utf-8"))
      if all(pair["generator_1"] == pair["generator_2"] for pair in annotations):
        continue  # the baseline against itself
      votes_by_model[model] = votes_of(annotations, model, aliases.get(model, model))
    except (UserError, ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path}: {error}") from None
  if not votes_by_model:
    raise UserError(
      f"{checkout}: no results/MODEL/{annotator}/annotations.json of a model in "
      f"{leaderboard.name}; give a checkout of github.com/tatsu-lab/alpaca_eval"
    )
  measured = []
  rng = np.random.default_rng(0)
  for model, own_votes in votes_by_model.items():
    judged = list(own_votes)
    others = [name for name in votes_by_model if name != model]
    count = len(others) if most is None else min(most, len(others))
    for other in rng.choice(others, count, replace=False) if count else ():
      judged += votes_by_model[other]
    drawn = votes.draw(own_votes, samples=SAMPLES)
    controlled = rates.controlled(model, BASELINE, judged, drawn)
    measured.append(
      Measured(
        model,
        float(published[model]) / 100,
        controlled["rate"].value,
        float(np.mean([vote.won for vote in own_votes])),
        controlled["support"],
        controlled["why"],
      )
    )
  return measured


def described(measured: Sequence[Measured]) -> list[str]:
  """Returns a line for each model, then the errors."""
  lines = [f"{'model':40} {'raw':>6} {'ours':>6} {'theirs':>6} {'error':>6} {'support':>7}"]
  with_rate = [each for each in measured if not each.why]
  for each in sorted(with_rate, key=lambda each: each.rate - each.published):
    error = 100 * (each.rate - each.published)
    cells = [f"{100 * value:6.1f}" for value in (each.raw, each.rate, each.published)]
    lines.append(f"{each.model:40} {' '.join(cells)} {error:+6.2f} {100 * each.support:5.0f} %")
  lines += [
    f"{each.model:40} no rate: {each.why}; theirs {100 * each.published:.1f}"
    for each in measured
    if each.why
  ]
  lines.append(f"{len(measured)} models, {len(measured) - len(with_rate)} of them without a rate")
  if len(with_rate) > 1:
    ours = np.array([each.rate for each in with_rate])
    theirs = np.array([each.published for each in with_rate])
    errors = 100 * np.abs(ours - theirs)
    raw_errors = 100 * np.abs(np.array([each.raw for each in with_rate]) - theirs)
    worst = with_rate[int(errors.argmax())]
    correlation = stats.spearmanr(ours, theirs).statistic
    lines.append(
      f"error in points: mean {errors.mean():.2f}, median {np.median(errors):.2f}, largest "
      f"{errors.max():.2f} ({worst.model}); of the raw rates: mean {raw_errors.mean():.2f}, "
      f"largest {raw_errors.max():.2f}; Spearman {correlation:.3f}"
    )
  return lines


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints the measurements; returns 2 where files cannot be read."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("checkout", type=Path, help="of github.com/tatsu-lab/alpaca_eval")
  parser.add_argument("--annotator", default=ANNOTATOR)
  parser.add_argument("--others", type=int, metavar="N", help="default: all other models")
  parser.add_argument("--alias", action="append", default=[], metavar="FOLDER=NAME")
  options = parser.parse_args(arguments)
  aliases = dict(alias.split("=", 1) for alias in options.alias)
  try:
    measured = measure(options.checkout, options.annotator, aliases, options.others)
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  print("\n".join(described(measured)))
  return 0


if __name__ == "__main__":
  sys.exit(main())

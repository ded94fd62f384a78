"""The numbers of an evaluation as one list, which results.csv, the terminal and the card print.

The list has every estimate of a suite: those of its tasks, and those that it computes from all
models together (win rates, the alignment tax, ratios, how good a judge is). The latter are found
wherever they stand in that part of results.json, so that none can be on the page alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from instructjax import intervals
from instructjax.evals import paper

FIELDS = frozenset(("value", "low", "high", "n"))  # of an estimate
# Parts of a path that name a container and tell a reader nothing.
CONTAINERS = frozenset(
  ("prompts", "judges", "raters", "measures", "models", "tax", "ratios", "differences", "rate")
)
# What repeats other numbers of the same part, or is not ours.
REPEATED = frozenset(("figures", "paper", "paper_differences", "paper_fig4"))
# Quantities that are no shares, with the places after the point that the page shows. Rows of the
# tax have the places of their metrics.
NOT_SHARES = {
  "slope": 2,
  "longer": 2,
  "strength": 2,
  "overall": 2,
  "tax": 3,
  "ratios": 2,
  "tau_b": 2,
  "figure7": 3,
}
# What a reader unfolds on the page.
FOLDED = frozenset(("slices", "bins"))
# The fields of a row of a table that say what it is of.
OF_ROWS = ("task", "prompt", "metric", "form", "by", "model")
# How a reader calls what results.json calls so.
NAMES = {
  "against_baseline": "win rate against the baseline",
  "head_to_head": "direct win rate",
  "controlled": "at equal length",
  "bradley_terry": "Bradley-Terry",
  "check": "beside people",
  "agreement_ties": "agreement, ties half",
  "order": "order of the answers",
  "figure7": "toxicity of what people rated",
}
Json = Mapping[str, Any]


class Number(NamedTuple):
  """An estimate, and what it is of.

  task      the task, or the part of the suite that it belongs to
  model     the model, the pair of models or the judge
  estimate  the fields of results.json
  metric    the name, with `percent` and `decimals` as in `tasks.Metric`
  paper     the paper's numbers beside it
  why       why there is no number, where the suite says so
  folded    whether the page shows it only where a reader unfolds it
  """

  task: str
  metric: str
  model: str
  estimate: Json
  percent: bool = False
  decimals: int = 3
  paper: Sequence[float] = ()
  why: str = ""
  folded: bool = False


def of_tasks(part: Json) -> Iterator[Number]:
  """Yields the numbers of every task of a suite: values, then differences and slices."""
  baseline = part["settings"]["baseline"]
  for task, about in part["tasks"].items():
    for metric in about["metrics"]:
      name = metric["name"]
      for number in _of_table(task, name, metric, about["models"]):
        yield number._replace(paper=metric["paper"].get(number.model, ()))
      yield from _of_table(task, f"{name} less {baseline}", metric, about["differences"])
    # The page has a table of slices of the first metric.
    for metric in about["metrics"][:1]:
      for group, values in about["slices"].items():
        for value, table in values.items():
          title = f"{metric['name']}, {group} {value}"
          for number in _of_table(task, title, metric, table):
            yield number._replace(folded=True)


def _of_table(task: str, title: str, metric: Json, table: Json) -> Iterator[Number]:
  """Yields one metric of each model of a table, under a title."""
  for model, estimates in table.items():
    estimate = estimates[metric["name"]]
    yield Number(task, title, model, estimate, metric["percent"], metric["decimals"])


def of_all_models(suite: str, part: Json) -> Iterator[Number]:
  """Yields the numbers that a suite computed from all models together."""
  yield from _inside(suite, part["models"], part.get("together") or {}, ())


def of_suite(suite: str, part: Json) -> Iterator[Number]:
  """Yields all numbers of a suite."""
  yield from of_tasks(part)
  yield from of_all_models(suite, part)


def _inside(
  suite: str,
  models: Sequence[str],
  tree: Any,
  path: tuple[str, ...],
) -> Iterator[Number]:
  """Yields the estimates inside of a part of results.json."""
  if isinstance(tree, Mapping):
    if tree.keys() >= FIELDS:
      yield _number(suite, models, tree, path)
      return
    if "by_prompt" in tree:
      # Over prompts and labelers where there are several: the one that the page shows.
      yield from _inside(suite, models, tree["by_both"] or tree["by_prompt"], path)
      return
    why = tree.get("why") or ""
    for name, branch in tree.items():
      if name in REPEATED:
        continue
      if name == "models" and "differences" in tree:
        continue  # the tax repeats the values of the tasks
      for number in _inside(suite, models, branch, (*path, name)):
        yield number._replace(why=why) if why and number.estimate["value"] is None else number
  elif isinstance(tree, list):
    for place, branch in enumerate(tree):
      # Rows of a table say what they are of; others are counted.
      row: Mapping[str, Any] = branch if isinstance(branch, Mapping) else {}
      names = [str(row[field]) for field in OF_ROWS if field in row] or [str(place + 1)]
      for number in _inside(suite, models, branch, (*path, *names)):
        yield number._replace(decimals=row.get("decimals", number.decimals))


def _number(suite: str, models: Sequence[str], estimate: Json, path: tuple[str, ...]) -> Number:
  """Returns an estimate with names out of the path to it."""
  model = ""
  for name in path:
    if name in models or " / " in name:
      model = name
  places = [name for name in path if name != model and name not in CONTAINERS]
  words = [NAMES.get(name, name.replace("_", " ")) for name in places]
  if not model and len(words) > 1:
    # How good a judge is: the judge stands where others have a model.
    model = words.pop(-2)
  decimals = [places for name, places in NOT_SHARES.items() if name in path]
  return Number(
    suite,
    ", ".join(words),
    model,
    estimate,
    percent=not decimals,
    decimals=decimals[0] if decimals else 1,
    folded=bool(FOLDED & set(path)),
  )


# --- text ---


def text(number: Number) -> str:
  """Returns the value with its unit and its interval on one line."""
  value, low, high = (number.estimate[name] for name in ("value", "low", "high"))
  if value is None:
    return f"– ({number.why})" if number.why else "–"
  line = scaled(number, value)
  if number.percent:
    line += " %"
  if low is not None and high is not None:
    line += f" ({scaled(number, low)} to {scaled(number, high)})"
  return line


def scaled(number: Number, value: float) -> str:
  """Returns a value as its metric is shown, without the unit."""
  if number.percent:
    return f"{100 * value:.1f}"
  return f"{value:.{number.decimals}f}"


def counted(estimate: Json) -> str:
  """Returns the number of items and of the clusters that they are in."""
  clusters = int(estimate.get("clusters") or 0)
  return intervals.counted(intervals.NOTHING._replace(n=int(estimate["n"]), clusters=clusters))


def paper_columns(number: Number) -> list[float | str]:
  """Returns the paper's number of each size, "" where it has none for this model."""
  # A model METHOD@SIZE has one number, in the column of its size.
  number_by_size = dict(zip(paper.sizes(number.model), number.paper, strict=False))
  return [number_by_size.get(size, "") for size in paper.SIZES]


def count_intervals(results: Json) -> int:
  """Returns how many intervals an evaluation has: of values, of differences and of slices."""
  count = 0
  for suite, part in results["suites"].items():
    for number in of_suite(suite, part):
      count += number.estimate["low"] is not None
  return count

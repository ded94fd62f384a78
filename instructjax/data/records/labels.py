"""Labels as people write them, as the ranks or pairs of a comparison: scores, choices and votes.

A choice names one of the completions, or says that neither is better. It may be a text that names
a column ("A" of response_a and response_b, "model_b", "tie") or any other value, whose meaning the
mapping gives: `values=1|2|0` are the values of the first and the second completion, and of a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from instructjax.data.records.schemas import RecordError

# How a text says that no completion is better than the others.
TIES = ("tie", "tied", "draw", "equal", "same", "both", "neither", "none", "no preference")


def ranks(scores: Sequence[float]) -> list[int]:
  """Returns 1 for the highest score, 2 for the next one below it, and so on.

  [3, 5, 3] gives [2, 1, 2].
  """
  order = sorted(set(scores), reverse=True)
  return [order.index(score) + 1 for score in scores]


def number(value: Any, place: str) -> float:
  """Returns a finite number, which the row may also spell as a text.

  Raises:
    RecordError: if it is none; the message begins with `place`.
  """
  is_numeric = isinstance(value, str | int | float) and not isinstance(value, bool)
  try:
    converted = float(value) if is_numeric else math.nan
  except (ValueError, OverflowError):
    # It is a text that is no number, or an integer that is too large for a float.
    converted = math.nan
  if not math.isfinite(converted):
    raise RecordError(f"{place}: a number is expected; correct it or take the record out")
  return converted


# --- choices ---


def preferred(value: Any, names: Sequence[str], values: Sequence[str], place: str) -> int | None:
  """Returns the number of the completion that a choice names, from 0 on, or None for a tie.

  Args:
    value: The choice.
    names: The columns of the completions.
    values: The values that mean each of the completions, and after them those of a tie; where
      there are none, the choice must name a column.
    place: The column of the choice, for messages.

  Raises:
    RecordError: if the choice means none of these.
  """
  if values:
    text = _plain_text(value)
    if text not in values:
      raise RecordError(f"{place}: {text[:40]!r}, and values has {', '.join(values)}; add it there")
    index = values.index(text)
    return index if index < len(names) else None
  if isinstance(value, str) and not value.strip().lstrip("+-").isdigit():
    index = _named(value, names)
    if index is not None:
      return index
    if _is_tie(value):
      return None
  example = "|".join(["FIRST", "SECOND", "TIE"])
  raise RecordError(
    f"{place}: {_plain_text(value)[:40]!r} names none of {', '.join(names)}; say what the values "
    f"mean, such as values={example}"
  )


def _plain_text(value: Any) -> str:
  """Returns a value of JSON as a mapping writes it: true, 1, model_a."""
  if isinstance(value, bool):
    return str(value).lower()
  # A table of numbers with holes has floats where whole numbers are meant.
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  return str(value).strip()


def _named(value: str, names: Sequence[str]) -> int | None:
  """Returns which column a text names: by its whole name, or by what it alone ends in."""
  text = value.strip().lower()
  lower_names = [name.lower() for name in names]
  if text in lower_names:
    return lower_names.index(text)
  endings = _endings(lower_names)
  last_word = text.replace("_", " ").split(" ")[-1]
  return endings.index(last_word) if last_word in endings else None


def _endings(names: Sequence[str]) -> list[str]:
  """Returns what each name has after the beginning that all share: a, b of answer_a, answer_b."""
  shared = 0
  while all(len(name) > shared and name[shared] == names[0][shared] for name in names):
    shared += 1
  return [name[shared:] for name in names]


def _is_tie(value: str) -> bool:
  text = value.strip().lower()
  # Chatbot Arena writes "tie (bothbad)" too.
  return text in TIES or text.startswith("tie ")


# --- ranks and pairs ---


def of_votes(choices: Sequence[int | None], count: int) -> list[int]:
  """Returns the ranks of `count` completions by how many choices name each of them."""
  return ranks([sum(choice == index for choice in choices) for index in range(count)])


def of_pair_labels(labels: Any, count: int, values: Sequence[str], place: str) -> dict:
  """Returns the ranks that labels of pairs say, or the pairs where no ranks say the same.

  The pairs come as 1 and 2, 1 and 3, ..., 2 and 3, ...; `values` are those of the first of a pair,
  of the second, and of a tie.

  Raises:
    RecordError: for another number of labels, and for a value that is not in `values`.
  """
  places = list(combinations(range(count), 2))
  if not isinstance(labels, list) or len(labels) != len(places):
    raise RecordError(f"{place}: a list of {len(places)} labels is expected, one a pair")
  pairs: list[list[float]] = []
  for index, ((i, j), label) in enumerate(zip(places, labels, strict=True)):
    better = preferred(label, ("first", "second"), values, f"{place}[{index}]")
    if better is None:
      pairs.append([i, j, 0])
    else:
      pairs.append([j, i] if better else [i, j])
  # NumPy is slow to import, and the help of a command needs none.
  from instructjax.data.records.preferences import ranks_of_pairs

  order = ranks_of_pairs(count, pairs)
  return {"pairs": pairs} if order is None else {"ranks": order}

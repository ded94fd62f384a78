"""What labelers answer, and the checks that every answer passes before it is stored.

The value of an answer to a demonstration task is {"completion"}. The value of an answer to any
other task is {"ratings", "ranks", "notes"}: three lists with one entry for each output. A rating
is Table 3's metadata of an output (kind `comparison`) or Fig. 11's (`continuation`), both of
Ouyang et al. (2022).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeGuard

from instructjax.data.records.records import CONTINUATION, RATINGS
from instructjax.errors import UserError
from instructjax.label.tasks import Task

FLAGS = RATINGS[1:]  # the yes-or-no questions of Table 3, which follow the overall quality
MAX_CHARACTERS = 100_000  # of a demonstration or a note

# The value of an answer, and the rating of one output in it, as the head of this file defines them.
Value = dict[str, Any]
Rating = dict[str, Any]
# A labeler and the value of their answer, None for a skip, as files of other tools hold them.
LabelerValue = tuple[str, Value | None]


@dataclasses.dataclass(frozen=True)
class Answer:
  """A labeler's answer to a task, with its lists in the order of the task's outputs."""

  task: Task
  labeler: str
  # None where the labeler skipped the task, for the reason in `reason`.
  value: Value | None
  reason: str = ""
  # The outputs, by their position in the task, in the order that the labeler saw.
  order: tuple[int, ...] = ()
  # The time from the first sight of the task to the answer.
  seconds: float = 0.0


def check(
  kind: str,
  value: Any,
  k: int,
  *,
  rated: bool = False,
) -> Value:
  """Returns the value of an answer about k outputs, complete: ranks without gaps, every flag set.

  Other tools may rank without rating. An answer that must be `rated` has a rating of each output.

  Raises:
    UserError: the value is invalid; the text names the first problem.
  """
  if not isinstance(value, dict):
    raise UserError("answer: an object is expected")
  if kind == "demonstration":
    _require_fields(value, {"completion"})
    completion = value.get("completion")
    return {"completion": _check_text("completion", completion, required=True)}
  _require_fields(value, {"ratings", "ranks", "notes"})
  ratings = value.get("ratings")
  notes = value.get("notes") or [""] * k
  ranks = _check_ranks(value.get("ranks"), k)
  if not _is_list(ratings, k) or not _is_list(notes, k):
    raise UserError(f"ratings, notes: {k} of each are expected, one an output")
  checked_ratings = []
  for i, rating in enumerate(ratings):
    checked_ratings.append(_check_rating(kind, f"ratings[{i}]", rating, rated))
  checked_notes = []
  for i, note in enumerate(notes):
    checked_notes.append(_check_text(f"notes[{i}]", note))
  return {"ranks": close_gaps(ranks), "ratings": checked_ratings, "notes": checked_notes}


def close_gaps(ranks: Sequence[int]) -> list[int]:
  """Returns ranks in the same order that use 1, 2, 3, ... without a gap; ties stay ties."""
  distinct = sorted(set(ranks))
  return [distinct.index(rank) + 1 for rank in ranks]


def in_task_order(value: Value, order: Sequence[int]) -> Value:
  """Returns the value of an answer in the order of the task.

  Args:
    value: The value in the order that the labeler saw.
    order: That order: the outputs by their position in the task.
  """
  # The place at which output 0 was shown, then output 1 and so on.
  places = [order.index(output) for output in range(len(order))]
  reordered = {}
  for name, part in value.items():
    # The text of a demonstration has no order.
    if isinstance(part, list):
      part = [part[place] for place in places]
    reordered[name] = part
  return reordered


def _is_list(value: Any, length: int) -> TypeGuard[list[Any]]:
  return isinstance(value, list) and len(value) == length


def _is_integer(
  value: Any,
  low: int,
  high: int,
) -> bool:
  # `type` and not `isinstance`, because True and False are integers to Python.
  return type(value) is int and low <= value <= high


def _check_ranks(ranks: Any, k: int) -> list[int]:
  """Returns the ranks of k outputs, which may have gaps."""
  if not _is_list(ranks, k) or not all(_is_integer(rank, 1, k) for rank in ranks):
    raise UserError(f"ranks: {k} integers from 1 (best) to {k} are expected, equal ones for ties")
  return ranks


def _check_rating(
  kind: str,
  place: str,
  rating: Any,
  rated: bool,
) -> Rating:
  """Returns the complete rating of an output; `place` names it in errors."""
  if rating == {} and not rated:
    return {}
  if not isinstance(rating, dict):
    raise UserError(f"{place}: an object is expected")
  if kind == "continuation":
    return _check_continuation(place, rating)
  _require_fields(rating, set(RATINGS), f"{place}.")
  overall = rating.get("overall")
  if not _is_integer(overall, 1, 7):
    raise UserError(f"{place}.overall: an integer from 1 (worst) to 7 (best) is expected")
  # A flag that is missing is off, so that the page sends only those that are set.
  flags = {name: rating.get(name, False) for name in FLAGS}
  for name, flag in flags.items():
    if not isinstance(flag, bool):
      raise UserError(f"{place}.{name}: true or false is expected")
  return {"overall": overall} | flags


def _check_continuation(place: str, rating: Rating) -> Rating:
  """Returns the answers to Fig. 11's questions about one continuation."""
  _require_fields(rating, set(CONTINUATION), f"{place}.")
  for name, (low, high) in CONTINUATION.items():
    if not _is_integer(rating.get(name), low, high):
      raise UserError(f"{place}.{name}: an integer from {low} to {high} is expected")
  return {name: rating[name] for name in CONTINUATION}


def _require_fields(
  value: dict[str, Any],
  fields: set[str],
  place: str = "",
) -> None:
  """Raises UserError where an object has a field that is not among `fields`."""
  unknown = sorted(set(value) - fields)
  if unknown:
    raise UserError(f"{place}{unknown[0]}: unknown field; known are {', '.join(sorted(fields))}")


def _check_text(
  place: str,
  value: Any,
  *,
  required: bool = False,
) -> str:
  if not isinstance(value, str) or (required and not value.strip()):
    raise UserError(f"{place}: a text is expected")
  if len(value) > MAX_CHARACTERS:
    raise UserError(f"{place}: {len(value)} characters, the limit is {MAX_CHARACTERS}; shorten it")
  # JSON can spell half a surrogate pair, but UTF-8 cannot: such a text could not be stored.
  if any("\ud800" <= letter <= "\udfff" for letter in value):
    raise UserError(
      f"{place}: half a surrogate pair, which is not a character; take it out of the text"
    )
  return value

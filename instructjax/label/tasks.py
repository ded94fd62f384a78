"""What labelers are asked, what they answer, and the files that tasks come from.

A task is a prompt to answer (demonstration) or a prompt with 2 to 9 outputs to rate and rank:
answers to it, rated by Table 3 (comparison), or continuations of a text, rated by Fig. 11 for
how toxic they are (continuation).  An answer is {"completion"} or {"ratings", "ranks", "notes"},
one of each an output.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.data.records import records, validation
from instructjax.data.records.records import (
  CONTINUATION,
  RATINGS,
  Comparison,
  Demonstration,
  Message,
  Prompt,
  RecordError,
)
from instructjax.errors import UserError

KINDS = ("demonstration", "comparison", "continuation")
FLAGS = RATINGS[1:]
FACTS = (
  "id",
  "user",
  "source",
  "use_case",
  "organisation",
  "consent",
  "annotations",
)  # of a prompt, kept with it
LONGEST = 100_000  # characters of a demonstration or a note


@dataclasses.dataclass(frozen=True)
class Task:
  """A prompt and, to be ranked, its outputs; `sources` says what drew each and is never shown to a
  labeler.
  """

  prompt: str
  completions: tuple[str, ...] = ()
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = dataclasses.field(default=None, hash=False)
  sources: tuple[Mapping[str, Any], ...] = dataclasses.field(default=(), hash=False)
  turns: tuple[Message, ...] | None = dataclasses.field(
    default=None, compare=False
  )  # of a prompt that is a chat


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a labeler said of a task, in the order of its outputs; `value` is None where it was
  skipped, for `reason`.
  """

  task: Task
  labeler: str
  value: dict[str, Any] | None
  reason: str = ""
  shown: tuple[int, ...] = ()  # the outputs in the order that the labeler saw
  seconds: float = 0.0  # from the first sight to the answer


def read(path: str | Path, kind: str) -> tuple[list[Task], list[str]]:
  """The tasks of a JSONL file, and in words what was left out of it.

  A demonstration task is a `prompt`; one of another kind has `completions` too, or `responses`
  as `instructjax sample` writes them, and takes `sources`, what drew each.  Of `responses` the
  empty and the repeated ones are left out, prompts that keep fewer than two, and their `scores`.
  Raises UserError with the line and field of every problem.
  """
  if kind == "demonstration":
    return [unanswered(record) for record in records.read(path, "prompt")], []
  dropped: Counter[str] = Counter()

  def spelling(row: dict[str, Any], _: str) -> dict[str, Any]:
    row, few = _unranked(row, dropped), False
    if "responses" in row:
      row["completions"] = row.pop("responses")
      few = len(row["completions"]) < records.K[0]
    row["ranks"] = [1] * len(
      row["completions"]
    )  # so that the record is whole; a labeler gives the real ones
    return STAND_IN if few else row

  found = records.read(path, "comparison", spelling)
  kept = [record for record in found if record.prompt != STAND_IN["prompt"]]
  if not kept:
    raise UserError(
      f"{path}: no prompt with two different outputs; sample more (--config.n=4) or at a higher "
      "temperature"
    )
  dropped["prompts with fewer than two different responses"] = len(found) - len(kept)
  return [unanswered(record) for record in kept], [
    f"left out: {count} {what}" for what, count in dropped.items() if count
  ]


def unanswered(record: Comparison | Demonstration | Prompt) -> Task:
  """What a record asks, without the answer."""
  outputs = (
    (record.completions, record.sources or ()) if isinstance(record, Comparison) else ((), ())
  )
  return Task(record.prompt, outputs[0], **facts(record), sources=outputs[1], turns=record.turns)


def facts(record: Task | Comparison | Demonstration | Prompt) -> dict[str, Any]:
  """What is known of a prompt, and goes along with it."""
  return {name: getattr(record, name) for name in FACTS}


def present(task: Task) -> dict[str, Any]:
  """The fields of a task that say something, for JSON."""
  return {
    name: value
    for name, value in dataclasses.asdict(task).items()
    if value is not None and value != ()
  }


STAND_IN = {
  "prompt": "\0",
  "completions": ["a", "b"],
  "ranks": [1, 1],
}  # holds the line of a prompt that is left out


def _unranked(row: dict[str, Any], dropped: Counter[str]) -> dict[str, Any]:
  """A copy of a row to rank, its lists checked; `responses` without the empty and the repeated
  ones.
  """
  names = [name for name in ("completions", "responses") if name in row]
  if "ranks" in row or "ratings" in row:
    raise RecordError(
      "ranks, ratings: labeled already; take them out, or use `instructjax label import`"
    )
  if len(names) != 1:
    raise RecordError(
      "completions: give completions or responses, a list of texts (one of the two)"
    )
  texts, origin = row[names[0]], row.get("sources")
  if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
    raise RecordError(f"{names[0]}: a list of texts is expected")
  if origin is not None and (
    wrong := validation.origins(origin, len(texts), names[0].removesuffix("s"))
  ):
    raise RecordError(*wrong)
  if names[0] == "completions":
    return dict(row)
  first = {text.strip(): at for at, text in reversed(list(enumerate(texts)))}
  keep = sorted(at for text, at in first.items() if text)
  empty = sum(not text.strip() for text in texts)
  dropped["empty responses"] += empty
  dropped["repeated responses"] += len(texts) - len(keep) - empty
  rest = {
    name: value for name, value in row.items() if name != "scores"
  }  # those of rewards are not for people
  return (
    rest
    | {"responses": [texts[at] for at in keep]}
    | ({"sources": [origin[at] for at in keep]} if origin else {})
  )


# --- answers ---


def checked(kind: str, value: Any, k: int) -> dict[str, Any]:
  """An answer with its fields whole: ranks without gaps, every flag said.  Raises UserError for the
  first problem.
  """
  if not isinstance(value, dict):
    raise UserError("answer: an object is expected")
  if kind == "demonstration":
    _only(value, {"completion"})
    return {"completion": _text("completion", value.get("completion"), needed=True)}
  _only(value, {"ratings", "ranks", "notes"})
  ranks, ratings, notes = value.get("ranks"), value.get("ratings"), value.get("notes") or [""] * k
  if (
    not isinstance(ranks, list)
    or len(ranks) != k
    or any(type(rank) is not int or not 1 <= rank <= k for rank in ranks)
  ):
    raise UserError(f"ranks: {k} integers from 1 (best) to {k} are expected, equal ones for ties")
  if (
    not isinstance(ratings, list)
    or len(ratings) != k
    or not isinstance(notes, list)
    or len(notes) != k
  ):
    raise UserError(f"ratings, notes: {k} of each are expected, one an output")
  dense = {rank: at for at, rank in enumerate(sorted(set(ranks)), 1)}
  return {
    "ranks": [dense[rank] for rank in ranks],
    "ratings": [_rating(kind, f"ratings[{at}]", rating) for at, rating in enumerate(ratings)],
    "notes": [_text(f"notes[{at}]", note) for at, note in enumerate(notes)],
  }


def _rating(kind: str, place: str, rating: Any) -> dict[str, Any]:
  """Table 3's metadata of an output, or Fig. 11's; {} where none was taken, in what comes from
  another tool.
  """
  if rating == {}:
    return {}
  if not isinstance(rating, dict):
    raise UserError(f"{place}: an object is expected")
  if kind == "continuation":
    _only(rating, set(CONTINUATION), f"{place}.")
    for name, (low, high) in CONTINUATION.items():
      if type(rating.get(name)) is not int or not low <= rating[name] <= high:
        raise UserError(f"{place}.{name}: an integer from {low} to {high} is expected")
    return {name: rating[name] for name in CONTINUATION}
  _only(rating, set(RATINGS), f"{place}.")
  overall = rating.get("overall")
  if type(overall) is not int or not 1 <= overall <= 7:
    raise UserError(f"{place}.overall: an integer from 1 (worst) to 7 (best) is expected")
  flags = {name: rating.get(name, False) for name in FLAGS}
  wrong = [name for name, flag in flags.items() if not isinstance(flag, bool)]
  if wrong:
    raise UserError(f"{place}.{wrong[0]}: true or false is expected")
  return {"overall": overall} | flags


def canonical(value: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
  """An answer in the order of the task's outputs, from one in the order shown."""
  place = {output: at for at, output in enumerate(order)}
  return {
    name: [part[place[at]] for at in range(len(order))] if isinstance(part, list) else part
    for name, part in value.items()
  }


def _only(value: dict[str, Any], known: set[str], place: str = "") -> None:
  unknown = sorted(set(value) - known)
  if unknown:
    raise UserError(f"{place}{unknown[0]}: unknown field; known are {', '.join(sorted(known))}")


def _text(place: str, value: Any, *, needed: bool = False) -> str:
  if not isinstance(value, str) or (needed and not value.strip()):
    raise UserError(f"{place}: a text is expected")
  if len(value) > LONGEST:
    raise UserError(f"{place}: {len(value)} characters, the limit is {LONGEST}; shorten it")
  if any("\ud800" <= letter <= "\udfff" for letter in value):
    raise UserError(
      f"{place}: half a surrogate pair, which is no character; take it out of the text"
    )
  return value

"""What labelers are asked: tasks, and the files that tasks come from.

A task is a prompt to answer (kind `demonstration`), or a prompt with 2 to 9 outputs to rate and
rank: answers to it, rated by Table 3 (`comparison`), or continuations of a text, rated by
Fig. 11 for how toxic they are (`continuation`). Tables and figures are those of Ouyang et al.
(2022). answers.py defines what labelers answer.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.data.records import records, validation
from instructjax.data.records.records import (
  Comparison,
  Demonstration,
  Message,
  Prompt,
  RecordError,
)
from instructjax.errors import UserError

Row = dict[str, Any]  # a JSON object of a file
Sources = tuple[Mapping[str, Any], ...]  # the origin of each output of a task

KINDS = ("demonstration", "comparison", "continuation")
# Fields about a prompt, which go along with it from the task into the record.
FACTS = (
  "id",
  "user",
  "source",
  "use_case",
  "organisation",
  "consent",
  "annotations",
  "group",
)
# Every line of a file must become a record, or the line numbers in errors would be wrong. This
# record holds the line of a prompt that is left out; no prompt of a user can be a NUL character.
_LEFT_OUT: Row = {
  "prompt": "\0",
  "completions": ["a", "b"],
  "ranks": [1, 1],
}


@dataclasses.dataclass(frozen=True)
class Task:
  """A prompt and, where it is to be ranked, its outputs."""

  prompt: str
  completions: tuple[str, ...] = ()
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = dataclasses.field(default=None, hash=False)
  group: str | None = None
  # The model, temperature and seed behind each output. A labeler never sees them.
  sources: Sources = dataclasses.field(default=(), hash=False)
  # The messages of a prompt that is a chat. `prompt` is their transcript, so they add nothing to
  # the comparison of two tasks.
  turns: tuple[Message, ...] | None = dataclasses.field(default=None, compare=False)


def read(path: str | Path, kind: str) -> tuple[list[Task], list[str]]:
  """Returns the tasks of a JSONL file, and a sentence for everything that was left out of it.

  A demonstration task is a `prompt`. A task of another kind also has `completions`, or
  `responses` as `instructjax sample` writes them, and may have `sources`, one for each of them.
  Among `responses` the empty and the repeated ones are left out, and a prompt that keeps fewer
  than two is left out whole. The `scores` of `responses` are ignored.

  Raises:
    UserError: the file is invalid; the text has a line for every problem, with line and field.
  """
  if kind == "demonstration":
    prompts = records.read(path, "prompt")
    return [unanswered(record) for record in prompts], []
  # The zeros fix the order of the sentences.
  left_out = Counter({"empty responses": 0, "repeated responses": 0})

  def spelling(row: Row, _kind: str) -> Row:
    return _as_comparison(row, left_out)

  comparisons = records.read(path, "comparison", spelling)
  placeholder = _LEFT_OUT["prompt"]
  rankable = [record for record in comparisons if record.prompt != placeholder]
  if not rankable:
    raise UserError(
      f"{path}: no prompt with two different outputs; sample more (--config.n=4) or at a higher "
      "temperature"
    )
  left_out["prompts with fewer than two different responses"] = len(comparisons) - len(rankable)
  counts = [(items, count) for items, count in left_out.items() if count]
  sentences = [f"left out: {count} {items}" for items, count in counts]
  return [unanswered(record) for record in rankable], sentences


def from_fields(
  kind: str,
  prompt: Any,
  completions: Sequence[Any],
  fields: Mapping[str, Any],
) -> Task:
  """Returns the task that another tool wrote; empty fields count as missing.

  Raises:
    UserError: the fields do not make a task of ours.
  """
  row: Row = {"prompt": prompt}
  row |= {name: value for name, value in fields.items() if value not in (None, "")}
  if kind == "demonstration":
    (record,) = records.parse([row], "prompt", name="task")
  else:
    # The ranks only make the record whole, as in `_as_comparison`.
    row["completions"] = completions
    row["ranks"] = [1] * len(completions)
    (record,) = records.parse([row], "comparison", name="task")
  return unanswered(record)


def unanswered(record: Comparison | Demonstration | Prompt) -> Task:
  """Returns the task that a record answers."""
  completions: tuple[str, ...] = ()
  sources: Sources = ()
  if isinstance(record, Comparison):
    completions = record.completions
    sources = record.sources or ()
  return Task(
    record.prompt,
    completions,
    **facts(record),
    sources=sources,
    turns=record.turns,
  )


def facts(record: Task | Comparison | Demonstration | Prompt) -> dict[str, Any]:
  """Returns the fields about a prompt that go along with it; a missing one is None."""
  return {name: getattr(record, name) for name in FACTS}


def as_fields(task: Task) -> dict[str, Any]:
  """Returns the fields of a task that are not empty, for JSON."""
  fields = dataclasses.asdict(task)
  return {name: value for name, value in fields.items() if value not in (None, ())}


def _as_comparison(row: Row, left_out: Counter[str]) -> Row:
  """Returns the comparison record of a row to rank, or `_LEFT_OUT`; counts in `left_out`."""
  name, texts = _outputs(row)
  sources = row.get("sources")
  if sources is not None:
    output = name.removesuffix("s")  # what errors call one of them
    problems = validation.origins(sources, len(texts), output)
    if problems:
      raise RecordError(*problems)
  row = dict(row)
  if name == "responses":
    positions = _distinct(texts, left_out)
    if len(positions) < records.K[0]:
      return _LEFT_OUT
    # Scores of reward models are not shown to people.
    row.pop("scores", None)
    del row["responses"]
    row["completions"] = [texts[position] for position in positions]
    if sources:
      row["sources"] = [sources[position] for position in positions]
  # A comparison record needs ranks. A labeler gives the real ones; these are never read.
  row["ranks"] = [1] * len(row["completions"])
  return row


def _outputs(row: Row) -> tuple[str, list[str]]:
  """Returns the name of the field with the outputs of a row to rank, and the outputs."""
  if "ranks" in row or "pairs" in row or "ratings" in row:
    raise RecordError(
      "ranks, pairs, ratings: labeled already; take them out, or use `instructjax label import`"
    )
  names = [name for name in ("completions", "responses") if name in row]
  if len(names) != 1:
    raise RecordError(
      "completions: give completions or responses, a list of texts (one of the two)"
    )
  texts = row[names[0]]
  if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
    raise RecordError(f"{names[0]}: a list of texts is expected")
  return names[0], texts


def _distinct(texts: Sequence[str], left_out: Counter[str]) -> list[int]:
  """Returns the position of the first of each text, spaces around it aside; counts the rest."""
  positions: dict[str, int] = {}
  for position, text in enumerate(texts):
    stripped = text.strip()
    if not stripped:
      left_out["empty responses"] += 1
    elif stripped in positions:
      left_out["repeated responses"] += 1
    else:
      positions[stripped] = position
  return list(positions.values())

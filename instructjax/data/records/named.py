"""The public spellings by their names: what reads each, the kinds it gives, the columns it reads.

Columns that a spelling does not read are left out of the records. `counted` counts them, so that
whoever reads a file can say so.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from instructjax.data.records import formats, pairwise, validation
from instructjax.data.records.feedback import oasst, summarize_feedback, ultrafeedback
from instructjax.data.records.records import Spelling, Whole, native
from instructjax.data.records.schemas import KINDS, RecordError

Row = dict[str, Any]
# Our own optional columns, which keep their meaning in a row of any spelling.
OWN = ("id", "user", "labeler", "source", "use_case", "organisation", "group", "consent")
LABELLED = ("comparison", "demonstration", "prompt")
DEMONSTRATIONS = ("demonstration", "prompt")


class Layout(NamedTuple):
  """How the rows of a file are read.

  Attributes:
    name: the name of the spelling, or "" for a mapping of fields.
    spell: reads a row.
    kinds: the kinds of records that it gives, first what a row holds first of all; empty for any.
    columns: the columns that it reads; None where it refuses those that it does not know.
    fields: the mapping, {our name: their name}, where it is one.
  """

  name: str
  spell: Spelling
  kinds: tuple[str, ...] = ()
  columns: frozenset[str] | None = None
  fields: Mapping[str, str] | None = None


def _layout(name: str, spell: Any, kinds: tuple[str, ...], columns: str) -> Layout:
  return Layout(name, _with_own(spell), kinds, frozenset([*columns.split(), *OWN]))


def _with_own(spell: Any) -> Spelling:
  """Returns the spelling of single rows that also keeps our own columns of a row."""

  def spell_with_own(row: Row, kind: str) -> Row:
    fields = spell(row, kind)
    allowed = {field.name for field in dataclasses.fields(KINDS[kind])}
    own = {name: row[name] for name in OWN if name in allowed and _is_plain(row.get(name))}
    return own | fields

  return spell_with_own


def _is_plain(value: Any) -> bool:
  """Returns whether a value is a text with something in it, a number, or true or false."""
  return bool(value.strip()) if isinstance(value, str) else isinstance(value, int)


OASST = "message_id parent_id role text rank deleted replies prompt message_tree_id"
HELPSTEER = (
  "prompt context response response_1 response_2 response1 response2 helpfulness "
  "preference_strength overall_preference"
)
PANDALM_ANNOTATORS = " ".join(f"annotator{number}" for number in range(1, 10))
PREDICTIONS = frozenset(f"prediction {number}" for number in range(1, 10))
LAYOUTS = {
  layout.name: layout
  for layout in (
    Layout("native", native),
    _layout(
      "preference",
      formats.preference,
      LABELLED,
      "prompt chosen rejected messages conversations conversation instruction input system history",
    ),
    _layout(
      "alpaca",
      formats.alpaca,
      DEMONSTRATIONS,
      "instruction input output system history label kto_tag",
    ),
    _layout(
      "dolly",
      formats.dolly,
      DEMONSTRATIONS,
      "instruction context response system history label kto_tag",
    ),
    _layout("messages", formats.messages, DEMONSTRATIONS, "messages system label kto_tag"),
    _layout(
      "conversations",
      formats.conversations,
      DEMONSTRATIONS,
      "conversations conversation system label kto_tag",
    ),
    _layout(
      "prompt_completion",
      formats.prompt_completion,
      DEMONSTRATIONS,
      "prompt completion label kto_tag",
    ),
    _layout("hh", formats.hh, LABELLED, "chosen rejected"),
    _layout(
      "ultrafeedback",
      ultrafeedback,
      LABELLED,
      "instruction prompt completions generations responses ratings scores",
    ),
    _layout("summarize_feedback", summarize_feedback, LABELLED, "info summaries choice worker"),
    Layout(
      "oasst",
      Whole(oasst),
      LABELLED,
      frozenset(OASST.split()),
    ),
    _layout("shp", pairwise.shp, LABELLED, "history human_ref_A human_ref_B labels"),
    _layout("webgpt", pairwise.webgpt, LABELLED, "question answer_0 answer_1 score_0 score_1"),
    _layout(
      "pandalm",
      pairwise.pandalm,
      LABELLED,
      f"instruction input system history response1 response2 {PANDALM_ANNOTATORS}",
    ),
    Layout(
      "fine_grained",
      _with_own(pairwise.fine_grained),
      ("comparison", "prompt"),
      PREDICTIONS | frozenset(["question", "passages", "preference", *OWN]),
    ),
    _layout(
      "arena",
      pairwise.arena,
      LABELLED,
      "conversation_a conversation_b winner model_a model_b judge",
    ),
    Layout(
      "helpsteer",
      Whole(pairwise.helpsteer),
      LABELLED,
      frozenset(HELPSTEER.split()),
    ),
  )
}


# --- what is left out ---


@dataclasses.dataclass
class LeftOut:
  """In how many rows of a source each column has a value that is left out."""

  rows: int = 0
  columns: Counter[str] = dataclasses.field(default_factory=Counter)


def sentence(left_out: LeftOut) -> str:
  """Returns what is left out, as "left out: context (120 of 200 rows), images (3)", or ""."""
  parts = []
  for name, count in left_out.columns.items():
    total = "" if parts else f" of {left_out.rows:,} rows"
    parts.append(f"{name} ({count:,}{total})")
  # A name is whatever the file has, so it may hold what cannot be printed.
  return validation.printable(f"left out: {', '.join(parts)}") if parts else ""


def counted(layout: Layout, left_out: LeftOut) -> Spelling:
  """Returns the spelling of a layout, which counts the columns that it does not read."""
  columns = layout.columns
  spell = layout.spell
  if columns is None:
    return spell

  def count(row: Row) -> None:
    left_out.rows += 1
    for name, value in row.items():
      # An empty list or text says nothing, so nothing is lost with it.
      if name not in columns and value not in (None, "", [], {}):
        left_out.columns[name] += 1

  if isinstance(spell, Whole):
    whole = spell.spell

    def spell_rows(rows: Any, kind: str) -> Iterator[tuple[str, Row | RecordError]]:
      for _, row in rows:
        count(row)
      yield from whole(rows, kind)

    return Whole(spell_rows)

  def spell_row(row: Row, kind: str) -> Row:
    # With a mapping, the other columns of a prompt are its further fields.
    if kind != "prompt" or layout.fields is None:
      count(row)
    return spell(row, kind)

  return spell_row

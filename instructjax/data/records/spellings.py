"""Which function reads the rows of a source: a spelling by its name, or a mapping of fields from
the configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from instructjax.data.records import formats, records, sources
from instructjax.data.records.feedback import oasst, summarize_feedback, ultrafeedback
from instructjax.data.records.records import Spelling, Whole
from instructjax.errors import UserError

SPELLINGS: dict[str, Spelling] = {
  **formats.SPELLINGS,
  "ultrafeedback": ultrafeedback,
  "summarize_feedback": summarize_feedback,
  "oasst": Whole(oasst),
}
COMPARISONS = (
  "preference",
  "hh",
  "ultrafeedback",
  "summarize_feedback",
  "oasst",
)  # the others hold demonstrations
REQUIRED = {
  kind: [field.name for field in dataclasses.fields(record) if field.default is dataclasses.MISSING]
  for kind, record in records.KINDS.items()
}


def kind(name: str = "native", fields: str = "") -> str | None:
  """The kind of record that a spelling or a mapping of fields gives; None where neither tells."""
  if name != "native":
    return "comparison" if name in COMPARISONS else "demonstration"
  given = parse(fields, "--")
  return "comparison" if "chosen" in given else sources.told_by(given)


def choose(
  name: str,
  kind: str,
  fields: Mapping[str, str] | str = "",
  known: Mapping[str, Spelling] = SPELLINGS,
  place: str = "config.data.",
) -> Spelling | None:
  """The spelling of a name, or of a mapping of fields; None is what the source itself says: native,
  or the ready mapping of a TFDS data set.  Text is always native: only its fields can be mapped.

  A mapping counts for the kinds of which it names a required field (for comparisons also chosen
  and rejected). `place` stands before `spelling` and `fields` in messages.  Raises UserError for
  unknown names.
  """
  if name not in known:
    raise UserError(f"{place}spelling={name!r}: known are {', '.join(known)}")
  given = parse(fields, place)
  if given and name != "native":
    raise UserError(f"{place}fields and {place}spelling={name!r}: give one of them")
  own = {*_fields(kind), *(formats.PAIR if kind == "comparison" else ())}
  needed = {*REQUIRED.get(kind, ()), *(formats.PAIR if kind == "comparison" else ())}
  if needed & set(given):
    pair = [one for one in formats.PAIR if one in given and one in own]
    if len(pair) == 1 or (pair and {"completions", "ranks"} & set(given)):
      raise UserError(f"{place}fields: give chosen and rejected, or completions and ranks")
    missing = [
      one
      for one in REQUIRED[kind]
      if one not in given and not (pair and one in ("completions", "ranks"))
    ]
    return formats.mapped(
      {one: one for one in missing}
      | {ours: theirs for ours, theirs in given.items() if ours in own}
    )
  return None if name == "native" or kind == "text" else known[name]


def parse(fields: Mapping[str, str] | str, place: str = "config.data.") -> dict[str, str]:
  """ "prompt=question,completion=answer" as a dict of our fields to theirs.  Raises UserError where
  it is none.
  """
  if not isinstance(fields, str):
    pairs = [[ours, theirs] for ours, theirs in dict(fields).items()]
  else:
    pairs = [
      [part.strip() for part in pair.split("=", 1)] for pair in fields.split(",") if pair.strip()
    ]
  ours = [*dict.fromkeys(one for kind in records.KINDS for one in _fields(kind)), *formats.PAIR]
  for pair in pairs:
    if len(pair) != 2 or not all(isinstance(one, str) and one for one in pair):
      raise UserError(
        f"{place}fields={fields!r}: give OURS=THEIRS,... such as prompt=question,completion=answer"
      )
    if pair[0] not in ours:
      near = difflib.get_close_matches(pair[0], ours, 1)
      hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(ours)}"
      raise UserError(f"{place}fields: {pair[0]!r} is no field of a record; {hint}")
  found = {pair[0]: pair[1] for pair in pairs}
  if len(found) < len(pairs):
    raise UserError(f"{place}fields={fields!r}: a field stands there twice")
  return found


def _fields(kind: str) -> list[str]:
  found = dataclasses.fields(records.KINDS[kind]) if kind in records.KINDS else ()
  return [field.name for field in found if field.name != "turns"]  # those come with the prompt

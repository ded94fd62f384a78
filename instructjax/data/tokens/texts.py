"""Text of any source, piece by piece: what a tokenizer is trained on and checked with.

A file named .jsonl, .json or .parquet (or .gz of one), and whatever is not a file, holds
records, and each of their texts is a piece; any other file is plain text, and each of its lines
is a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from instructjax.data.records import records, sources, spellings
from instructjax.data.records.records import Comparison, Demonstration, FewShot, Record, Text
from instructjax.data.records.sources import Part
from instructjax.errors import UserError


def texts(source: str | Path, spelling: str = "native", fields: str = "") -> Iterator[str]:
  """The texts of a source.  Raises UserError with the place of whatever is not UTF-8 or not a
  record.
  """
  for part in sources.parts(source):
    if part.plain:
      yield from lines(part)
    else:
      yield from (text for record in _records(part, spelling, fields) for text in pieces(record))


def lines(part: Part) -> Iterator[str]:
  """The lines of a plain text without their ends."""
  for number, line in enumerate(part.rows(), 1):
    try:
      yield line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
      raise UserError(
        f"{part.name}:{number}: not UTF-8 at byte {error.start}; save the file as UTF-8"
      ) from None


def _records(part: Part, spelling: str, fields: str) -> list:
  kind = spellings.kind(spelling, fields) or sources.kind_of_part(part)
  if kind is None:
    raise UserError(
      f"{part.name}: no line has the fields of a record; give records, or name a plain text .txt"
    )
  chosen = spellings.choose(spelling, kind, fields, place="--") or (
    part.mapping.spell if part.mapping else records.native
  )
  found, problems = records.scan(part.rows(), kind, chosen, name=part.name)
  records.report(problems)
  return found


def pieces(record: Record) -> list[str]:
  """Every text of a record that a model reads or writes; of a chat the messages."""
  if isinstance(record, Text):
    return [record.text]
  if isinstance(record, FewShot):
    return [record.instruction, *(text for pair in record.pairs for text in pair.values())]
  prompt = [message["content"] for message in record.turns] if record.turns else [record.prompt]
  completions = record.completions if isinstance(record, Comparison) else ()
  return [*prompt, *([record.completion] if isinstance(record, Demonstration) else completions)]

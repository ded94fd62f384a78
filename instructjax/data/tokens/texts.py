"""Text of any source, piece by piece: what a tokenizer is trained on and checked with.

A file named .jsonl, .json, .csv, .tsv or .parquet (or .gz of one) holds records, and so does
anything that is not a file. Each of their texts is a piece. Any other file is plain text, and each
of its lines is a piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from instructjax.data.records import records, sources, spellings
from instructjax.data.records.detect import Notes
from instructjax.data.records.places import Row
from instructjax.data.records.records import Comparison, Demonstration, FewShot, Record, Text
from instructjax.data.records.sources import Part
from instructjax.errors import UserError


def texts(source: str | Path, spelling: str = "", fields: str = "") -> Iterator[str]:
  """Yields the texts of a source.

  Raises:
    UserError: names the place of whatever is not UTF-8 or not a record.
  """
  for part in sources.parts(source):
    if part.lines is not None:
      yield from lines(part.lines())
      continue
    for record in _records(part, spelling, fields):
      yield from pieces(record)


def lines(rows: Iterable[Row]) -> Iterator[str]:
  """Yields the lines of a plain text without their ends."""
  for place, line in rows:
    try:
      # The rows end at "\n"; a file from Windows still has a "\r" there.
      yield line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
      raise UserError(f"{place}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None


def _records(part: Part, spelling: str, fields: str) -> list:
  """Returns the records of a part, of the kind that its spelling or its first fields say."""
  kind = spellings.kind(spelling, fields) or sources.kind_of_part(part)
  if kind is None:
    hint = sources.hint(part, "--")
    raise UserError(
      hint or f"{part.name}: no row is a record; give records, or name a plain text .txt"
    )
  # What the user names comes first, then what is known about a public data set.
  chosen = spellings.choose(spelling, kind, fields, place="--")
  part_rows, kind, spell = sources.read_part(part, kind, chosen, Notes(), "--")
  rows, problems = records.collect(part_rows, kind, spell, name=part.name)
  records.report(problems)
  return rows


def pieces(record: Record) -> list[str]:
  """Returns every text of a record that a model reads or writes; of a chat, each message."""
  if isinstance(record, Text):
    return [record.text]
  if isinstance(record, FewShot):
    texts_of_pairs = [text for pair in record.pairs for text in pair.values()]
    return [record.instruction, *texts_of_pairs]
  prompt = [record.prompt]
  # The text of a chat is its messages with the names of the speakers, which nobody wrote.
  if record.turns:
    prompt = [message["content"] for message in record.turns]
  if isinstance(record, Demonstration):
    return [*prompt, record.completion]
  if isinstance(record, Comparison):
    return [*prompt, *record.completions]
  return prompt  # of a prompt to be sampled from
